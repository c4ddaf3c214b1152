"""The HTTP client for control traffic: one request on a new connection, with strict limits.

It scrapes engines and gateways, puts engines to sleep, lets engines tokenize prompts, sends wake
hints and exports traces. It accepts Content-Length, chunked and close-delimited responses. It
refuses responses that are too long, too late or compressed. It follows no redirects and uses no
proxies.

The data plane has its own connection pool, which keeps connections and streams. The Kubernetes
client has its own transport, which keeps connections and decides about retries by what was sent.

Why: a general client costs a millisecond of the event loop per response; this one costs a tenth.
It also decompresses by itself. Some kilobytes that were compressed twice become gigabytes before a
limit on the body is looked at. Here all limits count the bytes that arrive.
"""

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httptools

from fairlead.errors import BadInput, Unavailable

_READ_BYTES: Final = 64 * 1024
_MAX_HEAD_BYTES: Final = 64 * 1024
"""The longest status line with headers. The framing of a body may take as much again."""
_NO_HEADERS: Final[Mapping[str, str]] = {}
_UNSAFE_TARGET: Final = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")


@dataclass(frozen=True, slots=True)
class ConnectionRules:
    """The rules of a connection.

    tls_context: called for https URLs; decides which certificates are accepted.
    resolve: returns the address of a host and port. None: every address of the host is allowed.
    on_received: called with the size of each part of a response. May raise Unavailable.
    """

    tls_context: Callable[[], ssl.SSLContext] = ssl.create_default_context
    resolve: Callable[[str, int], Awaitable[str]] | None = None
    on_received: Callable[[int], None] | None = None


DEFAULT_RULES: Final = ConnectionRules()


@dataclass(frozen=True, slots=True)
class HttpReply:
    """The status and body of a response."""

    status: int
    body: bytes = b""


async def fetch(
    url: str,
    *,
    timeout_seconds: float,
    max_bytes: int,
    headers: Mapping[str, str] = _NO_HEADERS,
    json_body: bytes | None = None,
    rules: ConnectionRules = DEFAULT_RULES,
) -> bytes:
    """Returns the body of a response to a GET, or to a POST of `json_body`.

    Raises like `send`, and Unavailable for a status other than 200.
    """
    reply = await send(
        "GET" if json_body is None else "POST",
        url,
        timeout_seconds=timeout_seconds,
        max_bytes=max_bytes,
        headers=headers,
        json_body=json_body,
        rules=rules,
    )
    if reply.status != 200:
        raise Unavailable(f"answered {reply.status}")
    return reply.body


async def send(
    method: str,
    url: str,
    *,
    timeout_seconds: float,
    max_bytes: int,
    headers: Mapping[str, str] = _NO_HEADERS,
    json_body: bytes | None = None,
    rules: ConnectionRules = DEFAULT_RULES,
) -> HttpReply:
    """Sends one request and returns the response, whatever its status.

    Raises Unavailable with a short reason if there is no complete response or if it is compressed.
    Raises BadInput for a header or URL that is not valid in HTTP/1.1.

    max_bytes: maximum length of the response body. Headers, chunk framing and trailers may add
    64 KiB.
    """
    parts = urlsplit(url)
    head = _request_head(method, parts, headers, json_body)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _exchange(parts, head + (json_body or b""), max_bytes, rules)
    except TimeoutError:
        raise Unavailable(f"no answer within {timeout_seconds:g} s") from None
    except (OSError, ValueError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error


def _request_head(method: str, parts: SplitResult, headers: Mapping[str, str], json_body: bytes | None) -> bytes:
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unavailable(f"{parts.scheme or 'no'} scheme: only http and https are supported")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if _UNSAFE_TARGET.search(target) or _UNSAFE_TARGET.search(parts.netloc):
        raise BadInput("the URL contains characters that HTTP does not allow", field="url")
    host = parts.netloc.rpartition("@")[2]
    lines = [f"{method} {target} HTTP/1.1", f"host: {host}", "connection: close", "accept-encoding: identity"]
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise BadInput("the name of a header is not valid", field="headers")
        if not _HEADER_VALUE.fullmatch(value):
            raise BadInput("the value of a header contains characters that HTTP does not allow", field=name)
        lines.append(f"{name}: {value}")
    if json_body is not None:
        lines += ["content-type: application/json", f"content-length: {len(json_body)}"]
    elif method != "GET":
        lines.append("content-length: 0")
    return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _exchange(parts: SplitResult, request: bytes, max_bytes: int, rules: ConnectionRules) -> HttpReply:
    secure, host = parts.scheme == "https", parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    address = host if rules.resolve is None else await rules.resolve(host, port)
    context, name = (rules.tls_context(), host) if secure else (None, None)
    reader, writer = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
    try:
        writer.write(request)
        response = _ResponseReader()
        parser = httptools.HttpResponseParser(response)
        while not response.complete:
            data = await reader.read(_READ_BYTES)
            if not data:
                break
            if rules.on_received is not None:
                rules.on_received(len(data))
            parser.feed_data(data)
            response.received += len(data)
            response.check_limits(max_bytes)
        status = parser.get_status_code() if response.started else 0
    finally:
        writer.transport.abort()  # a TLS transport that is closed waits for the peer, longer than the loop may run
    if not status:
        raise Unavailable("closed without an answer")
    if not response.complete and response.framed:
        raise Unavailable("the answer was cut off")
    return HttpReply(status, bytes(response.body))


class _ResponseReader:
    """The state of a response that the callbacks of the parser collect.

    received: all bytes of the response so far.
    encoded: the body is compressed.
    framed: the response has a length or chunks, so that an early end can be detected.
    """

    def __init__(self) -> None:
        self.body = bytearray()
        self.received = 0
        self.started = False
        self.complete = False
        self.encoded = False
        self.framed = False

    def check_limits(self, max_bytes: int) -> None:
        """Raises Unavailable if the response is compressed or too long."""
        if self.encoded:
            raise Unavailable("the answer has a content-encoding, although none was accepted")
        if not self.started and self.received > _MAX_HEAD_BYTES:
            raise Unavailable(f"the head of the answer is longer than {_MAX_HEAD_BYTES} bytes")
        if len(self.body) > max_bytes or self.received > max_bytes + _MAX_HEAD_BYTES:
            raise Unavailable(f"the answer is longer than {max_bytes} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Records whether the response has a length or chunks, and whether it is compressed."""
        field = name.lower()
        if field in (b"content-length", b"transfer-encoding"):
            self.framed = True
        elif field == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
            self.encoded = True

    def on_headers_complete(self) -> None:
        self.started = True

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True
