"""The TCP server of tests: no connection of it is left open."""

import asyncio
import gc
import socket

import pytest

from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.http.tcp_server import tcp_server


async def _wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("turns", range(6))
def test_connection_is_closed_wherever_its_handler_is_cancelled(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the first step of the handler, whose `finally` then never runs."""
    found = collected_errors(monkeypatch)

    async def main() -> socket.socket:
        async with tcp_server(_wait_for_the_end) as server:
            client = socket.create_connection(server.sockets[0].getsockname())
            for _ in range(turns):
                await asyncio.sleep(0)
            return client

    with asyncio.run(main()) as client:
        try:
            assert client.recv(1) == b""
        except ConnectionResetError:
            assert turns < 3, "it was not accepted"
    gc.collect()
    assert found == []
