"""A TCP link that can silently stop forwarding, like a network that drops packets.

Old connections stay open on both sides and transfer nothing; new connections work.

A link with latency: data arrives complete and in order, but later, in both directions.

Bandwidth is not limited: data sent together arrives together.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fairlead_testing.http.scripted_servers import tcp_server

_Piece = tuple[float, bytes]


class _Connection:
    """An open connection. `asked` says on which of several the client sent last."""

    def __init__(self) -> None:
        self.silenced = False
        self.asked = 0


class CutLink:
    """A link from `port` on loopback to a server."""

    def __init__(self) -> None:
        self.port = 0
        self._open: set[_Connection] = set()
        self._asked = 0

    def freeze(self, *, spare: int = 0) -> int:
        """Stops forwarding on the open connections, and returns their number.

        spare: number of connections to leave out: those with the latest request. Watches are
            requested once and then only read.
        """
        found = sorted((one for one in self._open if not one.silenced), key=lambda one: one.asked, reverse=True)
        for one in found[spare:]:
            one.silenced = True
        return len(found[spare:])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """Forwards one connection until either side ends it."""
        one = _Connection()
        self._open.add(one)
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._forward(reader, there_writer, one, asking=True))
                    group.create_task(self._forward(there_reader, writer, one, asking=False))
            finally:
                there_writer.transport.abort()  # unsent data would keep it open
        except* OSError:
            pass
        finally:
            writer.transport.abort()
            self._open.discard(one)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one: _Connection, *, asking: bool
    ) -> None:
        while data := await reader.read(65_536):
            if asking:
                self._asked += 1
                one.asked = self._asked
            if not one.silenced:  # else the sender believes that it was received
                writer.write(data)
                await writer.drain()
        if not one.silenced:
            writer.close()


@asynccontextmanager
async def cut_link(host: str, port: int) -> AsyncIterator[CutLink]:
    """Runs a link to `host:port`."""
    gap = CutLink()
    async with tcp_server(lambda reader, writer: gap.serve(reader, writer, host, port)) as server:
        gap.port = server.sockets[0].getsockname()[1]
        yield gap


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
