"""The part of a kubelet that forwards ports, for API servers without nodes.

The API server connects to it over TLS as to a real one, and relays the WebSocket of the client. A
client may take it for an API server, too, that does nothing else.
"""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiohttp import WSMsgType, web

from fairlead.kube.client import KubeApi
from fairlead_testing.http.certificates import CertificateAuthority

NODE = "forwarding"
PROTOCOL = "v4.channel.k8s.io"
Address = int | Path
"""A TCP port on loopback, or a unix socket."""
_TURNS_TO_CLOSE = 4
"""Turns of the event loop in which an aborted connection closes its socket, below TLS too."""


class Kubelet:
    """Forwards ports of pods to `targets`: (pod, port) → address. Use as a context manager.

    An unknown port is an error on the error channel, as from a real kubelet.
    """

    def __init__(self, folder: Path, targets: Mapping[tuple[str, int], Address]) -> None:
        self._targets = targets
        self._tls = CertificateAuthority(folder).issue("kubelet").server_context()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self.port = 0
        self.forwarded: list[tuple[str, int]] = []
        self._transports: list[asyncio.Transport] = []

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def register(self, api: KubeApi) -> None:
        """Creates the node, which pods name as `spec.nodeName`."""
        node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        await api.apply(node, "test")
        node["status"] = {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.port}},
        }
        await api.apply_status(node, "test")

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/portForward/{namespace}/{pod}", self._forward)
        app.router.add_get("/api/v1/namespaces/{namespace}/pods/{pod}/portforward", self._forward)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        """Ends the server, and every connection of the loop.

        Why: a connection that is not closed is reported when it is collected, in any later test.
        """
        assert self._runner is not None
        await self._runner.cleanup()
        for transport in self._transports:
            transport.abort()  # a client that does not answer the end of TLS would keep it open
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    async def _forward(self, request: web.Request) -> web.WebSocketResponse:
        pod, port = request.match_info["pod"], int(request.query.get("port") or request.query["ports"])
        self.forwarded.append((pod, port))
        if request.transport is not None:  # the server forgets it when it begins to close it
            self._transports.append(request.transport)
        client = web.WebSocketResponse(protocols=(PROTOCOL,))
        await client.prepare(request)
        for channel in (0, 1):
            await client.send_bytes(bytes([channel]) + port.to_bytes(2, "little"))
        target = self._targets.get((pod, port))
        if target is None:
            await client.send_bytes(b"\1" + f"nothing listens on port {port} of {pod}".encode())
            await client.close()
            return client
        opened = asyncio.open_unix_connection(target) if isinstance(target, Path) else _loopback(target)
        reader, writer = await opened
        try:
            await _first(_copy_back(reader, client.send_bytes), _copy_out(client, writer))
        finally:
            writer.close()
            try:
                await client.close()
                with contextlib.suppress(ConnectionError):
                    await writer.wait_closed()
            finally:
                writer.transport.abort()
        return client


async def _loopback(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def _first(*directions: Any) -> None:
    """Runs both directions until one of them ends."""
    tasks = [asyncio.ensure_future(direction) for direction in directions]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _copy_back(reader: asyncio.StreamReader, send: Callable[[bytes], Awaitable[None]]) -> None:
    while data := await reader.read(65_536):
        await send(b"\0" + data)


async def _copy_out(client: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        async for message in client:
            if message.type is WSMsgType.BINARY and message.data[0] == 0:
                writer.write(message.data[1:])
                await writer.drain()
