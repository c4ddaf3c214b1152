"""The end of a server on asyncio's own loop."""

import asyncio
import gc
import socket

import pytest

from fairlead.runtime.event_loop import close_server
from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.waiting import wait_until


class Greeter(asyncio.Protocol):
    def __init__(self, open_ones: "set[Greeter]") -> None:
        self._open_ones = open_ones

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._open_ones.add(self)
        transport.write(b"hello")
        transport.close()

    def connection_lost(self, _: Exception | None) -> None:
        self._open_ones.remove(self)


def test_connection_that_is_accepted_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = collected_errors(monkeypatch)

    async def main(turns: int) -> socket.socket:
        open_ones: set[Greeter] = set()
        server = await asyncio.get_running_loop().create_server(lambda: Greeter(open_ones), "127.0.0.1", 0)
        client = socket.create_connection(server.sockets[0].getsockname())
        for _ in range(turns):
            await asyncio.sleep(0)
        await close_server(server)
        await wait_until(lambda: not open_ones)
        return client

    for turns in range(6):
        with asyncio.run(main(turns)) as client:
            try:
                assert client.recv(5) == b"hello", turns
            except ConnectionResetError:
                assert turns < 3, "it was not accepted"
    gc.collect()  # once: it takes a second with the objects of all tests
    assert errors == []
