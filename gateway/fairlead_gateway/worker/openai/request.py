"""From a client's body to its model, and to the body that an engine gets.

A client writes `namespace/name`, or the bare name if it is unique; an engine knows the bare name
only. Two more changes are made to a body. The usage of a stream is requested, since engines send it
on request only. `field_policy` removes fields, or refuses the request.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import UNSET

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Fleet, Model
from fairlead.limits import Limits
from fairlead.routes.resolution import RouteDecision
from fairlead_gateway.worker.openai.body_parser import ParsedBody, ScanBounds, chat_fields, parse_body
from fairlead_gateway.worker.openai.field_policy import apply_field_policy, check_external_path, removed_fields
from fairlead_gateway.worker.openai.json_edit import (
    prepend_members,
    replace_first_member,
    replace_scanned_text,
    rewrite_members,
    set_members,
)
from fairlead_gateway.worker.openai.model_names import ModelEntry, resolve_model_entry
from fairlead_gateway.worker.openai.schemas import (
    ChatRequest,
    CommonFields,
    CompletionRequest,
    EmbeddingRequest,
    GenerationFields,
    GenericRequest,
)
from fairlead_gateway.worker.openai.validation import decode_stream_options

_MODEL_STARTS: Final = (b'{"model":"', b'{"model": "')
_MODEL_KEY: Final = b'"model"'
_WITH_USAGE: Final = set_members(b"{}", {"include_usage": b"true"})

BODY_TYPES: Final[dict[str, type[CommonFields]]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    **dict.fromkeys(("/tokenize", "/detokenize"), GenericRequest),
    **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), GenericRequest),
    **dict.fromkeys(("/score", "/v1/score", "/classify", "/v1/classify"), GenericRequest),
}


class ModelRequest:
    """A parsed request for a model.

    body, client_body: as sent to the engine, and as received.
    cache_key: what engines cache under: the model, and the adapter if there is one.
    decoded_fields, has_session_id: as in `ParsedBody`.
    strip_usage: the client did not ask for the usage of the stream.
    method, target: of the request to the engine; target None: the client's path.
    is_passthrough: the gateway reads neither prompt nor response.
    is_counted: the gateway reads the token counts of the response.
    passes_stream: the client asked for a stream that is passed on.
    max_tokens: the client's limit of the response.
    sequences: answers that an engine computes for the prompt.
    bounds: of its tokens by its bytes; None if nothing has looked for them yet.
    context: as in `ParsedBody`, until the prompt is hashed.
    prompts, repeated_bytes: as in `ParsedBody`.
    resumable: whether `can_resume`; None if that was not computed when the body was parsed.
    cache_salt: the salt of the tenant's cache scope; None without one.
    parameters: the fields that a route has set in the body; None if it has set none.
    route: how a route chose the model; None if the client named the model itself.
    adapter: the LoRA adapter that the client named; `model` is its base then.
    removed: the fields of the client that no engine gets.

    Why 7 parameters: body, model and what differs by path; the rest comes with `parsed`.
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
        "entry",
        "has_cache_variants",
        "has_session_id",
        "is_counted",
        "is_passthrough",
        "max_tokens",
        "messages_end",
        "messages_start",
        "method",
        "model",
        "model_key",
        "parameters",
        "passes_stream",
        "prompts",
        "removed",
        "repeated_bytes",
        "resumable",
        "route",
        "sequences",
        "session",
        "stream",
        "strip_usage",
        "target",
    )

    def __init__(
        self,
        parsed: ParsedBody,
        entry: ModelEntry,
        body: bytes,
        *,
        client_body: bytes = b"",
        strip_usage: bool = False,
        method: str = "POST",
        target: str | None = None,
    ) -> None:
        self.decoded_fields = parsed.decoded_fields
        self.entry = entry
        self.model_key: str = entry.key
        self.model: Model = entry.model
        self.body = body
        self.client_body = client_body
        self.messages_start: int = parsed.messages_start
        self.messages_end: int = parsed.messages_end
        self.stream: bool = parsed.stream
        self.strip_usage = strip_usage
        self.max_tokens = parsed.max_tokens
        self.session = parsed.session
        self.has_session_id: bool = parsed.has_session_id
        self.sequences: int = parsed.sequences
        self.has_cache_variants: bool = parsed.has_cache_variants
        self.cache_variant: bytes = parsed.cache_variant
        self.context: Sequence[bytes] = parsed.context
        self.prompts: int = parsed.prompts
        self.repeated_bytes: int = parsed.repeated_bytes
        self.is_passthrough: bool = parsed.is_passthrough
        self.is_counted = not self.is_passthrough
        self.passes_stream = False
        self.method = method
        self.target = target
        self.resumable: bool | None = None
        self.bounds = parsed.bounds
        self.cache_salt: str | None = None
        self.parameters: dict[str, int | float] | None = None
        self.removed: tuple[str, ...] = () if parsed.members is None else removed_fields(parsed.members)
        self.route: RouteDecision | None = None
        self.adapter: LoraAdapter | None = None
        self.cache_key: str = entry.key

    def set_adapter(self, adapter: LoraAdapter) -> None:
        """Makes this a request for an adapter, which shares no cached block with its base."""
        self.adapter = adapter
        self.cache_key = f"{self.model_key}\0{adapter.name}\0{adapter.source}"

    @property
    def answers(self) -> int:
        """Returns how many answers an engine computes: `n` or `best_of`, for each prompt."""
        return self.sequences * self.prompts

    @property
    def fields(self) -> CommonFields:
        """All fields of the body. Most requests need none of them, so they may be decoded here."""
        fields = self.decoded_fields
        if fields is None:
            fields = self.decoded_fields = chat_fields(self.client_body, self.messages_start, self.messages_end)
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

    def messages(self) -> bytes:
        """Returns the JSON text of a chat's messages; empty for other requests."""
        if self.messages_end:
            return self.client_body[self.messages_start - 1 : self.messages_end + 1]
        return bytes(self.fields.messages) if isinstance(self.fields, ChatRequest) else b""

    def release_body(self) -> None:
        """Releases the body and its fields, once no other engine will need them."""
        self.decoded_fields = None
        self.body = self.client_body = b""


def _set_fields(fields: CommonFields, parameters: Mapping[str, int | float]) -> None:
    for name, value in parameters.items():
        setattr(fields, name, value)


def parse_request(
    path: str,
    body: bytes,
    fleet: Fleet,
    limits: Limits,
    names: dict[str, ModelEntry] | None = None,
    scan_bounds: ScanBounds | None = None,
) -> ModelRequest:
    """Parses a request for a model, and makes the body that its engine gets.

    names, scan_bounds: the fleet's `client_names` and those of the limits, if they are known.
    Raises BadRequest, which names the field, and UnknownModel, which names similar models.
    """
    parsed = parse_body(BODY_TYPES[path], body, limits, scan_bounds)
    return build_model_request(path, parsed, body, fleet, limits, names)


def build_model_request(
    path: str,
    parsed: ParsedBody,
    body: bytes,
    fleet: Fleet,
    limits: Limits,
    names: dict[str, ModelEntry] | None = None,
) -> ModelRequest:
    """Returns the request of a parsed body.

    Raises BadRequest for a field that clients may not set, and UnknownModel, which names similar
    models.
    """
    entry = resolve_model_entry(parsed.model, fleet, names)
    request = build_entry_request(path, parsed, body, entry, limits)
    if entry.adapter is not None:
        request.set_adapter(entry.adapter)
    return request


def build_entry_request(path: str, parsed: ParsedBody, body: bytes, entry: ModelEntry, limits: Limits) -> ModelRequest:
    """Returns the request of a parsed body for a model.

    Raises BadRequest for a field that clients may not set, and UnknownPath for a path of an
    external API whose tokens are not counted.
    """
    client_body = body
    if parsed.is_passthrough and entry.is_external:
        check_external_path(path, entry.rules)
    name = entry.name
    if parsed.members is not None or not entry.passes_unknown_fields:
        body = apply_field_policy(body, parsed.members, path, entry.model)
    if parsed.model == name and not parsed.stream:
        return ModelRequest(parsed, entry, body, client_body=client_body)
    changes: dict[str, bytes] = {}
    added: dict[str, bytes] = {}
    if parsed.model != name:
        is_scanned = parsed.decoded_fields is None  # then each field is there once
        renamed = replace_first_member(body, _MODEL_STARTS, entry.name_text, is_unique=is_scanned)
        if renamed is None and is_scanned and body is client_body:
            renamed = replace_scanned_text(body, _MODEL_KEY, entry.name_text, parsed.messages_end)
        if renamed is None:
            changes["model"] = entry.name_text
        else:
            body = renamed
            if not parsed.stream:
                return ModelRequest(parsed, entry, body, client_body=client_body)
    strip_usage = False
    fields = parsed.decoded_fields
    if fields is None:  # a scanned chat, which has no `stream_options`
        strip_usage = parsed.stream
        if strip_usage:
            added["stream_options"] = _WITH_USAGE
    elif parsed.stream and isinstance(fields, GenerationFields):
        options = decode_stream_options(fields, limits)
        # For `continuous_usage_stats` alone, vLLM counts nothing: it needs both.
        strip_usage = options is None or not options.include_usage
        if strip_usage:
            options_text = bytes(fields.stream_options) if options is not None and fields.stream_options else b"{}"
            options_with_usage = set_members(options_text, {"include_usage": b"true"})
            (added if fields.stream_options is UNSET else changes)["stream_options"] = options_with_usage
    body = set_members(body, changes) if changes else body
    return ModelRequest(
        parsed,
        entry,
        prepend_members(body, added) if added else body,
        client_body=client_body,
        strip_usage=strip_usage,
    )
