"""Ports of pods, forwarded to this machine through the API server as ``kubectl port-forward`` does.

Each local connection has a WebSocket of its own with the protocol ``v4.channel.k8s.io``. A binary
message begins with the number of its channel: 0 is data, 1 is for errors of the node. The first
message of each channel from the node is the port, two bytes.

Why not the API server's HTTP proxy: it drops the header Authorization, needs a network path to the
pod, and carries no Redis. A forwarded connection ends on the pod's own loopback interface.

Source: ``portforward/websocket.go`` of the kubelet.
"""

import asyncio
import contextlib
import socket as socketlib
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import aiohttp
from yarl import URL

from fairlead.errors import BadInput, FairleadError
from fairlead.kube.client import KUBE_TOKEN_SECONDS
from fairlead.kube.resources import PODS
from fairlead.kube.transport.credentials import ClusterCredentials
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.kube.transport.watch_stream import CONNECTION_ERRORS
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.access.connection import CLI_LIMITS
from fairlead_cli.console import terminal_text
from fairlead_cli.exit_codes import ClusterUnreachable

_PROTOCOL: Final = "v4.channel.k8s.io"
_DATA, _ERROR = 0, 1
_PORT_BYTES: Final = 2
_CHUNK_BYTES: Final = 32 * 1024
_CLOSE_SECONDS: Final = 5.0
_TURNS_TO_CLOSE: Final = 5  # of the event loop, in which ended connections are closed
_Result = TypeVar("_Result")
_WebSocket = aiohttp.ClientWebSocketResponse


@dataclass(frozen=True, slots=True)
class PodPort:
    """A TCP port of a pod."""

    namespace: str
    pod: str
    port: int

    def __str__(self) -> str:
        return f"port {self.port} of pod {self.namespace}/{self.pod}"


class ForwardedPorts:
    """Ports of pods on the loopback interface, forwarded by the running event loop until `close`.

    on_error: takes an error of a connection that was forwarded.
    """

    def __init__(self, access: ClusterConfig, on_error: Callable[[FairleadError], None]) -> None:
        self._access = access
        self._on_error = on_error
        self._credentials = ClusterCredentials(access, SystemClock(), KUBE_TOKEN_SECONDS)
        self._session: aiohttp.ClientSession | None = None
        self._servers: list[asyncio.Server] = []
        self._relays: set[asyncio.Task[Any]] = set()

    async def open(self, target: PodPort) -> int:
        """Forwards a local port to a pod's port, and returns the local port.

        Raises BadInput without the right to forward ports, ClusterUnreachable when the pod cannot
        be reached.
        """
        first = [await self._connect(target)]  # a refusal is an error now, not at the first request

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._relays.add(task)
            try:
                await _relay(reader, writer, first.pop() if first else await self._connect(target), target)
            except FairleadError as error:
                self._on_error(error)
            except asyncio.CancelledError:
                pass  # close cancels it; Python 3.11 reports a cancelled handler as an exception
            finally:
                self._relays.discard(task)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        relays = list(self._relays)
        for task in relays:
            task.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        for _ in range(_TURNS_TO_CLOSE):
            await asyncio.sleep(0)

    async def _connect(self, target: PodPort) -> _WebSocket:
        path = f"{PODS.path(target.namespace, target.pod, 'portforward')}?ports={target.port}"
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            jar, proxy = aiohttp.DummyCookieJar(), self._access.proxy_url
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, proxy=proxy)
        try:
            async with asyncio.timeout(CLI_LIMITS.kube_response_seconds):
                return await self._session.ws_connect(
                    URL(f"{self._access.server}{path}", encoded=True),
                    protocols=(_PROTOCOL,),
                    headers=list(self._credentials.headers()),
                    ssl=self._credentials.tls_context(),
                    server_hostname=self._access.server_name,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise _refusal(target, error.status) from None
        except CONNECTION_ERRORS as error:
            raise ClusterUnreachable(
                f"the API server {self._access.server} does not forward {target}: {error or type(error).__name__}",
                hint="is the cluster up, and reachable from here?",
            ) from None


class PortForwarder:
    """A forwarder of pod ports with a thread of its own, so that callers may block or have an event
    loop. Use as a context manager.
    """

    def __init__(self, access: ClusterConfig) -> None:
        self._ports = ForwardedPorts(access, _print_error)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="port-forward", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._ports.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSE_SECONDS)
        self._loop.close()

    def open(self, target: PodPort) -> int:
        return self._call(self._ports.open(target))

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _print_error(error: FairleadError) -> None:
    print(terminal_text(f"fairlead: {error}"), file=sys.stderr)


def _refusal(target: PodPort, status: int) -> FairleadError:
    if status in (401, 403):
        return BadInput(
            f"you may not forward ports of pods in {target.namespace}",
            hint=f"you need the verbs get and create on pods/portforward in {target.namespace}",
        )
    reason = "it does not exist" if status == 404 else f"status {status}"
    return ClusterUnreachable(f"the API server does not forward {target}: {reason}", hint="does the pod run?")


async def _relay(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, socket: _WebSocket, target: PodPort
) -> None:
    """Copies both directions until one side ends. Raises ClusterUnreachable with an error of the
    node.
    """
    connected = socket.get_extra_info("socket")
    sending = asyncio.ensure_future(_send(reader, socket))
    try:
        await _receive(socket, writer, target)
    except ConnectionError:
        pass  # the local side left
    finally:
        sending.cancel()
        try:
            await socket.close()
        finally:
            _end_connection(connected)


def _end_connection(connected: Any) -> None:
    """Ends a connection of a WebSocket that is closed.

    Why: a TLS transport that is closed waits for the peer, longer than the loop may run.
    """
    with contextlib.suppress(OSError):  # it has ended already
        connected.shutdown(socketlib.SHUT_RDWR)


async def _send(reader: asyncio.StreamReader, socket: _WebSocket) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            await socket.send_bytes(bytes([_DATA]) + data)
    except CONNECTION_ERRORS:
        pass
    await socket.close()  # the protocol has no half-closed connections


async def _receive(socket: _WebSocket, writer: asyncio.StreamWriter, target: PodPort) -> None:
    announced: set[int] = set()
    async for message in socket:
        if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
            continue
        channel, content = message.data[0], message.data[1:]
        if channel not in announced:
            announced.add(channel)
            content = content[_PORT_BYTES:]
        if channel == _ERROR and content:
            raise ClusterUnreachable(f"{target}: {content.decode('utf-8', 'replace').strip()}")
        if channel == _DATA and content:
            writer.write(content)
            await writer.drain()
