"""What is said to engines and what of their heads is passed on: requests are framed anew, heads go
through lists of names.

Dropped on the way in: everything that belongs to the client's connection (hop-by-hop), credentials,
whatever pretends to come from a proxy or from Fairlead, and names with an underscore, which some
servers read as if it were a hyphen.
"""

from typing import Final

from fairlead_gateway.http import trace_context
from fairlead_gateway.http.request_head import RequestHead

_DROPPED_HEADERS: Final = frozenset(
    b"host content-length content-type content-encoding transfer-encoding connection keep-alive te trailer upgrade "
    b"proxy-authenticate proxy-authorization proxy-connection http2-settings expect accept-encoding authorization "
    b"x-api-key cookie forwarded via x-real-ip x-request-id x-request-timeout x-data-parallel-rank traceparent tracestate".split()
)
_MAX_JOINED_BYTES: Final = 65_536
_MAX_CACHED: Final = 4_096
_THOUSANDTHS: Final[tuple[str, ...]] = tuple(f"{number:03d}" for number in range(1_000))
JSON_TYPE: Final = "application/json"
_DROPPED_PREFIXES: Final = (b"x-fairlead-", b"x-forwarded-", b"proxy-")
_RELAYED_HEADERS: Final[tuple[bytes, ...]] = (
    b"content-type",
    b"cache-control",
    b"retry-after",
    b"endpoint-load-metrics",
    b"openai-processing-ms",
    b"warning",
)


def encode_request(
    url: str,
    path: str,
    head: RequestHead,
    body: bytes,
    request_id: str,
    *,
    method: str = "POST",
    dp_rank: int | None = None,
    extra_headers: str = "",
) -> list[bytes]:
    """The request as an engine gets it: own framing, own Host, the body's very bytes; ``rank`` of a
    data-parallel one.

    ``more`` is ready header text.
    """
    return encode_with_prefix(
        request_prefix(method, path, url), head, body, request_id, dp_rank=dp_rank, extra_headers=extra_headers
    )


class RequestPrefix:
    """How a request begins: up to its length, or, of a GET, to the end of its Host."""

    __slots__ = ("method", "target", "text")

    def __init__(self, method: str, target: str, text: str) -> None:
        self.method = method
        self.target = target
        self.text = text


def request_prefix(method: str, target: str, url: str) -> RequestPrefix:
    """The beginning of a request for ``target`` at ``url``."""
    authority, _, base = url.partition("://")[2].partition("/")
    base = f"/{base}".rstrip("/") if base else ""
    framing = "content-type: application/json\r\ncontent-length: " if method != "GET" else ""
    return RequestPrefix(method, target, f"{method} {base}{target} HTTP/1.1\r\nhost: {authority}\r\n{framing}")


def encode_with_prefix(
    prefix: RequestPrefix, head: RequestHead, body: bytes, request_id: str, *, dp_rank: int | None, extra_headers: str
) -> list[bytes]:
    """A request behind a beginning that is known already."""
    own = f"x-data-parallel-rank: {dp_rank}\r\n" if dp_rank is not None else ""
    if prefix.method != "GET":
        begin = f"{prefix.text}{len(body)}\r\nx-request-id: {request_id}\r\n{extra_headers}{own}".encode("latin-1")
    else:
        begin = f"{prefix.text}x-request-id: {request_id}\r\n{extra_headers}{own}".encode("latin-1")
    if head.forwarded_fields is None:
        head.forwarded_fields = forwarded_headers(head)
    if len(body) < _MAX_JOINED_BYTES:
        return [b"%b%b\r\n%b" % (begin, head.forwarded_fields, body)]
    return [b"%b%b\r\n" % (begin, head.forwarded_fields), body]


class RequestPrefixCache:
    """How requests to engines begin: each engine's last one is kept, since the next is most often
    alike.
    """

    def __init__(self) -> None:
        self._prefixes: dict[str, RequestPrefix] = {}

    def get(self, method: str, target: str, url: str) -> RequestPrefix:
        """The beginning of a request for ``target`` at ``url``."""
        kept = self._prefixes.get(url)
        if kept is None or kept.target != target or kept.method != method:
            if len(self._prefixes) >= _MAX_CACHED:
                self._prefixes.clear()
            kept = self._prefixes[url] = request_prefix(method, target, url)
        return kept


class RouteHeaderCache:
    """The beginning of the fields that say where a request went, kept for each instance."""

    def __init__(self) -> None:
        self._headers: dict[str, str] = {}

    def get(self, instance: str) -> str:
        """Up to where the reason comes."""
        kept = self._headers.get(instance)
        if kept is None:
            if len(self._headers) >= _MAX_CACHED:
                self._headers.clear()
            kept = self._headers[instance] = route_header(sanitize_header_value(instance))
        return kept


def route_header(where: str) -> str:
    """The field that names an instance, and the name of the next one, which says why."""
    return f"x-fairlead-instance: {where}\r\nx-fairlead-reason: "


def server_timing(own_seconds: float, engine_seconds: float) -> str:
    """The value of ``server-timing``: milliseconds with three decimals. Put together from whole
    microseconds, since to format a number takes ten times as long; below 0 the engine's part is not
    known.
    """
    own = int(own_seconds * 1e6 + 0.5)
    text = f"gateway;dur={own // 1000}.{_THOUSANDTHS[own % 1000]}"
    if engine_seconds < 0.0:
        return text
    engine = int(engine_seconds * 1e6 + 0.5)
    return f"{text}, engine;dur={engine // 1000}.{_THOUSANDTHS[engine % 1000]}"


def forwarded_headers(head: RequestHead, *, traced: bool = False) -> bytes:
    """The client's fields that an engine gets, as header text; without its trace context where ours
    takes its place (``traced``).
    """
    named = head.get(b"connection")
    hops = {name.strip(b" \t").lower() for name in named.split(b",")} if named else frozenset()
    lines: list[bytes] = []
    context = b""
    for name, value in head.fields:
        if name in _DROPPED_HEADERS or b"_" in name or name in hops or name.startswith(_DROPPED_PREFIXES):
            if name == trace_context.TRACEPARENT and not traced and name not in hops:
                context = trace_context.forwarded_header(head.fields)
            continue
        lines += (name, b": ", value, b"\r\n")
    if context:
        lines.append(context)
    return b"".join(lines)


def relayed_headers(fields: dict[bytes, bytes], *, exclude: bytes = b"") -> str:
    """The allowed fields of an engine's head, as header text."""
    text = ""
    for name in _RELAYED_HEADERS:
        if name == exclude:
            continue
        value = fields.get(name)
        if value is not None and b"\r" not in value and b"\n" not in value:
            text += f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n"
    return text


def sanitize_header_value(text: str) -> str:
    """A value of ours that may hold anything, as something that a header can hold."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return "".join(char if "!" <= char <= "~" else "?" for char in text)
