"""Clients that send requests and never read the answers, before a gateway with its default limits.

The answers to each client are some 200 KB: more than the kernel takes for a connection. Those to
all clients are more than a worker may have unsent. The clients are sockets of this process. The
gateway is a process of its own, so that its memory is measured apart.

The worker closes a connection 30 s after it has begun to answer. So the time until the last one is
closed also has the time in which the worker answers, some seconds where it has a processor.

The clients come twice. The second time shows whether the gateway needs more memory each time.

Fewer clients come before another gateway, and each begins a stream that never ends. The memory of
its worker is compared with that before, as soon as an idle worker has returned what was freed.
"""

import asyncio
import contextlib
import resource
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fairlead.fleet.file import write_fleet_file
from fairlead.fleet.model import Fleet, Instance, Model, SloTargets
from fairlead.runtime import process_tuning
from fairlead_testing.engines.scripted import EngineCall, event, scripted_engine, token
from fairlead_testing.gateway.gateway_process import gateway_process
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.http.raw_client import post_request

CLIENTS = 5_000
STREAM_CLIENTS = 200
_MODELS = 500
_LISTS = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n" * 5
_STREAM = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
_EVENTS_AT_ONCE = 10
_RELEASE_SECONDS = 10.0
_RECEIVE_BUFFER_BYTES = 4_096
_CONNECT_SECONDS = 30.0
_MAX_WAIT_SECONDS = 120.0
_OWN_DESCRIPTORS = 512
_TIMES = 2


@dataclass(frozen=True, slots=True)
class UnreadResult:
    """The result of a run.

    clients: the connections that were opened each time.
    closed_seconds: from the last connect until the last connection was closed; None if some were
        still open after two minutes.
    still_open: connections that were open 60 seconds after the last connect.
    peak_growth_bytes: the largest memory of the worker, beyond that before the first connect.
    second_growth_bytes: the growth of that by the second time.
    kept_share: the memory of the worker ten seconds after the last time, by that before.
    """

    clients: int
    closed_seconds: float | None
    still_open: int
    peak_growth_bytes: int
    second_growth_bytes: int
    kept_share: float


def measure(clients: int = CLIENTS, limit_seconds: float = 60.0) -> UnreadResult:
    """Runs a gateway and the clients; fewer of them if the system allows too few open files."""
    process_tuning.raise_open_file_limit()
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        clients = min(clients, soft - _OWN_DESCRIPTORS)
    return asyncio.run(_measure(_fleet(), _LISTS, clients, limit_seconds))


def measure_streams(clients: int = STREAM_CLIENTS, limit_seconds: float = 60.0) -> UnreadResult:
    """Runs a gateway, an engine and the clients of streams that never end."""
    return asyncio.run(_measure_streams(clients, limit_seconds))


async def _measure_streams(clients: int, limit_seconds: float) -> UnreadResult:
    async with scripted_engine(_never_ending) as engine:
        request = post_request(_STREAM, close=False)
        return await _measure(fleet_of([engine.url]), request, clients, limit_seconds)


async def _never_ending(call: EngineCall) -> None:
    """Sends events until the gateway takes no more."""
    await call.start_stream()
    events = event(token("a few words of an answer")) * _EVENTS_AT_ONCE
    while True:
        await call.chunk(events)
        await asyncio.sleep(0)


async def _measure(fleet: Fleet, requests: bytes, clients: int, limit_seconds: float) -> UnreadResult:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fleet.yaml"
        write_fleet_file(path, fleet)
        async with gateway_process(path, "--workers", "1") as gateway:
            (worker,) = gateway.worker_pids()
            host, port = urlsplit(gateway.url).hostname or "", urlsplit(gateway.url).port or 0
            peaks = [_memory_bytes(worker, "VmRSS")]
            closed: list[float | None] = []
            still_open = 0
            for _ in range(_TIMES):
                seconds, opened = await asyncio.to_thread(_run_clients, (host, port), requests, clients, limit_seconds)
                closed.append(seconds)
                still_open = max(still_open, opened)
                peaks.append(_memory_bytes(worker, "VmHWM"))
            await asyncio.sleep(_RELEASE_SECONDS)
            kept = _memory_bytes(worker, "VmRSS")
    known = [seconds for seconds in closed if seconds is not None]
    before, first, second = peaks
    closed_seconds = max(known) if len(known) == _TIMES else None
    return UnreadResult(clients, closed_seconds, still_open, first - before, second - first, kept / before)


def _run_clients(
    address: tuple[str, int], requests: bytes, clients: int, limit_seconds: float
) -> tuple[float | None, int]:
    """Returns when the last connection was closed, and how many were open after the limit."""
    with contextlib.ExitStack() as stack, select.epoll() as events:
        left: set[int] = set()
        for connection in _connect(address, requests, clients, stack):
            events.register(connection, select.EPOLLRDHUP)  # a reset is reported in any case
            left.add(connection.fileno())
        started = time.monotonic()
        still_open = clients
        while left and (seconds := time.monotonic() - started) < _MAX_WAIT_SECONDS:
            for descriptor, _ in events.poll(0.2):
                events.unregister(descriptor)
                left.discard(descriptor)
            if seconds < limit_seconds:
                still_open = len(left)
        return None if left else time.monotonic() - started, still_open


def _connect(
    address: tuple[str, int], requests: bytes, clients: int, stack: contextlib.ExitStack
) -> Iterator[socket.socket]:
    """Yields connections that have sent their requests."""
    for _ in range(clients):
        connection = stack.enter_context(socket.socket())
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect(address)
        connection.sendall(requests)
        yield connection


def _fleet() -> Fleet:
    """Returns many models, so that their list is long. Their instances are never asked."""
    models = [Model("default", f"model-{number:04}", SloTargets(), "dual-hash") for number in range(_MODELS)]
    instances = {
        model.key: (Instance(f"{model.name}/0/0", "default", model.name, "main", "http://127.0.0.1:9"),)
        for model in models
    }
    return Fleet(1, 1, {model.key: model for model in models}, instances)


def _memory_bytes(pid: int, field: str) -> int:
    """Returns a line of the process's status, such as VmRSS."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(f"{field}:"))
