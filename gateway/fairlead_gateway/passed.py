"""Room 2, for paths under ``/v1`` that Fairlead knows nothing of: they go to an engine of the model that the request names.

What the engine answers is the client's, a stream included; what it does not serve is a 404. The request still has to be safe: a JSON
object that names the model (or ``?model=`` where there is no body), hand-off fields cut out, counts in range, and a path made of
plain characters, since it is written into the engine's request line. What changes an engine for everybody is not passed on.
"""

import re
from urllib.parse import parse_qsl, urlencode

import msgspec

from fairlead.fleet import Fleet
from fairlead.limits import Limits
from fairlead_gateway.body import parse
from fairlead_gateway.errors import BadRequest, BodyType, UnknownPath
from fairlead_gateway.fields import Other
from fairlead_gateway.handoff import FIELDS, without_handoff
from fairlead_gateway.head import Head
from fairlead_gateway.model import Ask, find
from fairlead_gateway.splice import splice
from fairlead_gateway.usual import beside

METHODS = ("GET", "POST")
_PLAIN = re.compile(r"/v1(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._~:@-]+)+")
_CHANGES_ENGINES = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
_QUERY_FIELDS = 50
_HINT = "other paths under /v1 go to the engine of the model that the JSON body, or ?model=, names"


def passes(path: str) -> bool:
    """Whether a path that is not served here may be an engine's."""
    return _PLAIN.fullmatch(path) is not None and path not in _CHANGES_ENGINES


def passed_on(head: Head, body: bytes, fleet: Fleet, limits: Limits) -> Ask:
    """The request as an engine gets it. Raises UnknownPath when it names no model."""
    query = _query(head.query)
    if head.method == "GET" or not body:
        named = next((value for name, value in query if name == "model"), None)
        if named is None:
            raise UnknownPath("nothing is served under this path", hint=_HINT)
        parsed, body = Other(model=named), b""
    else:
        parsed = _parsed(head, body, limits)
        body = without_handoff(body)
    model = find(parsed.model, fleet)
    if body and parsed.model != model.name:
        body = splice(body, {"model": msgspec.json.encode(model.name)})
    kept = [(name, model.name if name == "model" else value) for name, value in query if name not in FIELDS]
    target = f"{head.path}?{urlencode(kept)}" if kept else head.path
    return Ask(beside(parsed), model.key, model, body, method=head.method, target=target)


def _parsed(head: Head, body: bytes, limits: Limits) -> Other:
    kind = (head.get(b"content-type") or b"application/json").partition(b";")[0].strip().lower()
    if kind != b"application/json" and not kind.endswith(b"+json"):
        raise BodyType("only JSON bodies are passed on to engines", param="content-type", hint=_HINT)
    try:
        found = parse(Other, body, limits)
    except BadRequest as error:
        if error.param == "model" and error.code == "missing_field":
            raise UnknownPath("nothing is served under this path", hint=_HINT) from None
        raise
    assert isinstance(found, Other)
    return found


def _query(raw: bytes) -> list[tuple[str, str]]:
    try:
        text = raw.decode("ascii")
        return parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_QUERY_FIELDS)
    except ValueError:
        raise BadRequest("the query is malformed or has too many fields", param="query") from None
