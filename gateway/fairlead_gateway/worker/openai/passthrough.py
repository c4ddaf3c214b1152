"""Parses requests for paths under `/v1` that Fairlead does not know; an engine of their model
answers them.

Whatever the engine answers goes to the client, also streams; 404 if it does not serve the path.
Of two of them, `OUTPUT_LIMITS`, the token counts are read as they pass. Such a request must still
be safe:

- It names a model, in a JSON object or, without a body, as `?model=`.
- Its fields pass `field_policy`, and counts are in range.
- The path has plain characters only, since it becomes a part of the engine's request line.
- The path is one of the engine's API for single requests, with POST; of an API that others run, one
  whose tokens are counted. Or `engine.allowedPaths` of the model names it.

Why: an engine may be a hosted provider, or a gateway, and the request carries the operator's token.
Files, batches, stored responses and administration are then those of the whole account. Paths that
change an engine for all clients are never passed on.
"""

import re
from collections.abc import Callable
from functools import cache, partial
from urllib.parse import parse_qsl, urlencode

from fairlead.fleet.model import EXTERNAL_API, Fleet, RequestPolicy
from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest, UnknownPath, UnsupportedBodyType
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.worker.openai.body_parser import ParsedBody, parse_body, parsed_body
from fairlead_gateway.worker.openai.field_policy import REMOVED_FIELDS, apply_field_policy, engine_tables
from fairlead_gateway.worker.openai.json_edit import set_members
from fairlead_gateway.worker.openai.model_names import ModelEntry, resolve_model_entry
from fairlead_gateway.worker.openai.request import ModelRequest
from fairlead_gateway.worker.openai.schemas import CommonFields, GenericRequest

BodyParser = Callable[[type[CommonFields], bytes], ParsedBody]
PASSTHROUGH_METHODS = ("GET", "POST")
_PLAIN_PATH = re.compile(r"/v1(?!/v1(?:/|$))(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~:@-]+)+")
_ENGINE_ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_COMMON_PATHS = frozenset(
    {
        *("/v1/tokenize", "/v1/detokenize", "/v1/moderations"),
        *("/v1/audio/speech", "/v1/audio/transcriptions", "/v1/audio/translations"),
        *("/v1/images/generations", "/v1/images/edits", "/v1/images/variations"),
    }
)
OUTPUT_LIMITS = {"/v1/messages": "max_tokens", "/v1/responses": "max_output_tokens"}
"""The paths whose tokens are counted though they are passed on, with the field that bounds the
output there.
"""
TOKENIZING_PATHS = frozenset(
    {"/v1/messages/count_tokens", "/tokenize", "/detokenize", "/v1/tokenize", "/v1/detokenize"}
)
"""The paths on which a model computes nothing, so that they use no tokens."""
_MAX_QUERY_FIELDS = 50
_CLOSED_HINT = "the operator of the model opens paths with engine.allowedPaths"
_HINT = "other paths under /v1 go to the engine of the model that the JSON body, or ?model=, names"


def is_passthrough_path(path: str) -> bool:
    """Whether an engine may serve a path that the gateway does not know."""
    return _PLAIN_PATH.fullmatch(path) is not None and path not in _ENGINE_ADMIN_PATHS


@cache
def open_paths(engines: frozenset[str]) -> frozenset[str]:
    """Returns the paths that clients of these engine types may use; of all types if empty.

    Of an API that others run, these are the paths whose tokens are counted.
    """
    if EXTERNAL_API in engines:
        return frozenset(OUTPUT_LIMITS)
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
    return build_passthrough_request(head, body, fleet, partial(parse_body, limits=limits), names)


def build_passthrough_request(
    head: RequestHead, body: bytes, fleet: Fleet, parse: BodyParser, names: dict[str, ModelEntry] | None = None
) -> ModelRequest:
    """Like `parse_passthrough_request`; `parse` parses the body with the same limits."""
    parsed, body = parse_passthrough(head, body, parse)
    return build_entry_passthrough(head, parsed, body, resolve_model_entry(parsed.model, fleet, names))


def parse_passthrough(head: RequestHead, body: bytes, parse: BodyParser) -> tuple[ParsedBody, bytes]:
    """Returns what a request names, and its body, which is empty with GET.

    Raises UnknownPath if the request names no model.
    """
    query = _parse_query(head.query)
    if head.method == "GET" or not body:
        model_name = next((value for name, value in query if name == "model"), None)
        if model_name is None:
            raise UnknownPath("nothing is served under this path", hint=_HINT)
        return parsed_body(GenericRequest(model=model_name), b""), b""
    return _parse_json_body(head, body, parse), body


def build_entry_passthrough(head: RequestHead, parsed: ParsedBody, body: bytes, entry: ModelEntry) -> ModelRequest:
    """Returns the request for a model or an adapter as its engine gets it.

    Raises UnknownPath for a path that is not open to clients of the model.
    """
    query, model, client_body = _parse_query(head.query), entry.model, body
    _check_path(head, model.requests)
    body = apply_field_policy(body, parsed.members, head.path, model)
    if body and parsed.model != entry.name:
        body = set_members(body, {"model": entry.name_text})
    passed_query = [
        (name, entry.name if name == "model" else value) for name, value in query if name not in REMOVED_FIELDS
    ]
    target = f"{head.path}?{urlencode(passed_query)}" if passed_query else head.path
    request = ModelRequest(parsed, entry, body, client_body=client_body, method=head.method, target=target)
    _set_answer(request, head, parsed.decoded_fields)
    if entry.adapter is not None:
        request.set_adapter(entry.adapter)
    return request


def _set_answer(request: ModelRequest, head: RequestHead, fields: CommonFields | None) -> None:
    """Sets what is known of the answer: whether it is a stream, counted, and bounded."""
    if head.method != "POST" or not isinstance(fields, GenericRequest):
        return
    request.passes_stream = bool(fields.stream)
    output_limit = OUTPUT_LIMITS.get(head.path)
    if output_limit is not None:
        request.is_counted = True
        request.max_tokens = getattr(fields, output_limit)


def _parse_json_body(head: RequestHead, body: bytes, parse: BodyParser) -> ParsedBody:
    content_type = (head.get(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    if content_type != b"application/json" and not content_type.endswith(b"+json"):
        raise UnsupportedBodyType("only JSON bodies are forwarded to engines", param="content-type", hint=_HINT)
    try:
        return parse(GenericRequest, body)
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
