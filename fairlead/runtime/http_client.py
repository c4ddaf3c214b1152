"""One small GET or POST over a fresh connection, for what engines are asked for every few seconds.

An HTTP client of full size costs a millisecond of the gateway's loop per page; this costs a tenth. It takes
what engines send (Content-Length, chunked or until close), refuses what is too big or too slow, and follows nothing.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import httptools

from fairlead.errors import Unavailable

_READ_BYTES: Final = 256 * 1024


async def fetch(
    url: str,
    *,
    timeout_seconds: float,
    max_bytes: int,
    tls_context: Callable[[], ssl.SSLContext] = ssl.create_default_context,
    extra_headers: bytes = b"",
    json_body: bytes | None = None,
) -> bytes:
    """The body of a 200 answer. Raises Unavailable, saying in a few words why there is none.

    ``trust`` says whose certificates an https server may show; ``more`` is ready header text; ``question`` is JSON that is posted.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _fetch(url, max_bytes, tls_context, extra_headers, json_body)
    except TimeoutError:
        raise Unavailable(f"no answer within {timeout_seconds:g} s") from None
    except (OSError, ValueError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise Unavailable(f"{type(error).__name__}: {error}") from error


async def _fetch(
    url: str, most_bytes: int, trust: Callable[[], ssl.SSLContext], more: bytes, question: bytes | None
) -> bytes:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise Unavailable(f"{parts.scheme or 'no'} scheme: only http and https are asked")
    secure = parts.scheme == "https"
    reader, writer = await asyncio.open_connection(
        parts.hostname, parts.port or (443 if secure else 80), ssl=trust() if secure else None
    )
    try:
        path = parts.path or "/"
        asks, kind = ("GET", "accept: text/plain") if question is None else ("POST", "content-type: application/json")
        head = f"{asks} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\n{kind}\r\nconnection: close\r\n"
        if question is not None:
            head += f"content-length: {len(question)}\r\n"
        writer.write(head.encode() + more + b"\r\n" + (question or b""))
        page = _ResponseReader()
        parser = httptools.HttpResponseParser(page)
        while not page.complete:
            data = await reader.read(_READ_BYTES)
            if not data:
                break
            parser.feed_data(data)
            if page.size > most_bytes:
                raise Unavailable(f"the answer is longer than {most_bytes} bytes")
        status = parser.get_status_code() if page.started else 0
    finally:
        writer.close()
    if status != 200:
        raise Unavailable(f"answered {status}" if status else "closed without an answer")
    if not page.complete and page.framed:
        raise Unavailable("the answer was cut off")
    return b"".join(page.parts)


class _ResponseReader:
    """What the parser calls back."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0
        self.started = False
        self.complete = False
        self.framed = False

    def on_header(self, name: bytes, _: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self.framed = True

    def on_headers_complete(self) -> None:
        self.started = True

    def on_body(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)

    def on_message_complete(self) -> None:
        self.complete = True
