"""A link with latency: data arrives complete and in order, but later, in both directions.

Bandwidth is not limited: data sent together arrives together.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fairlead_testing.http.tcp_server import tcp_server

_Piece = tuple[float, bytes]


@asynccontextmanager
async def slow_link(server: Path, seconds: float) -> AsyncIterator[int]:
    """Returns a loopback port that leads to a server's unix socket with `seconds` of latency each
    way.
    """
    async with tcp_server(lambda reader, writer: _forward_both(reader, writer, server, seconds)) as listening:
        yield listening.sockets[0].getsockname()[1]


async def _forward_both(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: Path, seconds: float
) -> None:
    """Forwards one connection until either side ends it."""
    try:
        there_reader, there_writer = await asyncio.open_unix_connection(server)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_forward(reader, there_writer, seconds))
                group.create_task(_forward(there_reader, writer, seconds))
        finally:
            there_writer.transport.abort()
    except* OSError:
        pass
    finally:
        writer.transport.abort()


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Forwards one direction until the sender ends it; then the whole connection ends."""
    under_way: asyncio.Queue[_Piece] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    async def arrive() -> None:
        while True:
            at, data = await under_way.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                raise ConnectionResetError
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(arrive())
        while True:
            data = await reader.read(65_536)
            under_way.put_nowait((loop.time() + seconds, data))
            if not data:
                return
