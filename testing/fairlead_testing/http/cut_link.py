"""A way to a server that can be cut without anybody being told: bytes are forwarded until a test says stop.

What a network does that drops packets of old connections: they stay open on both sides, and nothing comes any more. New ones pass.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class _Connection:
    """One that is open. ``asked`` tells which of several the client has sent on last."""

    def __init__(self) -> None:
        self.silenced = False
        self.asked = 0


class CutLink:
    """``port`` on loopback leads to the server."""

    def __init__(self) -> None:
        self.port = 0
        self._open: set[_Connection] = set()
        self._asked = 0

    def freeze(self, *, spare: int = 0) -> int:
        """From now on nothing passes on the connections that are open; how many they are.

        ``spare`` leaves out those that the client has sent on last: watches are asked for once, and then only listened to.
        """
        found = sorted((one for one in self._open if not one.silenced), key=lambda one: one.asked, reverse=True)
        for one in found[spare:]:
            one.silenced = True
        return len(found[spare:])

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        """One connection, until either side ends it."""
        one = _Connection()
        self._open.add(one)
        try:
            there_reader, there_writer = await asyncio.open_connection(host, port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._forward(reader, there_writer, one, asking=True))
                    group.create_task(self._forward(there_reader, writer, one, asking=False))
            finally:
                there_writer.transport.abort()  # what is left unsent of a silenced one would keep it open
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
            if not one.silenced:  # else it was received, as far as its sender knows
                writer.write(data)
                await writer.drain()
        if not one.silenced:
            writer.close()


@asynccontextmanager
async def cut_link(host: str, port: int) -> AsyncIterator[CutLink]:
    """A way to ``host:port``."""
    gap = CutLink()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(gap.serve(reader, writer, host, port))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    gap.port = server.sockets[0].getsockname()[1]
    try:
        yield gap
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
