"""The TCP server of tests: no connection of it is left open."""

import asyncio
import gc
import socket

import pytest

from fairlead_testing.collected_errors import collected_errors
from fairlead_testing.http.scripted_servers import tcp_server


async def _wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await reader.read()
    finally:
        writer.close()


def test_connection_is_closed_wherever_its_handler_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also before the first step of the handler, whose `finally` then never runs."""
    errors = collected_errors(monkeypatch)

    async def main(turns: int) -> socket.socket:
        async with tcp_server(_wait_for_the_end) as server:
            client = socket.create_connection(server.sockets[0].getsockname())
            for _ in range(turns):
                await asyncio.sleep(0)
            return client

    for turns in range(6):
        with asyncio.run(main(turns)) as client:
            try:
                assert client.recv(1) == b"", turns
            except ConnectionResetError:
                assert turns < 3, "it was not accepted"
    gc.collect()
    assert errors == []
