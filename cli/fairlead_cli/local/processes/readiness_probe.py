"""Is it up yet? The smallest possible questions to a process that is being started: HTTP GET and Redis PING.

Plain asyncio, so that the way to the first token does not begin with importing an HTTP client.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

POLL_SECONDS = 0.05
TIMEOUT_SECONDS = 2.0


async def get_http_status(url: str) -> int | None:
    """The status of one GET, or None when nothing sensible answers."""
    parts = urlsplit(url)
    head = f"GET {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\n\r\n"
    answer = await _exchange(parts.hostname, parts.port, None, head.encode(), b"\r\n")
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) > 1 and words[1].isdigit() else None


async def is_redis_up(socket_path: str | None, port: int | None) -> bool:
    """Does a Redis answer there? One that asks for a password does."""
    answer = await _exchange("127.0.0.1", port, socket_path, b"PING\r\n", b"\r\n")
    return answer.startswith((b"+PONG", b"-NOAUTH"))


async def wait_until(condition: Callable[[], Awaitable[bool]], poll_seconds: float = POLL_SECONDS) -> None:
    """Ask again and again until the answer is yes; the caller bounds it in time."""
    while True:
        if await condition():
            return
        await asyncio.sleep(poll_seconds)


async def _exchange(host: str | None, port: int | None, path: str | None, question: bytes, until_bytes: bytes) -> bytes:
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            opening = asyncio.open_unix_connection(path) if path else asyncio.open_connection(host, port)
            reader, writer = await opening
            try:
                writer.write(question)
                return await reader.readuntil(until_bytes)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return b""
