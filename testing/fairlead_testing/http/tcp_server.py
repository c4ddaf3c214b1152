"""A TCP server of a test that leaves no connection open.

Why not `asyncio.start_server` alone: a handler that is cancelled before its first step never runs,
not even its `finally`, so that nothing closes its connection. The warning then appears in a later
test.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fairlead.runtime.event_loop import close_server

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_TURNS_TO_CLOSE = 3
"""Loop iterations until cancelled tasks have had their callbacks, and connections are closed."""


@asynccontextmanager
async def tcp_server(
    serve: Serve, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None, buffer_bytes: int = 65_536
) -> AsyncIterator[asyncio.Server]:
    """Listens on a free port. `serve` handles each connection.

    At the end the handlers that still run are cancelled, and all their connections are aborted.
    """
    handlers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(handle(reader, writer))
        handlers[task] = writer
        task.add_done_callback(forget)

    def forget(task: asyncio.Task[None]) -> None:
        writer = handlers.pop(task)
        if task.cancelled():
            writer.transport.abort()

    server = await asyncio.start_server(accept, host, 0, ssl=tls, limit=buffer_bytes)
    try:
        yield server
    finally:
        await close_server(server)
        running = list(handlers)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)
