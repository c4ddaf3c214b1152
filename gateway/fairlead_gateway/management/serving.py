"""The management port as a server: uvicorn on the helper's loop, on a socket that listens already."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvicorn

from fairlead_gateway.management.app import management_app
from fairlead_gateway.management.view import View


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process has one that knows about requests in flight."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does, and say when it is done."""
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Management:
    """Serves ``view``; ``token`` guards its API, which is reached under ``hosts`` too."""

    def __init__(self, view: View, private: socket.socket, *, token: str | None, hosts: Sequence[str] = ()) -> None:
        config = uvicorn.Config(
            management_app(view, token=token, hosts=hosts),
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._private = private
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer from now on."""
        self._task = asyncio.get_running_loop().create_task(self._server.serve(sockets=[self._private]))
        await self._server.up.wait()

    async def stop(self) -> None:
        """Answer what is being asked, and no more."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        self._private.close()
