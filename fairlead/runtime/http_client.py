"""The HTTP client for control traffic: one request on a new connection, with strict limits.

It scrapes engines and gateways, puts engines to sleep, lets engines tokenize prompts, sends wake
hints and exports traces. It accepts Content-Length, chunked and close-delimited responses. It
refuses responses that are too long or too late. It follows no redirects and uses no proxies.

The data plane has its own connection pool, which keeps connections and streams. The Kubernetes
client has its own transport, which keeps connections and decides about retries by what was sent.

Why: a general client costs a millisecond of the event loop per response; this one costs a tenth.
"""

import asyncio
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

import httptools

from fairlead.errors import BadInput, Unavailable

_READ_BYTES: Final = 256 * 1024
_NO_HEADERS: Final[Mapping[str, str]] = {}
_UNSAFE_TARGET: Final = re.compile(r"[\x00-\x20\x7f-\U0010ffff]")
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")


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
    tls_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
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
        tls_context=tls_context,
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
    tls_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
) -> HttpReply:
    """Sends one request and returns the response, whatever its status.

    Raises Unavailable with a short reason if there is no complete response, and BadInput for a
    header or URL that is not valid in HTTP/1.1.

    max_bytes: maximum length of the response body; a longer one raises Unavailable.
    tls_context: called for https URLs; decides which certificates are accepted.
    """
    parts = urlsplit(url)
    head = _request_head(method, parts, headers, json_body)
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _exchange(parts, head + (json_body or b""), max_bytes, tls_context)
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
    lines = [f"{method} {target} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}", "connection: close"]
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


async def _exchange(
    parts: SplitResult, request: bytes, max_bytes: int, tls_context: Callable[[], ssl.SSLContext]
) -> HttpReply:
    secure = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port or (443 if secure else 80), ssl=tls_context() if secure else None
    )
    try:
        writer.write(request)
        response = _ResponseReader()
        parser = httptools.HttpResponseParser(response)
        while not response.complete:
            data = await reader.read(_READ_BYTES)
            if not data:
                break
            parser.feed_data(data)
            if response.size > max_bytes:
                raise Unavailable(f"the answer is longer than {max_bytes} bytes")
        status = parser.get_status_code() if response.started else 0
    finally:
        writer.close()
    if not status:
        raise Unavailable("closed without an answer")
    if not response.complete and response.framed:
        raise Unavailable("the answer was cut off")
    return HttpReply(status, b"".join(response.parts))


class _ResponseReader:
    """The state of a response that the callbacks of the parser collect.

    framed: the response has a length or chunks, so that an early end can be detected.
    """

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.started = False
        self.complete = False
        self.framed = False

    def on_header(self, name: bytes, _: bytes) -> None:
        """Records whether the response has a length or chunks."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self.framed = True

    def on_headers_complete(self) -> None:
        """Records that the status and the headers have arrived."""
        self.started = True

    def on_body(self, data: bytes) -> None:
        """Stores one part of the body."""
        self.parts.append(data)
        self.size += len(data)

    def on_message_complete(self) -> None:
        """Records that the response is complete."""
        self.complete = True
