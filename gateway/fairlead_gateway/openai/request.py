"""From a client's body to its model, and to the body that an engine gets.

A client writes `namespace/name`, or the bare name if it is unique; an engine knows the bare name
only. Two more changes are made to a body. The usage of a stream is requested, since engines send it
on request only. `field_policy` removes fields, or refuses the request.

The prompt as routing sees it: hashes that tell where its KV may be cached.

They are made from the raw JSON text of the messages (or prompt, or input), as a chain of keyed
hashes. In place of pictures and other parts stand their digests. What else engines put into the
prompt comes before it, in the order of the table of dialects: instructions, tools, turns. The chain
starts from everything else that decides what an engine caches: model, cache salt, response format,
template and truncation. A prompt for whose log probabilities an engine computes all of it has a
chain of its own.

The deadline of a request: the client's own, and the longest time of a plain response.

`x-request-timeout` holds seconds (`2.5`) or a duration (`800ms`, `1m30s`), from the last byte of
the request. An engine gets what is left of it in the same header. A stream without the header has
no deadline, only stall timeouts.

Parses requests for paths under `/v1` that Fairlead does not know; an engine of their model
answers them.

Whatever the engine answers goes to the client, also streams; 404 if it does not serve the path.
Such a request must still be safe:

- It names a model, in a JSON object or, without a body, as `?model=`.
- Its fields pass `field_policy`, and counts are in range.
- The path has plain characters only, since it becomes a part of the engine's request line.
- The path is one of the engine's API for single requests, with POST; of an API that others run, one
  whose tokens are counted. Or `engine.allowedPaths` of the model names it.

Why: an engine may be a hosted provider, or a gateway, and the request carries the operator's token.
Files, batches, stored responses and administration are then those of the whole account. Paths that
change an engine for all clients are never passed on.
"""

import math
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import msgspec
import xxhash
from msgspec import UNSET

from fairlead.errors import BadInput
from fairlead.fleet.model import EXTERNAL_API, Fleet, RequestPolicy
from fairlead.limits import Limits
from fairlead.units import format_duration, parse_duration
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.passed_on import STORED_RESPONSE, GenericRequest
from fairlead_gateway.dialects.responses import ResponsesRequest
from fairlead_gateway.dialects.schemas import CommonFields, GenerationFields, StreamOptions, has_value
from fairlead_gateway.dialects.table import ROUTED, dialect_of
from fairlead_gateway.errors import NO_RETRY, BadRequest, EngineTimeout, GatewayError, UnknownPath, UnsupportedBodyType
from fairlead_gateway.http.request_parser import AGENT_HEADER, SESSION_HEADERS, RequestHead
from fairlead_gateway.openai.body_parser import (
    ModelRequest,
    ScanBounds,
    parse_body,
    parsed_body,
    reads_no_cache,
)
from fairlead_gateway.openai.field_policy import (
    REMOVED_FIELDS,
    apply_field_policy,
    check_external_path,
    engine_tables,
)
from fairlead_gateway.openai.form_body import FORM_TYPE, read_form
from fairlead_gateway.openai.json_edit import (
    is_any_enabled,
    prepend_members,
    replace_first_member,
    replace_scanned_text,
    set_members,
)
from fairlead_gateway.openai.model_names import ModelEntry, resolve_model_entry
from fairlead_gateway.openai.validation import decode_stream_options
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import (
    BYTES_PER_TOKEN,
    ChainStarts,
    MediaPart,
    find_media,
    hash_blocks,
    without_changing_text,
    without_media,
)

_MODEL_STARTS: Final = (b'{"model":"', b'{"model": "')
_MODEL_KEY: Final = b'"model"'
_WITH_USAGE: Final = set_members(b"{}", {"include_usage": b"true"})

_UNRESUMABLE_FIELDS: Final = (b'"continue_final_message"', b'"return_token_ids"', b'"use_beam_search"')
_CONTINUOUS_USAGE_KEY: Final = b"continuous_usage_stats"
_MAYBE_DETERMINISTIC: Final = re.compile(rb'"seed"|"temperature"(?!\s*:\s*-?(?:0\.0{0,9})?[1-9][0-9.]*[\s,}])')
"""A seed, or a temperature that is not surely other than 0, among the fields of a scanned chat."""

_NO_TOOLS: Final = (b"null", b"[]")
_MAX_CACHED_STARTS: Final = 1_024

_MAX_SESSION_CHARACTERS: Final = 256
# Why constants: compiled code reads those of its own module directly, and looks up others.
_SESSION_HEADERS: Final = SESSION_HEADERS
_AGENT_HEADER: Final = AGENT_HEADER
TIMEOUT_HEADER: Final = b"x-request-timeout"
_MAX_CHARACTERS = 32

BodyParser = Callable[[type[CommonFields], bytes], ModelRequest]
_METHODS: Final = ("GET", "POST")
_PLAIN_PATH = re.compile(r"/v1(?!/v1(?:/|$))(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~:@-]+)+")
_ENGINE_ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_COMMON_PATHS = frozenset(
    {
        *("/v1/tokenize", "/v1/detokenize", "/v1/moderations"),
        *("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations"),
        *("/v1/images/generations", "/v1/images/edits", "/v1/images/variations"),
    }
)
_MAX_QUERY_FIELDS = 50
_CLOSED_HINT = "the operator of the model opens paths with engine.allowedPaths"
_HINT = "other paths under /v1 go to the engine of the model that the JSON body, or ?model=, names"


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
    kind = dialect_of(path).body_type
    return bind_by_name(path, parse_body(kind, body, limits, scan_bounds), fleet, limits, names)


def bind_by_name(
    path: str, request: ModelRequest, fleet: Fleet, limits: Limits, names: dict[str, ModelEntry] | None = None
) -> ModelRequest:
    """Binds a parsed request to the model that it names, and returns it.

    Raises BadRequest for a field that clients may not set, and UnknownModel, which names similar
    models.
    """
    entry = None if names is None else names.get(request.model_name)
    if entry is None:
        entry = resolve_model_entry(request.model_name, fleet, names)
    bind_to_entry(path, request, entry, limits)
    if entry.adapter is not None:
        request.set_adapter(entry.adapter)
    return request


def bind_to_entry(path: str, request: ModelRequest, entry: ModelEntry, limits: Limits) -> None:
    """Binds a parsed request to a model, and makes the body that its engine gets.

    Raises BadRequest for a field that clients may not set, and UnknownPath for a path of an
    external API whose tokens are not counted.
    """
    body = client_body = request.client_body
    if request.is_passthrough:
        request.dialect = dialect_of(path)
        if entry.is_external:
            check_external_path(path, entry.rules)
    name = entry.name
    if request.members is not None or not entry.passes_unknown_fields:
        body = apply_field_policy(body, request.members, path, entry.model)
    if request.model_name == name and not request.stream:
        request.bind(entry, body)
        return
    changes: dict[str, bytes] = {}
    added: dict[str, bytes] = {}
    if request.model_name != name:
        is_scanned = request.decoded_fields is None  # then each field is there once
        renamed = replace_first_member(body, _MODEL_STARTS, entry.name_text, is_unique=is_scanned)
        if renamed is None and is_scanned and body is client_body:
            renamed = replace_scanned_text(body, _MODEL_KEY, entry.name_text, request.messages_end)
        if renamed is None:
            changes["model"] = entry.name_text
        else:
            body = renamed
            if not request.stream:
                request.bind(entry, body)
                return
    fields = request.decoded_fields
    if fields is None:  # a scanned body, which has no `stream_options`
        if request.stream and request.dialect.requests_usage:
            request.strip_usage = True
            added["stream_options"] = _WITH_USAGE
    elif request.stream and request.dialect.requests_usage and isinstance(fields, GenerationFields):
        given = fields.stream_options is not msgspec.UNSET
        options = decode_stream_options(fields, limits) if given else None
        # For `continuous_usage_stats` alone, vLLM counts nothing: it needs both.
        request.strip_usage = options is None or not options.include_usage
        if request.strip_usage:
            options_text = bytes(fields.stream_options) if options is not None and fields.stream_options else b"{}"
            options_with_usage = set_members(options_text, {"include_usage": b"true"})
            (added if fields.stream_options is UNSET else changes)["stream_options"] = options_with_usage
    body = set_members(body, changes) if changes else body
    request.bind(entry, prepend_members(body, added) if added else body)


def can_resume(request: ModelRequest) -> bool:
    """Whether another instance can resume the stream of this request."""
    if request.resumable is not None:
        return request.resumable
    if not request.stream or request.dialect.grammar is not None or not _may_be_deterministic(request):
        return False
    fields = request.fields
    if not isinstance(fields, GenerationFields):
        return False
    is_deterministic = fields.temperature == 0 or fields.seed is not None
    is_single = (fields.n or 1) == 1
    is_plain = not has_value(fields.stop) and not fields.min_tokens and not has_value(fields.logit_bias)
    has_no_penalty = (
        not fields.frequency_penalty and not fields.presence_penalty and fields.repetition_penalty in (None, 1)
    )
    has_no_grammar = not has_value(fields.response_format) and not has_value(fields.structured_outputs)
    if not (
        is_deterministic
        and is_single
        and is_plain
        and has_no_penalty
        and has_no_grammar
        and fields.prompt_logprobs is None
    ):
        return False
    if is_any_enabled(_UNRESUMABLE_FIELDS, request.body) or _has_continuous_usage(fields):
        return False
    if isinstance(fields, ChatRequest):
        return not has_value(fields.tools) and not fields.logprobs
    if isinstance(fields, CompletionRequest):
        is_text = (
            bytes(memoryview(fields.prompt)[:1]) == b'"'
            and not fields.echo
            and not fields.suffix
            and fields.logprobs is None
        )
        return is_text and (fields.best_of or 1) == 1
    return False


def _may_be_deterministic(request: ModelRequest) -> bool:
    """Whether a scanned chat may have a seed or the temperature 0; True for other requests.

    Why: each stream asks, and most have neither. To decode the fields costs more than to search.
    """
    if request.decoded_fields is not None or request.parameters is not None:
        return True
    search, body = _MAYBE_DETERMINISTIC.search, request.client_body
    return search(body, 0, request.messages_start) is not None or search(body, request.messages_end) is not None


def _has_continuous_usage(fields: GenerationFields) -> bool:
    options = b"" if fields.stream_options is msgspec.UNSET else bytes(fields.stream_options)
    if _CONTINUOUS_USAGE_KEY not in options:
        return False
    return bool(msgspec.json.decode(options, type=StreamOptions).continuous_usage_stats)


class CacheScope:
    """The requests that share cached blocks with one another, and with no others.

    salt: the cache salt that all of them have.
    """

    __slots__ = ("_starts", "salt")

    def __init__(self, salt: str) -> None:
        self.salt = salt
        self._starts: dict[str, Any] = {}

    def chain_start(self, model_key: str, chain_starts: ChainStarts) -> Any:
        """Returns the start of the scope's prefix hashes that only the model decides."""
        start = self._starts.get(model_key)
        if start is None:
            if len(self._starts) >= _MAX_CACHED_STARTS:
                self._starts.clear()
            start = self._starts[model_key] = chain_starts.of_seed(_joined([model_key.encode(), _salt_part(self.salt)]))
        return start


def session_name(request: ModelRequest, head: RequestHead) -> tuple[str | None, bool]:
    """Returns the client's name of a session, and whether it stands for one conversation alone.

    The first of these counts:

    1. the header `x-session-id`
    2. the headers of coding agents: `x-claude-code-session-id`; `thread-id`, `session-id` and
       `session_id` of Codex; `x-session-affinity`. An agent that another one has started counts by
       itself: `x-claude-code-agent-id` is a part of the name, and Codex gives it another
       `thread-id`.
    3. the field `session_id`
    4. the field `prompt_cache_key`
    5. what names a user: `metadata.user_id` of messages, `user`, `safety_identifier`

    A stored response that the request continues (`response_ids`) decides before all of them. Names
    of users stand for many conversations, and some clients send the same one with every request. So
    they never hold a request at an instance, and only the preset `session` uses them. A request
    without a name is recognised by its prefix.
    """
    value = head.first_rare(_SESSION_HEADERS)
    if value is not None:
        agent = head.get_rare(_AGENT_HEADER)
        return (value if agent is None else value + b" " + agent).decode("latin-1")[:_MAX_SESSION_CHARACTERS], True
    text = request.session
    return (text[:_MAX_SESSION_CHARACTERS], request.has_session_id) if text else (None, False)


def build_route_request(
    request: ModelRequest,
    head: RequestHead,
    request_id: str,
    chain_starts: ChainStarts,
    scope: CacheScope | None = None,
    tenant: str = "",
) -> RouteRequest:
    """Returns what routing needs: the prefix hashes, the size and the session of a request.

    Parts that are not text have their nominal tokens.

    scope: of the request's tenant; None if it shares caches with all others.
    tenant: its name; sessions of the same name are others for another tenant.
    """
    text, start, end = request.client_body, request.messages_start, request.messages_end
    if end == 0:
        text = prompt_text(request) if not request.is_passthrough else request.body or (request.target or "").encode()
        end = len(text)
    media: list[MediaPart] | None = None
    if request.decoded_fields is not None:  # else a scanned chat, which has text only
        media = find_media(text, start, end)
        if media:
            text = without_media(text, start, end, media)
            start, end = 0, len(text)
    if request.context:
        text = _with_context(request, text[start:end])
        start, end = 0, len(text)
    prompt = request.dialect.prompt
    if prompt is not None and prompt.without_marks is not None:
        text = prompt.without_marks(text[start:end])
        start, end = 0, len(text)
    if chain_starts.changing_text is not None:
        text = without_changing_text(chain_starts.changing_text, text[start:end])
        start, end = 0, len(text)
    if request.has_cache_variants:
        chain_start = chain_starts.of_seed(_chain_seed(request, request_id))
    elif scope is not None:
        chain_start = scope.chain_start(request.cache_key, chain_starts)
    else:
        chain_start = chain_starts.of_model(request.cache_key)
    chain = hash_blocks(text, chain_start, start=start, end=end)
    session, is_one_conversation = session_name(request, head)
    pinned_session = None
    if session is not None:
        if is_one_conversation:
            pinned_session = session_hash(session, request.cache_key, chain_starts.secret, tenant)
        session = tenant + session
    tokens = (end - start + request.repeated_bytes) / BYTES_PER_TOKEN
    # A float, as the field's type says: compiled, an integer there costs each use 300 instructions.
    max_tokens = None if request.max_tokens is None else float(request.max_tokens)
    route_request = RouteRequest(request_id, chain, tokens, max_tokens, session, pinned_session)
    route_request.sequences = request.answers
    if media:
        route_request.media = tuple(media)
        route_request.media_tokens = float(sum([part.nominal_tokens for part in media]))
    return route_request


def _with_context(request: ModelRequest, text: bytes) -> bytes:
    """Returns a prompt with the other texts that engines put into it, which are not needed then."""
    context, request.context = b"".join(request.context), ()
    prompt = request.dialect.prompt
    return context + text if prompt is None or prompt.is_context_first else text + context


def session_hash(session: str, key: str, secret: bytes, tenant: str = "") -> int:
    """Returns the hash of a conversation that gateways exchange; it reveals nothing without the
    secret.

    key: the model's.
    """
    return xxhash.xxh3_64_intdigest(session.encode(), xxhash.xxh3_64_intdigest(key.encode() + secret + tenant.encode()))


def prompt_text(request: ModelRequest) -> bytes:
    """Returns the text between the outermost brackets or quotes of the prompt."""
    prompt = request.dialect.prompt
    raw = None if prompt is None else getattr(request.fields, prompt.field)
    return bytes(memoryview(raw)[1:-1]) if isinstance(raw, msgspec.Raw) else b""


def _chain_seed(request: ModelRequest, request_id: str) -> bytes:
    """Returns the seed of the hash chain; equal seeds mean that equal prompts share cached blocks.

    The parts are hashed one by one, so that no part can look like another.
    """
    key = request.cache_key.encode()
    parts = [key]
    fields = request.fields
    salt = request.cache_salt or fields.cache_salt
    if salt:
        parts.append(_salt_part(salt))
    if isinstance(fields, ChatRequest) and fields.tools is not msgspec.UNSET and bytes(fields.tools) not in _NO_TOOLS:
        parts.append(b"tools" + bytes(fields.tools))
    if isinstance(fields, GenerationFields) and fields.response_format is not msgspec.UNSET:
        parts.append(b"format" + bytes(fields.response_format))
    if request.cache_variant:
        parts.append(b"fields" + request.cache_variant)
    if isinstance(fields, ResponsesRequest) and fields.previous_response_id:  # it stands for a part of the prompt
        parts.append(b"previous" + fields.previous_response_id.encode())
    if reads_no_cache(fields):
        parts.append(b"id" + request_id.encode())
    return key if len(parts) == 1 else _joined(parts)


def _salt_part(salt: str) -> bytes:
    return b"salt" + salt.encode()


def _joined(parts: list[bytes]) -> bytes:
    return b"".join([xxhash.xxh3_64_digest(part) for part in parts])


def client_timeout(head: RequestHead) -> float | None:
    """Returns the client's timeout in seconds; None without the header. Raises BadRequest."""
    value = head.get_rare(TIMEOUT_HEADER)
    if value is None:
        return None
    text = value.decode("latin-1")
    try:
        seconds = _parse_seconds(text) if len(text) <= _MAX_CHARACTERS else 0.0
    except (BadInput, ValueError):
        seconds = 0.0
    if not 0.0 < seconds < math.inf:
        name = TIMEOUT_HEADER.decode()
        raise BadRequest(
            f"{name}: a positive number of seconds or a duration is expected",
            param=name,
            code="invalid_value",
            hint="write it like 30, 2.5, 800ms or 1m30s",
        )
    return seconds


def total_timeout(head: RequestHead, stream: bool, limits: Limits) -> float | None:
    """Returns the seconds for the whole response; None for a stream without the header.

    Raises BadRequest.
    """
    seconds = client_timeout(head)
    if stream:
        return seconds
    return limits.response_seconds if seconds is None else min(seconds, limits.response_seconds)


def remaining_timeout_header(head: RequestHead, deadline: float | None, now: float) -> str:
    """Returns the header line with what is left of the client's timeout; empty without one."""
    if deadline is None or head.get_rare(TIMEOUT_HEADER) is None:
        return ""
    return f"{TIMEOUT_HEADER.decode()}: {max(0.001, deadline - now):.3f}\r\n"


def timeout_error(head: RequestHead, allowed_seconds: float) -> GatewayError:
    """Returns the error for a request that took too long."""
    if head.get_rare(TIMEOUT_HEADER) is not None:
        return EngineTimeout(
            f"no answer within the request's own deadline ({format_duration(allowed_seconds)})",
            code="deadline_exceeded",
            headers=(NO_RETRY,),
        )
    return EngineTimeout(f"the answer was not complete after {format_duration(allowed_seconds)}", code="answer_timeout")


def _parse_seconds(text: str) -> float:
    return float(text) if text[-1:].isdigit() or text[-1:] == "." else parse_duration(text)


def is_passthrough_path(path: str) -> bool:
    return _PLAIN_PATH.fullmatch(path) is not None and path not in _ENGINE_ADMIN_PATHS


def methods_of(path: str) -> tuple[str, ...]:
    return ("GET", "DELETE", "POST") if dialect_of(path) is STORED_RESPONSE else _METHODS


@cache
def open_paths(engines: frozenset[str]) -> frozenset[str]:
    """Returns the paths that clients of these engine types may use; of all types if empty.

    Of an API that others run, these are the paths whose tokens are counted.
    """
    if EXTERNAL_API in engines:
        return frozenset(path for dialect in ROUTED for path in dialect.paths)
    tables = [table for engine in engines or ("",) for table in engine_tables(engine)]
    return _COMMON_PATHS.union(*tables)


def _check_path(head: RequestHead, policy: RequestPolicy) -> None:
    """Raises UnknownPath unless clients of the model may use the path."""
    path = head.path
    if head.method == "POST" and path in open_paths(policy.engines):
        return
    for allowed in policy.allowed_paths:
        if path == allowed or (allowed.endswith("/*") and path.startswith(allowed[:-1])):
            return
    raise UnknownPath("this path is not open to clients of the model", hint=_CLOSED_HINT)


def parse_passthrough_request(
    head: RequestHead, body: bytes, fleet: Fleet, limits: Limits, names: dict[str, ModelEntry] | None = None
) -> ModelRequest:
    """Returns the request as an engine gets it.

    names: the fleet's `client_names`, if they are known.
    Raises UnknownPath if the request names no model, else as `parse_request`.
    """
    request = parse_passthrough(head, body, partial(parse_body, limits=limits))
    bind_passthrough(head, request, resolve_model_entry(request.model_name, fleet, names))
    return request


def parse_passthrough(head: RequestHead, body: bytes, parse: BodyParser) -> ModelRequest:
    """Returns what a request names; its body is empty with GET.

    Raises UnknownPath if the request names no model.
    """
    query = _parse_query(head.query)
    if head.method == "GET" or not body:
        model_name = next((value for name, value in query if name == "model"), None)
        if model_name is None:
            raise UnknownPath("nothing is served under this path", hint=_HINT)
        return parsed_body(GenericRequest(model=model_name), b"")
    return _parse_json_body(head, body, parse)


def bind_passthrough(head: RequestHead, request: ModelRequest, entry: ModelEntry) -> None:
    """Binds a parsed request to a model or an adapter, and makes what its engine gets.

    Raises UnknownPath for a path that is not open to clients of the model.
    """
    query, model = _parse_query(head.query), entry.model
    request.dialect = dialect_of(head.path)
    _check_path(head, model.requests)
    body = apply_field_policy(request.client_body, request.members, head.path, model)
    if body and request.model_name != entry.name:
        body = set_members(body, {"model": entry.name_text})
    request.bind(entry, body)
    request.method = head.method
    request.target = _target(head.path, query, entry)
    fields = request.decoded_fields
    request.passes_stream = head.method == "POST" and isinstance(fields, GenericRequest) and bool(fields.stream)
    if entry.adapter is not None:
        request.set_adapter(entry.adapter)


def add_query(head: RequestHead, request: ModelRequest) -> None:
    if request.dialect.grammar is not None:
        request.target = _target(head.path, _parse_query(head.query), request.entry)


def _target(path: str, query: list[tuple[str, str]], entry: ModelEntry) -> str:
    passed = [(name, entry.name if name == "model" else value) for name, value in query if name not in REMOVED_FIELDS]
    return f"{path}?{urlencode(passed)}" if passed else path


def _parse_json_body(head: RequestHead, body: bytes, parse: BodyParser) -> ModelRequest:
    content_type, files = (head.get(b"content-type") or b"application/json").partition(b";")[0].strip().lower(), None
    if content_type == FORM_TYPE:
        body, files = read_form(head.get(b"content-type") or b"", body)
    elif content_type != b"application/json" and not content_type.endswith(b"+json"):
        text = "only JSON bodies, and forms with files, are forwarded to engines"
        raise UnsupportedBodyType(text, param="content-type", hint=_HINT)
    try:
        request = parse(GenericRequest, body)
        request.files = files
        return request
    except BadRequest as error:
        if error.param == "model" and error.code == "missing_field":
            raise UnknownPath("nothing is served under this path", hint=_HINT) from None
        raise


def _parse_query(raw: bytes) -> list[tuple[str, str]]:
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise BadRequest("the query is malformed or has too many fields", param="query") from None
