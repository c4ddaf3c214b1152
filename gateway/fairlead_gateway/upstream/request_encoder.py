"""The encoding of requests to engines, and the selection of headers in both directions.

Of a client's headers, engines get those of `_ALLOWED_HEADERS`, a valid trace context, the hop
header (`hop_header`) and the ones that their model allows. Names in `Connection` do not pass. An
API that others run gets no header of a client at all.

Why a list of what may pass: engines run behind sidecars and proxies. Each of them has headers that
choose a host, a model or an account, and no list of those is complete.

The header that names the gateways which a request has passed; it ends loops.

An endpoint of a model may be a gateway, and by mistake the very gateway that forwards the request.
Every gateway adds its id to the requests that it sends. A request that shows the gateway's own id,
or more ids than `HOPS`, is refused.
"""

import hashlib
import math
import re
from datetime import UTC, datetime
from typing import Final

from fairlead_gateway.errors import NO_RETRY, BadRequest, GatewayLoop
from fairlead_gateway.http import trace_context
from fairlead_gateway.http.request_parser import RequestHead

_ALLOWED_HEADERS: Final = frozenset(
    b"accept accept-language user-agent openai-beta anthropic-version anthropic-beta x-session-id".split()
)
_USUAL_HEADERS: Final = frozenset(
    b"host content-length content-type content-encoding transfer-encoding connection keep-alive te trailer upgrade "
    b"proxy-connection expect accept-encoding authorization x-api-key cookie x-request-id x-request-timeout "
    b"traceparent tracestate origin referer cache-control pragma dnt priority forwarded via x-real-ip "
    b"idempotency-key".split()
)
"""Headers that clients and proxies send to every server. They do not pass, and are not recorded."""
_USUAL_PREFIXES: Final = (b"x-stainless-", b"x-forwarded-", b"sec-", b"x-fairlead-", b"access-control-")
_MAX_RECORDED_HEADERS: Final = 16
_NUMBER: Final = re.compile(rb"[+-]?\d+(?:\.\d*)?|\.\d+")
_DATE_FORMS: Final = ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y")
_MAX_DATE_CHARACTERS: Final = 40
_NO_NAMES: Final[frozenset[bytes]] = frozenset()
_CARRIAGE_RETURN: Final = ord("\r")  # a number is found faster than a byte, which is first tried as one
_LINE_FEED: Final = ord("\n")
_MAX_JOINED_BYTES: Final = 65_536
_MAX_CACHED: Final = 4_096
_THOUSANDTHS: Final[tuple[str, ...]] = tuple(f"{number:03d}" for number in range(1_000))
_NUMBERS: Final[tuple[str, ...]] = tuple(f"{number}" for number in range(1_000))
JSON_TYPE: Final = "application/json"
HOP_HEADER: Final[bytes] = b"x-fairlead-hops"
HOPS: Final = 4
"""Limit: gateways that a request may have passed before; 508."""
_HOP_LINE: Final[str] = f"{HOP_HEADER.decode()}: "
_EXTERNAL_HEADERS: Final = "accept: application/json, text/event-stream\r\nuser-agent: fairlead-gateway\r\n"
_RELAYED_HEADERS: Final[tuple[bytes, ...]] = (
    b"content-type",
    b"cache-control",
    b"endpoint-load-metrics",
    b"openai-processing-ms",
    b"warning",
)

_HOP_IDS: Final = re.compile(rb"[0-9a-f]{12}(?:[ \t]*,[ \t]*[0-9a-f]{12})*")


class RequestPrefix:
    """The start of a request: up to the value of Content-Length or, for GET, the line of Host."""

    __slots__ = ("has_body", "method", "target", "text")

    def __init__(self, method: str, target: str, text: str) -> None:
        self.method = method
        self.target = target
        self.text = text
        self.has_body = method != "GET"

    def of_form(self, boundary: str) -> "RequestPrefix":
        text = self.text.replace("application/json", f"multipart/form-data; boundary={boundary}")
        return RequestPrefix(self.method, self.target, text)


def request_prefix(method: str, target: str, url: str, hop_id: str) -> RequestPrefix:
    """Returns the start of a request for `target` at `url`.

    url: of an instance, or its `address`.
    hop_id: this gateway, for the hop header.
    """
    authority, _, base = url.partition("#")[0].partition("://")[2].partition("/")
    base = f"/{base}".rstrip("/") if base else ""
    framing = "content-type: application/json\r\ncontent-length: " if method != "GET" else ""
    return RequestPrefix(
        method, target, f"{method} {base}{target} HTTP/1.1\r\nhost: {authority}\r\n{_HOP_LINE}{hop_id}\r\n{framing}"
    )


def encode_request(
    prefix: RequestPrefix, head: RequestHead, body: bytes, request_id: str, *, dp_rank: int | None, extra_headers: str
) -> list[bytes]:
    """Returns the bytes of a request with new framing and Host, in one part or two.

    dp_rank: the data-parallel rank of the instance.
    extra_headers: complete header lines.
    """
    if dp_rank is not None:
        extra_headers = f"{extra_headers}x-data-parallel-rank: {dp_rank}\r\n"
    if prefix.has_body:
        text = f"{prefix.text}{len(body)}\r\nx-request-id: {request_id}\r\n{extra_headers}"
    else:
        text = f"{prefix.text}x-request-id: {request_id}\r\n{extra_headers}"
    head_text = text.encode("latin-1")
    forwarded = head.forwarded_fields
    if forwarded is None:
        forwarded = forward_headers(head)
    if len(body) < _MAX_JOINED_BYTES:
        return [b"%b%b\r\n%b" % (head_text, forwarded, body)]
    return [b"%b%b\r\n" % (head_text, forwarded), body]


def encode_external_request(prefix: RequestPrefix, body: bytes, request_id: str) -> list[bytes]:
    """Returns the bytes of a request to an API that others run.

    None of the client's headers leaves the cluster: they may name users, sessions or systems.
    """
    length = f"{len(body)}\r\n" if prefix.has_body else ""
    text = f"{prefix.text}{length}x-request-id: {request_id}\r\n{_EXTERNAL_HEADERS}\r\n"
    return [text.encode("latin-1"), body] if body else [text.encode("latin-1")]


class RequestPrefixCache:
    """The last request prefix of each engine, since the next request most often has the same."""

    def __init__(self, hop_id: str) -> None:
        self._hop_id = hop_id
        self._prefixes: dict[str, RequestPrefix] = {}

    def get(self, method: str, target: str, url: str) -> RequestPrefix:
        """Returns the start of a request for `target` at `url`."""
        prefix = self._prefixes.get(url)
        if prefix is None or prefix.target != target or prefix.method != method:
            if len(self._prefixes) >= _MAX_CACHED:
                self._prefixes.clear()
            prefix = self._prefixes[url] = request_prefix(method, target, url, self._hop_id)
        return prefix


class RouteHeaderCache:
    """The start of the headers that name the route, by instance."""

    def __init__(self) -> None:
        self._headers: dict[str, str] = {}

    def get(self, instance: str) -> str:
        """Returns the header text up to the reason."""
        header = self._headers.get(instance)
        if header is None:
            if len(self._headers) >= _MAX_CACHED:
                self._headers.clear()
            header = self._headers[instance] = route_header(sanitize_header_value(instance))
        return header


def route_header(where: str) -> str:
    return f"x-fairlead-instance: {where}\r\nx-fairlead-reason: "


def server_timing(own_seconds: float, engine_seconds: float, queued_seconds: float = 0.0) -> str:
    """Returns the value of `server-timing`: milliseconds with three decimals.

    engine_seconds: negative: not known.
    queued_seconds: not part of the others; 0: not named.

    Why from whole microseconds: formatting a float takes ten times as long.
    """
    own = int(own_seconds * 1e6 + 0.5)
    own_thousandths = _THOUSANDTHS[own % 1000]
    own_text = _number(own // 1000)
    if engine_seconds < 0.0:
        timing = f"gateway;dur={own_text}.{own_thousandths}"
    else:
        engine = int(engine_seconds * 1e6 + 0.5)
        engine_text = _number(engine // 1000)
        timing = f"gateway;dur={own_text}.{own_thousandths}, engine;dur={engine_text}.{_THOUSANDTHS[engine % 1000]}"
    if queued_seconds <= 0.0:
        return timing
    queued = int(queued_seconds * 1e6 + 0.5)
    return f"{timing}, queue;dur={_number(queued // 1000)}.{_THOUSANDTHS[queued % 1000]}"


def _number(value: int) -> str:
    return _NUMBERS[value] if 0 <= value < 1000 else str(value)


def forward_headers(head: RequestHead, *, traced: bool = False) -> bytes:
    """Returns the client's headers that engines of every model get.

    Caches them in the head, with the names of unusual headers that they do not get.

    traced: leaves out the client's trace context, since another one takes its place.
    """
    hop_by_hop = _hop_by_hop(head)
    lines: list[bytes] = []
    dropped: list[bytes] = []
    context = b""
    for name, value in head.fields:
        if name == HOP_HEADER or (name in _ALLOWED_HEADERS and name not in hop_by_hop):
            lines += (name, b": ", value, b"\r\n")
        elif name == trace_context.TRACEPARENT and not traced and name not in hop_by_hop:
            context = trace_context.forwarded_header(head.fields)
        elif name not in _USUAL_HEADERS and not name.startswith(_USUAL_PREFIXES) and name not in dropped:
            dropped.append(name)
    if context:
        lines.append(context)
    forwarded = head.forwarded_fields = b"".join(lines)
    head.dropped_fields = tuple(dropped[:_MAX_RECORDED_HEADERS])
    return forwarded


def allowed_header_text(head: RequestHead, allowed: frozenset[bytes]) -> str:
    """Returns the headers that a model allows besides those of `forward_headers`."""
    names = allowed - _ALLOWED_HEADERS - _hop_by_hop(head)
    lines = [b"%b: %b\r\n" % (name, value) for name, value in head.fields if name in names]
    return b"".join(lines).decode("latin-1")


def _hop_by_hop(head: RequestHead) -> frozenset[bytes]:
    connection = head.get(b"connection")
    return frozenset([name.strip(b" \t").lower() for name in connection.split(b",")]) if connection else _NO_NAMES


def relayed_headers(fields: dict[bytes, bytes], *, exclude: bytes = b"") -> str:
    """Returns the allowed headers of an engine's response, as header text."""
    text = ""
    for name in _RELAYED_HEADERS:
        if name == exclude:
            continue
        value = fields.get(name)
        if value is not None and _CARRIAGE_RETURN not in value and _LINE_FEED not in value:
            text += f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n"
    return text


def retry_after_of(fields: dict[bytes, bytes], max_seconds: int, now: float) -> int | None:
    """Returns the seconds for which an engine asks to wait, rounded up, from 1 to `max_seconds`.

    None without a header that can be read. Seconds may have a fraction; a date counts from that of
    the response, since the engine's clock may differ. `retry-after-ms`, as OpenAI's SDKs know it,
    comes first.

    now: Unix seconds, for a response without a date.

    Source: RFC 9110, 5.6.7 and 10.2.3.
    """
    milliseconds, value = fields.get(b"retry-after-ms", b""), fields.get(b"retry-after", b"")
    if _NUMBER.fullmatch(milliseconds) is not None:
        seconds = float(milliseconds) / 1_000
    elif _NUMBER.fullmatch(value) is not None:
        seconds = float(value)
    elif (until := _date_in(value)) is not None:
        sent_at = _date_in(fields.get(b"date", b""))
        seconds = until - (now if sent_at is None else sent_at)
    else:
        return None
    return max(1, math.ceil(min(seconds, max_seconds)))


def _date_in(value: bytes) -> float | None:
    """Returns the Unix seconds of a date in one of HTTP's three forms; None for another text."""
    if not value or len(value) > _MAX_DATE_CHARACTERS:
        return None
    text = value.decode("latin-1")
    for form in _DATE_FORMS:
        try:
            return datetime.strptime(text, form).replace(tzinfo=UTC).timestamp()
        except ValueError:
            continue
    return None


def sanitize_header_value(text: str) -> str:
    """Returns the text with `?` for each space and each character that is not printable ASCII."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return "".join(char if "!" <= char <= "~" else "?" for char in text)


def create_hop_id(secret: bytes) -> str:
    return hashlib.blake2b(secret, digest_size=6, person=b"fairlead-hop").hexdigest()


def check_hops(head: RequestHead, hop_id: str) -> None:
    """Raises GatewayLoop if the request was here before, or has passed too many gateways.

    Raises BadRequest if the header does not hold ids.
    """
    if head.get_rare(HOP_HEADER) is None:
        return
    value = b",".join([field for name, field in head.fields if name == HOP_HEADER])
    if _HOP_IDS.fullmatch(value) is None:
        raise BadRequest(f"{HOP_HEADER.decode()}: only gateways set this header", param=HOP_HEADER.decode())
    ids = [part.strip(b" \t").decode("ascii") for part in value.split(b",")]
    if hop_id in ids:
        message, hint = "the request has passed this gateway before", "an endpoint of the model is this gateway itself"
    elif len(ids) > HOPS:
        message = f"the request has passed more than {HOPS} gateways"
        hint = "look for endpoints of models that are gateways"
    else:
        return
    raise GatewayLoop(message, hint=hint, headers=(NO_RETRY,))
