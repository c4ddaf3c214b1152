"""Parses request bodies, and the usual kind of chat in one pass.

In general, a body is parsed twice (`validation`): once as a whole, without its prompt, and then the
prompt. A chat whose messages hold only known fields is cut at their brackets instead, so each byte
is parsed once. Everything else takes the general way, in particular every invalid body.

Where the data plane is compiled, a scanner reads the most usual chats (`native`). Their other
fields are decoded only if something reads them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import xxhash
from msgspec import UNSET, Raw
from msgspec.structs import astuple

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Model
from fairlead.limits import Limits
from fairlead_gateway.dialects.chat import CHAT, ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.dialect import Dialect
from fairlead_gateway.dialects.embeddings import EmbeddingRequest
from fairlead_gateway.dialects.messages import METADATA_DECODER, MessagesMetadata, MessagesRequest
from fairlead_gateway.dialects.passed_on import OTHER, GenericRequest
from fairlead_gateway.dialects.responses import ResponsesRequest
from fairlead_gateway.dialects.schemas import (
    ITEMS_DECODER,
    MEMBERS_DECODER,
    PLAIN_MESSAGES_DECODER,
    PLAIN_MESSAGES_DEPTH,
    CommonFields,
    GenerationFields,
)
from fairlead_gateway.dialects.table import BODY_DECODERS, BY_TYPE, LISTED_DECODERS, LISTED_KINDS
from fairlead_gateway.dialects.text_bounds import TextBounds
from fairlead_gateway.native import SCAN_CHAT, SCAN_MESSAGES, SCAN_RESPONSES, ChatScan
from fairlead_gateway.openai.field_policy import has_token_ids, removed_fields, special_parts
from fairlead_gateway.openai.form_body import FormFiles
from fairlead_gateway.openai.json_edit import rewrite_members
from fairlead_gateway.openai.model_names import ModelEntry
from fairlead_gateway.openai.response_ids import HeldResponse
from fairlead_gateway.openai.validation import check_costly_fields, check_depth, check_generation, decode_body
from fairlead_gateway.routes.target_choice import RouteDecision

# Why constants: compiled code reads those of its own module directly, and looks up others.
_CHAT: Final = ChatRequest
_CHAT_DIALECT: Final = CHAT
_BY_TYPE: Final = BY_TYPE
_NAMES: Final = ChatRequest.__struct_fields__
_MODEL: Final = _NAMES.index("model")
_USER: Final = _NAMES.index("user")
_SESSION: Final = _NAMES.index("session_id")
_CACHE_KEY: Final = _NAMES.index("prompt_cache_key")
_SAFETY: Final = _NAMES.index("safety_identifier")
_SALT: Final = _NAMES.index("cache_salt")
_STREAM: Final = _NAMES.index("stream")
_MAX_TOKENS: Final = _NAMES.index("max_tokens")
_RARE_START: Final = _NAMES.index("n")
_RARE_END: Final = _NAMES.index("tools") + 1
_MAX_COMPLETION_TOKENS: Final = _NAMES.index("max_completion_tokens")
_PROMPT_LOGPROBS: Final = _NAMES.index("prompt_logprobs")
_FORMAT: Final = _NAMES.index("response_format")
_TOOLS: Final = _NAMES.index("tools")
_CACHE_FIELDS: Final = (
    *("add_special_tokens", "chat_template", "chat_template_kwargs", "documents", "media_io_kwargs"),
    *("mm_processor_kwargs", "reasoning_effort", "truncate_prompt_tokens", "truncation_side"),
    *("extra_key", "images_config", "input_ids", "lora_path", "max_dynamic_patch", "min_dynamic_patch"),
    *("output_config", "prompt_embeds", "reasoning", "text", "thinking", "use_audio_in_video", "video_config"),
)
"""Fields that change the tokens of a prompt or where they are cached, besides the prompt itself and
those of `schemas`.
"""
_NO_CONTEXT: Final = (b"null", b"[]")
_CHAT_CONTEXT: Final = () if CHAT.prompt is None else CHAT.prompt.context
_RANKED_FIELDS: Final = (
    *("query", "queries", "instruction", "documents", "items"),
    *("text_1", "text_2", "data_1", "data_2"),
)
"""Fields of rankings and scores. An engine computes one text with each item of a list."""
_ITEM_FIELDS: Final = (*_RANKED_FIELDS, "input", "data")
_SEVERAL_TEXTS: Final = re.compile(rb'\[[ \t\r\n]*["\[]')
"""The beginning of a list of texts, or of lists of token ids or of messages."""
_LISTED_CACHE_FIELDS: Final = {
    kind: tuple(name for name in _CACHE_FIELDS if name in kind.__struct_fields__) for kind in LISTED_KINDS.values()
}
_ABSENT: Final = astuple(ChatRequest(model="", messages=msgspec.Raw(b"[]")))
_NO_RARE_FIELDS: Final = _ABSENT[_RARE_START:_RARE_END]
_UNSET: Final = UNSET
_AS_TUPLE: Final = astuple
_DECODE_METADATA: Final = METADATA_DECODER.decode
_OTHER: Final = OTHER
_DECODE_CHAT: Final = BODY_DECODERS[ChatRequest].decode
_DECODE_LISTED_CHAT: Final = LISTED_DECODERS[ChatRequest].decode
_DECODE_MEMBERS: Final = MEMBERS_DECODER.decode
_DECODE_PLAIN_MESSAGES: Final = PLAIN_MESSAGES_DECODER.decode
_PLAIN_MESSAGES_DEPTH: Final = PLAIN_MESSAGES_DEPTH
_MESSAGES_KEY: Final = b'"messages"'
_ESCAPE: Final = ord("\\")
_SPACE: Final = ord(" ")
_OPENING: Final = ord("[")
_MAX_COPIED_BYTES: Final = 4_096
_SCAN_CHAT: Final = SCAN_CHAT
_SCANS: Final[dict[type[CommonFields], ChatScan]] = {
    kind: scan
    for kind, scan in ((MessagesRequest, SCAN_MESSAGES), (ResponsesRequest, SCAN_RESPONSES))
    if scan is not None
}
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class ModelRequest:
    """A parsed request, with copies of the fields that every request needs.

    The parser makes it from a body; `bind` sets its model, and what its engine gets.

    body, client_body: as sent to the engine, and as received.
    model_name: that the client wrote.
    entry, model, model_key: set by `bind`.
    cache_key: what engines cache under: the model, and the adapter if there is one.
    decoded_fields: all fields; None if nothing has read them yet. `fields` decodes them.
    session: the client's name for the conversation.
    has_session_id: that name is of one conversation, not of a user.
    has_cache_variants: more than the model decides what an engine caches for the prompt.
    cache_variant: digest of the fields in `_CACHE_FIELDS`; empty without one.
    context: the texts that engines put into the prompt, besides it (`_context_texts`), until the
        prompt is hashed.
    dialect: of the request and its answer.
    held: the stored response that the request names, whose holder alone serves it; None without
        one.
    members: the top-level fields if some are not listed as safe (`schemas`), with those of
        `special_parts`; None otherwise, and after `bind`.
    prompts: those of a text completion, which may be a list.
    items: texts of a ranking or another score that is passed on.
    repeated_bytes: those that the engine computes again for each further item of a list.
    is_passthrough: the gateway reads neither prompt nor response.
    passes_stream: the client asked for a stream that is passed on.
    files: of a form, whose fields are the body here; None without a form.
    strip_usage: the client did not ask for the usage of the stream.
    without_tokens: an engine refuses to send token ids, so that none is asked for them.
    method, target: of the request to the engine; target None: the client's path.
    max_tokens: the client's limit of the response.
    sequences: answers that an engine computes for the prompt.
    bounds: of its tokens by its bytes; None if nothing has looked for them yet.
    messages_start, messages_end: where the text between the brackets of the messages lies in the
        body; both 0 if the fields hold the prompt. Of a large body, that of any prompt.
    resumable: whether `can_resume`; None if that was not computed when the body was parsed.
    cache_salt: the salt of the tenant's cache scope; None without one.
    parameters: the fields that a route has set in the body; None if it has set none.
    route: how a route chose the model; None if the client named the model itself.
    adapter: the LoRA adapter that the client named; `model` is its base then.
    removed: the fields of the client that no engine gets.
    runs_on: an engine may go on with the work after its answer. At the end: how much is unknown.
    is_unstored: the gateway has written `store: false` into the body.

    Why copies: attributes of a msgspec struct are slow to read.
    Why 7 parameters: they are the fields of one record.
    """

    __slots__ = (
        "adapter",
        "body",
        "bounds",
        "cache_key",
        "cache_salt",
        "cache_variant",
        "client_body",
        "context",
        "decoded_fields",
        "dialect",
        "entry",
        "files",
        "has_cache_variants",
        "has_session_id",
        "held",
        "is_passthrough",
        "is_unstored",
        "items",
        "max_tokens",
        "members",
        "messages_end",
        "messages_start",
        "method",
        "model",
        "model_key",
        "model_name",
        "parameters",
        "passes_stream",
        "prompts",
        "removed",
        "repeated_bytes",
        "resumable",
        "route",
        "runs_on",
        "sequences",
        "session",
        "stream",
        "strip_usage",
        "target",
        "without_tokens",
    )
    entry: ModelEntry
    model: Model
    model_key: str
    cache_key: str

    def __init__(
        self,
        fields: CommonFields | None,
        body: bytes,
        model_name: str,
        session: str | None,
        max_tokens: int | None = None,
        *,
        stream: bool = False,
        members: dict[str, Raw] | None = None,
    ) -> None:
        self.decoded_fields = fields
        self.body = body
        self.client_body = body
        self.model_name = model_name
        self.messages_start: int = 0
        self.messages_end: int = 0
        self.stream = stream
        self.strip_usage = False
        self.without_tokens = False
        self.max_tokens = max_tokens
        self.session = session
        self.has_session_id = False
        self.sequences: int = 1
        self.has_cache_variants = False
        self.cache_variant = b""
        self.context: Sequence[bytes] = ()
        self.members = members
        self.prompts: int = 1
        self.repeated_bytes: int = 0
        self.items: int = 1
        self.is_passthrough = False
        self.dialect = _CHAT_DIALECT
        self.held: HeldResponse | None = None
        self.passes_stream = False
        self.files: FormFiles | None = None
        self.method = "POST"
        self.target: str | None = None
        self.resumable: bool | None = None
        self.bounds: TextBounds | None = None
        self.cache_salt: str | None = None
        self.parameters: dict[str, int | float] | None = None
        self.removed: tuple[str, ...] = ()
        self.runs_on = self.is_unstored = False
        self.route: RouteDecision | None = None
        self.adapter: LoraAdapter | None = None

    def bind(self, entry: ModelEntry, body: bytes) -> None:
        """Makes this a request for a model, whose engine gets `body`."""
        self.entry = entry
        self.model_key = self.cache_key = entry.key
        self.model = entry.model
        self.body = body
        if self.members is not None:
            self.removed = removed_fields(self.members)
            self.members = None  # they refer to the body

    def set_cache_variant(self, digest: bytes) -> None:
        """Sets the digest of the fields that change the tokens of the prompt."""
        self.cache_variant = digest
        self.has_cache_variants = self.has_cache_variants or bool(digest)

    def set_adapter(self, adapter: LoraAdapter) -> None:
        self.adapter = adapter
        self.cache_key = f"{self.model_key}\0{adapter.name}\0{adapter.source}"

    @property
    def answers(self) -> int:
        return self.sequences * self.prompts

    @property
    def fields(self) -> CommonFields:
        """All fields of the body. Most requests need none of them, so they may be decoded here."""
        fields = self.decoded_fields
        if fields is None:
            fields = self.decoded_fields = scanned_fields(self)
            if self.parameters is not None:
                _set_fields(fields, self.parameters)
        return fields

    def set_parameters(self, parameters: dict[str, int | float]) -> None:
        """Records the fields that a route has set in the body."""
        self.parameters = parameters
        if self.decoded_fields is not None:
            _set_fields(self.decoded_fields, parameters)

    def take_back_usage(self) -> None:
        """Removes the request for a stream's token counts, which the gateway added."""
        fields = self.decoded_fields  # None: a scanned chat, which has no `stream_options`
        options = fields.stream_options if isinstance(fields, GenerationFields) else UNSET
        theirs = None if options is UNSET else bytes(options)
        self.body = rewrite_members(self.body, lambda name, value: theirs if name == "stream_options" else value)
        self.strip_usage = False

    def around_prompt(self) -> bytes:
        """Returns the client's body without its prompt, so that a search takes as long for any.

        Where it is unknown where the prompt lies, that is the whole body.
        """
        return self.client_body[: self.messages_start] + self.client_body[self.messages_end :]

    def messages(self) -> bytes:
        """Returns the JSON text of a chat's messages; empty for other requests."""
        if self.messages_end:
            return self.client_body[self.messages_start - 1 : self.messages_end + 1]
        return bytes(self.fields.messages) if isinstance(self.fields, ChatRequest) else b""

    def release_body(self) -> None:
        self.decoded_fields = None
        self.body = self.client_body = b""


def _set_fields(fields: CommonFields, parameters: Mapping[str, int | float]) -> None:
    for name, value in parameters.items():
        setattr(fields, name, value)


class ScanBounds:
    """The limits of the chats that a scanner may read.

    Why: the limits are not compiled, and each of them that is read costs 250 instructions.
    """

    __slots__ = ("max_bytes", "max_tokens")

    def __init__(self, limits: Limits) -> None:
        is_deep_enough = limits.json_depth >= _PLAIN_MESSAGES_DEPTH
        self.max_bytes = min(limits.json_values, 2 * limits.json_containers) if is_deep_enough else -1
        self.max_tokens = limits.max_tokens


def parse_body(
    kind: type[CommonFields], body: bytes, limits: Limits, scan_bounds: ScanBounds | None = None
) -> ModelRequest:
    """Parses a body as `kind`. Raises BadRequest, which names the field.

    scan_bounds: those of the limits, if they are known.
    """
    scan = _SCAN_CHAT if kind is _CHAT else _SCANS.get(kind)
    if scan is not None:
        parsed = parse_scanned(scan, kind, body, ScanBounds(limits) if scan_bounds is None else scan_bounds)
        if parsed is not None:
            return parsed
    if kind is _CHAT:
        parsed = _parse_chat_fast(body, limits)
        if parsed is not None and not special_parts(body):
            return parsed
        fields = decode_body(kind, body, limits)
        parsed = _parsed_chat(fields, body, None if fields.is_listed else _DECODE_MEMBERS(body), None)
    else:
        fields = decode_body(kind, body, limits)
        parsed = parsed_body(fields, body)
    parts = special_parts(body)
    if parts:
        parsed.members = (_DECODE_MEMBERS(body) if parsed.members is None else parsed.members) | parts
    if parsed.members is not None:
        check_costly_fields(parsed.members, limits)
    parsed.set_cache_variant(_cache_variant(parsed, fields))
    parsed.context = _context_texts(fields, parsed.members, body)
    if isinstance(fields, CompletionRequest):
        parsed.prompts = _item_count(fields.prompt)
        parsed.repeated_bytes = sum([len(text) for text in parsed.context]) * (parsed.prompts - 1)
    elif isinstance(fields, GenericRequest) and parsed.members is not None:
        lists = [parsed.members[name] for name in _ITEM_FIELDS if name in parsed.members]
        parsed.items = max([1, *[_item_count(raw, of_lists=False) for raw in lists]])
        parsed.repeated_bytes = repeated_bytes(fields, parsed.members)
    return parsed


def parse_scanned(scan: ChatScan, kind: type[CommonFields], body: bytes, bounds: ScanBounds) -> ModelRequest | None:
    """Parses a body as `kind` with a scanner; returns None if it must be parsed in another way.

    The scanner accepts only fields that are listed as safe. Of these, only the context changes the
    prompt. The scanner bounds the depth of the messages, and the other fields are texts, numbers
    and the like.
    """
    if len(body) > bounds.max_bytes:
        return None
    found = scan(body, bounds.max_tokens)
    if found is None:
        return None
    model, session_id, user, max_tokens, stream, messages_start, messages_end, context_start, context_end = found
    parsed = ModelRequest(None, body, model, session_id or user, max_tokens, stream=stream)
    parsed.has_session_id = bool(session_id)
    parsed.messages_start, parsed.messages_end = messages_start, messages_end
    if kind is not _CHAT:
        parsed.dialect = _BY_TYPE[kind]
        if context_end:
            parsed.context = (body[context_start:context_end],)
    return parsed


def scanned_fields(request: ModelRequest) -> CommonFields:
    """Returns the fields of a body that a scanner accepted, without its prompt."""
    body, start, end = request.client_body, request.messages_start, request.messages_end
    decode = (
        _DECODE_LISTED_CHAT if request.dialect is _CHAT_DIALECT else LISTED_DECODERS[request.dialect.body_type].decode
    )
    fields: CommonFields = decode(body[: start - 1] + b"0" + body[end + 1 :])
    return fields


def parsed_body(fields: CommonFields, body: bytes) -> ModelRequest:
    """Returns the parsed body for checked fields of anything but a chat.

    body: empty if the request has none.
    """
    members = None if not body or (fields.is_listed and not _has_token_prompt(fields)) else _DECODE_MEMBERS(body)
    session = fields.session_id or fields.prompt_cache_key
    parsed = ModelRequest(fields, body, fields.model, session or _user(fields), members=members)
    parsed.has_session_id = bool(session)
    parsed.has_cache_variants = bool(fields.cache_salt)
    if isinstance(fields, GenericRequest):
        parsed.is_passthrough = True
        parsed.dialect = _OTHER
        return parsed
    dialect = parsed.dialect = _dialect_of(fields)
    if not isinstance(fields, GenerationFields):
        return parsed
    parsed.stream = bool(fields.stream)
    parsed.max_tokens = getattr(fields, dialect.output_limit)
    if isinstance(fields, ResponsesRequest):
        parsed.has_cache_variants = parsed.has_cache_variants or bool(fields.previous_response_id)
    if dialect.grammar is not None:
        return parsed
    parsed.has_cache_variants = (
        parsed.has_cache_variants or fields.response_format is not _UNSET or reads_no_cache(fields)
    )
    best_of = fields.best_of if isinstance(fields, CompletionRequest) else None
    parsed.sequences = max(1, fields.n or 1, best_of or 1)
    return parsed


def parsed_checked_body(fields: CommonFields, body: bytes, members: dict[str, Raw] | None) -> ModelRequest:
    """Returns the parsed body for checked fields of any kind, chats too; `members` as there."""
    parsed = _parsed_chat(fields, body, None, None) if isinstance(fields, _CHAT) else parsed_body(fields, b"")
    parsed.body = parsed.client_body = body
    parsed.members = members
    return parsed


def _has_token_prompt(fields: CommonFields) -> bool:
    """Whether the prompt is a list of token ids, which `field_policy` judges."""
    if isinstance(fields, CompletionRequest):
        return has_token_ids(fields.prompt)
    return isinstance(fields, EmbeddingRequest) and has_token_ids(fields.input)


def reads_no_cache(fields: CommonFields) -> bool:
    """Whether engines compute the whole prompt, whatever is cached: for its log probabilities."""
    if not isinstance(fields, GenerationFields):
        return False
    is_echoed = isinstance(fields, CompletionRequest) and bool(fields.echo) and fields.logprobs is not None
    return is_echoed or fields.prompt_logprobs is not None


def _cache_variant(parsed: ModelRequest, fields: CommonFields) -> bytes:
    """Returns the digest of the fields in `_CACHE_FIELDS`; empty without one."""
    members = parsed.members
    found: list[bytes] = []
    for name in _CACHE_FIELDS if members is not None else _LISTED_CACHE_FIELDS.get(type(fields), ()):
        raw = getattr(fields, name, _UNSET) if members is None else members.get(name, _UNSET)
        if raw is not _UNSET:
            found += (name.encode(), xxhash.xxh3_128_digest(raw))
    return xxhash.xxh3_128_digest(b"".join(found)) if found else b""


def _parse_chat_fast(body: bytes, limits: Limits) -> ModelRequest | None:
    """Parses a chat whose messages hold only known fields.

    Returns None if it must be parsed in the general way. Raises BadRequest if a value is out of
    range or the body is nested too deep.

    Why the cut is right: an array ends only once, so both parts are complete. The key before it
    occurs only once, in whatever spelling. Types bound the depth of the messages.
    """
    size = len(body)
    key_start = body.find(_MESSAGES_KEY)
    start = key_start + 11  # behind the key and a colon; anything else there makes the rest invalid
    end = body.rfind(b'"}]') + 3
    if key_start < 0 or end <= start + 1 or size > limits.json_values or size > 2 * limits.json_containers:
        return None
    if body[start] == _SPACE:
        start += 1
    if body[start] != _OPENING:
        return None
    if body[end : end + 2] == b"}]":  # the last message's text is in parts
        end += 2
    rest = body[:start] + b"0" + body[end:]
    if rest.count(_MESSAGES_KEY) != 1 or (_ESCAPE in rest and rest.find(rb"\u") >= 0):
        return None
    try:
        if not rest.isascii():  # the decoder of the messages finds what is not UTF-8 in them
            str(rest, "utf-8")
        members: dict[str, Raw] | None = None
        try:
            fields = _DECODE_LISTED_CHAT(rest)
        except msgspec.ValidationError:
            fields, members = _DECODE_CHAT(rest), _DECODE_MEMBERS(rest)
        if not _DECODE_PLAIN_MESSAGES(
            body[start:end] if end - start <= _MAX_COPIED_BYTES else memoryview(body)[start:end]
        ):
            return None
    except _DECODE_ERRORS:
        return None
    if limits.json_depth < _PLAIN_MESSAGES_DEPTH:
        return None
    check_depth(rest, limits)
    if members is not None:
        check_costly_fields(members, limits)
    parsed = _parsed_chat(fields, body, members, limits)
    parsed.messages_start, parsed.messages_end = start + 1, end - 1
    if members is not None or fields.reasoning_effort is not _UNSET:  # the one of `_CACHE_FIELDS` that is listed
        parsed.set_cache_variant(_cache_variant(parsed, fields))
    if members is not None or fields.tools is not _UNSET or fields.functions is not _UNSET:
        parsed.context = _context_texts(fields, members, body)
    return parsed


def _context_texts(fields: CommonFields, members: dict[str, Raw] | None, body: bytes) -> list[bytes]:
    """Returns the texts that engines put into a prompt besides it, as JSON, in their order.

    Why: a caller would else send a prompt of any size as a tool, and it would count as nothing.

    members: as in `ModelRequest`.
    """
    if isinstance(fields, CompletionRequest):
        return [bytes((_DECODE_MEMBERS(body) if members is None else members)["suffix"])] if fields.suffix else []
    prompt = None if isinstance(fields, GenericRequest) else _dialect_of(fields).prompt
    texts: list[bytes] = []
    for name in () if prompt is None else prompt.context:
        raw = getattr(fields, name, _UNSET) if members is None else members.get(name, _UNSET)
        if raw is not _UNSET and bytes(raw) not in _NO_CONTEXT:
            texts.append(bytes(raw))
    return texts


def _dialect_of(fields: CommonFields) -> Dialect:
    """Returns the dialect of fields that are routed by their prompt."""
    kind = type(fields)
    found = _BY_TYPE.get(kind)
    return _BY_TYPE[kind.__mro__[1]] if found is None else found  # a listed kind is below its own


def _user(fields: CommonFields) -> str | None:
    """Returns the client's name for a user, which may have many conversations; None without one."""
    if isinstance(fields, MessagesRequest) and fields.metadata is not _UNSET:
        try:
            metadata: MessagesMetadata = _DECODE_METADATA(fields.metadata)
        except msgspec.MsgspecError:
            return None
        return metadata.user_id
    return fields.user or fields.safety_identifier


def repeated_bytes(fields: GenericRequest, members: dict[str, Raw]) -> int:
    """Returns the bytes that an engine computes again for each item of a list after the first.

    They are the query of a ranking, or the tools of a batch of chats.

    Why: 100 documents of a letter would else hide a query of megabytes.

    members: as in `ModelRequest`.
    """
    if fields.messages is not _UNSET:
        conversations = _item_count(fields.messages)
        tools = sum([len(bytes(members[name])) for name in _CHAT_CONTEXT if name in members])
        return tools * (conversations - 1)
    found = [members[name] for name in _RANKED_FIELDS if name in members]
    if len(found) < 2:
        return 0
    counts = [_item_count(raw, of_lists=False) for raw in found]
    most = max(counts)
    single = sum([len(bytes(raw)) for raw, count in zip(found, counts, strict=True) if count == 1])
    return single * (most - 1)


def _item_count(raw: Raw, *, of_lists: bool = True) -> int:
    """Returns the number of items of a list; 1 for anything else.

    of_lists: items are lists or texts, as conversations and prompts; a list of others is one item.
    """
    text = bytes(raw)
    if text[:1] == b"{" and not of_lists:  # documents with their parts in `content`
        text = bytes(_DECODE_MEMBERS(text).get("content", b""))
    if text[:1] != b"[" or (of_lists and _SEVERAL_TEXTS.match(text) is None):
        return 1  # one text, or millions of token ids of one prompt
    return max(1, len(ITEMS_DECODER.decode(text)))


def _parsed_chat(
    fields: CommonFields, body: bytes, members: dict[str, Raw] | None, limits: Limits | None
) -> ModelRequest:
    """Like `parsed_body` for a chat, from all of its fields at once.

    members: as in `ModelRequest`.
    limits: limits for the check of the fields (rare ones only if set). None: the fields are
        already checked.
    """
    values = _AS_TUPLE(fields)
    has_rare_fields = values[_RARE_START:_RARE_END] != _NO_RARE_FIELDS
    max_tokens: int | None = values[_MAX_TOKENS]
    if (
        limits is not None
        and (has_rare_fields or (max_tokens is not None and not 1 <= max_tokens <= limits.max_tokens))
        and isinstance(fields, GenerationFields)
    ):
        check_generation(fields, limits)
    has_cache_variants = bool(values[_SALT])
    sequences = 1
    if has_rare_fields:
        sequences = max(1, values[_RARE_START] or 1)  # the field `n`
        has_cache_variants = (
            has_cache_variants
            or values[_FORMAT] is not _UNSET
            or values[_TOOLS] is not _UNSET
            or values[_PROMPT_LOGPROBS] is not None
        )
        max_completion_tokens: int | None = values[_MAX_COMPLETION_TOKENS]
        max_tokens = max_tokens if max_completion_tokens is None else max_completion_tokens
    parsed = ModelRequest(
        fields,
        body,
        values[_MODEL],
        values[_SESSION] or values[_CACHE_KEY] or values[_USER] or values[_SAFETY],
        max_tokens,
        stream=bool(values[_STREAM]),
        members=members,
    )
    parsed.has_cache_variants = has_cache_variants
    parsed.has_session_id = bool(values[_SESSION] or values[_CACHE_KEY])
    parsed.sequences = sequences
    return parsed
