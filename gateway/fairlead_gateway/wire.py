"""What is said to engines and what of their heads is passed on: requests are framed anew, heads go through lists of names.

Dropped on the way in: everything that belongs to the client's connection (hop-by-hop), credentials, whatever pretends to come
from a proxy or from Fairlead, and names with an underscore, which some servers read as if it were a hyphen.
"""

from fairlead_gateway import trace
from fairlead_gateway.head import Head

_DROPPED = frozenset(
    b"host content-length content-type content-encoding transfer-encoding connection keep-alive te trailer upgrade "
    b"proxy-authenticate proxy-authorization proxy-connection http2-settings expect accept-encoding authorization "
    b"x-api-key cookie forwarded via x-real-ip x-request-id x-request-timeout x-data-parallel-rank traceparent tracestate".split()
)
_WRITTEN_WHOLE_BYTES = 65_536
_DROPPED_PREFIXES = (b"x-fairlead-", b"x-forwarded-", b"proxy-")
_PASSED_BACK = (
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
    authority, _, base = url.partition("://")[2].partition("/")
    base = f"/{base}".rstrip("/") if base else ""
    framing = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if method != "GET" else ""
    own = f"x-data-parallel-rank: {rank}\r\n" if rank is not None else ""
    begin = (
        f"{method} {base}{path} HTTP/1.1\r\nhost: {authority}\r\n{framing}x-request-id: {request_id}\r\n{more}{own}"
    ).encode("latin-1")
    if head.passed_on is None:
        head.passed_on = fields_for_engines(head)
    if len(body) < _WRITTEN_WHOLE_BYTES:
        return [b"%b%b\r\n%b" % (begin, head.passed_on, body)]
    return [b"%b%b\r\n" % (begin, head.passed_on), body]


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
    return "".join(
        f"{name.decode()}: {fields[name].decode('latin-1')}\r\n"
        for name in _PASSED_BACK
        if name in fields and name != but and b"\r" not in fields[name] and b"\n" not in fields[name]
    )


def header_value(text: str) -> str:
    """A value of ours that may hold anything, as something that a header can hold."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return "".join(char if "!" <= char <= "~" else "?" for char in text)
