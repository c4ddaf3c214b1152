"""What is said to engines and what of their heads is passed on: requests are framed anew, heads go through lists of names.

Dropped on the way in: everything that belongs to the client's connection (hop-by-hop), credentials, whatever pretends to come
from a proxy or from Fairlead, and names with an underscore, which some servers read as if it were a hyphen.
"""

from typing import Final

from fairlead_gateway import trace
from fairlead_gateway.head import Head

_DROPPED: Final = frozenset(
    b"host content-length content-type content-encoding transfer-encoding connection keep-alive te trailer upgrade "
    b"proxy-authenticate proxy-authorization proxy-connection http2-settings expect accept-encoding authorization "
    b"x-api-key cookie forwarded via x-real-ip x-request-id x-request-timeout x-data-parallel-rank traceparent tracestate".split()
)
_WRITTEN_WHOLE_BYTES: Final = 65_536
_KEPT: Final = 4_096
_THOUSANDTHS: Final[tuple[str, ...]] = tuple(f"{number:03d}" for number in range(1_000))
JSON: Final = "application/json"
_DROPPED_PREFIXES: Final = (b"x-fairlead-", b"x-forwarded-", b"proxy-")
_PASSED_BACK: Final[tuple[bytes, ...]] = (
    b"content-type",
    b"cache-control",
    b"retry-after",
    b"endpoint-load-metrics",
    b"openai-processing-ms",
    b"warning",
)


def engine_request(
    url: str,
    path: str,
    head: Head,
    body: bytes,
    request_id: str,
    *,
    method: str = "POST",
    rank: int | None = None,
    more: str = "",
) -> list[bytes]:
    """The request as an engine gets it: own framing, own Host, the body's very bytes; ``rank`` of a data-parallel one.

    ``more`` is ready header text."""
    return framed(start_of(method, path, url), head, body, request_id, rank=rank, more=more)


class Start:
    """How a request begins: up to its length, or, of a GET, to the end of its Host."""

    __slots__ = ("method", "target", "text")

    def __init__(self, method: str, target: str, text: str) -> None:
        self.method = method
        self.target = target
        self.text = text


def start_of(method: str, target: str, url: str) -> Start:
    """The beginning of a request for ``target`` at ``url``."""
    authority, _, base = url.partition("://")[2].partition("/")
    base = f"/{base}".rstrip("/") if base else ""
    framing = "content-type: application/json\r\ncontent-length: " if method != "GET" else ""
    return Start(method, target, f"{method} {base}{target} HTTP/1.1\r\nhost: {authority}\r\n{framing}")


def framed(start: Start, head: Head, body: bytes, request_id: str, *, rank: int | None, more: str) -> list[bytes]:
    """A request behind a beginning that is known already."""
    own = f"x-data-parallel-rank: {rank}\r\n" if rank is not None else ""
    if start.method != "GET":
        begin = f"{start.text}{len(body)}\r\nx-request-id: {request_id}\r\n{more}{own}".encode("latin-1")
    else:
        begin = f"{start.text}x-request-id: {request_id}\r\n{more}{own}".encode("latin-1")
    if head.passed_on is None:
        head.passed_on = fields_for_engines(head)
    if len(body) < _WRITTEN_WHOLE_BYTES:
        return [b"%b%b\r\n%b" % (begin, head.passed_on, body)]
    return [b"%b%b\r\n" % (begin, head.passed_on), body]


class Starts:
    """How requests to engines begin: each engine's last one is kept, since the next is most often alike."""

    def __init__(self) -> None:
        self._kept: dict[str, Start] = {}

    def of(self, method: str, target: str, url: str) -> Start:
        """The beginning of a request for ``target`` at ``url``."""
        kept = self._kept.get(url)
        if kept is None or kept.target != target or kept.method != method:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[url] = start_of(method, target, url)
        return kept


class Named:
    """The beginning of the fields that say where a request went, kept for each instance."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def of(self, instance: str) -> str:
        """Up to where the reason comes."""
        kept = self._kept.get(instance)
        if kept is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            kept = self._kept[instance] = named(header_value(instance))
        return kept


def named(where: str) -> str:
    """The field that names an instance, and the name of the next one, which says why."""
    return f"x-fairlead-instance: {where}\r\nx-fairlead-reason: "


def timing(own_seconds: float, engine_seconds: float) -> str:
    """The value of ``server-timing``: milliseconds with three decimals. Put together from whole microseconds, since to format a
    number takes ten times as long; below 0 the engine's part is not known."""
    own = int(own_seconds * 1e6 + 0.5)
    text = f"gateway;dur={own // 1000}.{_THOUSANDTHS[own % 1000]}"
    if engine_seconds < 0.0:
        return text
    engine = int(engine_seconds * 1e6 + 0.5)
    return f"{text}, engine;dur={engine // 1000}.{_THOUSANDTHS[engine % 1000]}"


def fields_for_engines(head: Head, *, traced: bool = False) -> bytes:
    """The client's fields that an engine gets, as header text; without its trace context where ours takes its place (``traced``)."""
    named = head.get(b"connection")
    hops = {name.strip(b" \t").lower() for name in named.split(b",")} if named else frozenset()
    lines: list[bytes] = []
    context = b""
    for name, value in head.fields:
        if name in _DROPPED or b"_" in name or name in hops or name.startswith(_DROPPED_PREFIXES):
            if name == trace.PARENT and not traced and name not in hops:
                context = trace.passed_on(head.fields)
            continue
        lines += (name, b": ", value, b"\r\n")
    if context:
        lines.append(context)
    return b"".join(lines)


def passed_back(fields: dict[bytes, bytes], *, but: bytes = b"") -> str:
    """The allowed fields of an engine's head, as header text."""
    text = ""
    for name in _PASSED_BACK:
        if name == but:
            continue
        value = fields.get(name)
        if value is not None and b"\r" not in value and b"\n" not in value:
            text += f"{name.decode('latin-1')}: {value.decode('latin-1')}\r\n"
    return text


def header_value(text: str) -> str:
    """A value of ours that may hold anything, as something that a header can hold."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return "".join(char if "!" <= char <= "~" else "?" for char in text)
