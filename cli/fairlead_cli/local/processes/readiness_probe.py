"""Probes of a process that starts: HTTP GET and Redis PING.

Why: plain asyncio, because importing an HTTP client would delay the first token.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 2.0


async def get_http_status(url: str) -> int | None:
    """Returns the status of one GET, or None without a valid answer."""
    return _status(await _get(url, b"\r\n"))


async def get_http_body(url: str) -> bytes | None:
    """Returns the body of one GET, or None without an answer of status 200."""
    answer = await _get(url, None)
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if _status(head) == 200 else None


async def is_redis_up(socket_path: str | None, port: int | None) -> bool:
    """Whether a Redis answers, if only that it requires a password."""
    answer = await _exchange("127.0.0.1", port, socket_path, b"PING\r\n", b"\r\n")
    return answer.startswith((b"+PONG", b"-NOAUTH"))


async def wait_until(condition: Callable[[], Awaitable[bool]], poll_seconds: float = POLL_SECONDS) -> None:
    """Polls until the condition is true; the caller sets a timeout."""
    while True:
        if await condition():
            return
        await asyncio.sleep(poll_seconds)


async def _get(url: str, terminator: bytes | None) -> bytes:
    parts = urlsplit(url)
    head = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    return await _exchange(parts.hostname, parts.port, None, head.encode(), terminator)


def _status(answer: bytes) -> int | None:
    fields = answer.split(b" ", 2)
    return int(fields[1]) if len(fields) > 1 and fields[1].isdigit() else None


async def _exchange(
    host: str | None, port: int | None, path: str | None, request: bytes, terminator: bytes | None
) -> bytes:
    """Returns what is sent up to the terminator, or else up to the end; nothing on a failure."""
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            opening = asyncio.open_unix_connection(path) if path else asyncio.open_connection(host, port)
            reader, writer = await opening
            try:
                writer.write(request)
                return await (reader.readuntil(terminator) if terminator else reader.read())
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return b""
