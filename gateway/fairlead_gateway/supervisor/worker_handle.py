"""The supervisor's handle of one worker: process, IPC channel, queries and the last report.

Each query has a deadline. A worker that misses it is *unresponsive*: warnings name it, and it gets
no further query until the late reply has arrived. So nothing waits for it twice. A worker that
stays unresponsive is killed.

Merges the reports of several workers: health states, loads, counters and loop lag.

Each worker runs its own outlier detection. The merged health state of an instance is the worst,
with the number of workers that report it. An ejection record is reported if no worker had an answer
since.

Starts worker processes.

Why: this is the first thing that a gateway does, so the module imports little.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Final, TypeAlias, TypeVar

import msgspec

from fairlead.fleet.hung_engines import EjectionReport
from fairlead.runtime.clock import Clock
from fairlead.runtime.compiled_build import worker_environment
from fairlead.runtime.loop_lag import LoopLag
from fairlead.settings import VARIABLE_PREFIX, GatewaySettings, variable_name
from fairlead_gateway import messages as say
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.ipc.channel import Channel
from fairlead_gateway.kv_index.messages import PromptSamples
from fairlead_gateway.limits.messages import QuotaReport
from fairlead_gateway.messages import SHARED_SLOTS, WORKER_QUERY_SECONDS
from fairlead_gateway.telemetry.snapshot import ModelSnapshot
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.tenants.messages import AccessReport

_MODULE = "fairlead_gateway.worker.__main__"
_EXIT_SECONDS = 10.0
ROWS_PER_WORKER = 2
"""Rows of the shared load table per worker: its own, and its replacement's while it drains."""
_WORKER_VARIABLES = frozenset(
    [
        variable_name(item.name)
        for item in fields(GatewaySettings)
        if not item.metadata["secret"] or item.name == "trace_headers"
    ]
)
"""All settings but the supervisor's secrets. Workers send spans, so they get their headers."""
_CLUSTER_PREFIXES = ("KUBERNETES_", "KUBECONFIG")

WORKER_FROZEN_SECONDS: Final = 30.0
"""Limit: a worker without an answer for this long is killed, and a drain ends early without any
answer.
"""

T = TypeVar("T")

RoutedMessage: TypeAlias = say.WorkerReport | PromptSamples | QuotaReport | AccessReport | say.NeedsInstance
"""The messages that a worker's handle passes on."""

_HEALTHY = (HealthState.HEALTHY.value, "")
_WORST_FIRST = (HealthState.EJECTED.value, HealthState.PROBING.value, HealthState.WARMING.value)


@dataclass(slots=True)
class SpawnedWorker:
    """A process that was started, and the supervisor's end of its IPC channel."""

    process: subprocess.Popen[bytes]
    channel_socket: socket.socket


def spawn_worker(
    number: int,
    shared_memory_fd: int | None,
    environ: Mapping[str, str],
    *,
    inherits_stdout: bool = False,
    sibling_port: socket.socket | None = None,
) -> SpawnedWorker:
    """Starts a worker process.

    number: the worker's number, from 1.
    shared_memory_fd: the shared load table; None for a single worker without peers.
    sibling_port: where it listens for requests of other workers; None for a single worker.
    inherits_stdout: if False, the worker's standard output is the null device. Then a reader of the
        gateway's output does not wait for the workers' end.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [sys.executable, "-m", _MODULE, "--number", str(number), "--channel", str(theirs.fileno())]
        fds = [theirs.fileno()]
        if shared_memory_fd is not None:
            command += ["--rows", str(shared_memory_fd)]
            fds.append(shared_memory_fd)
        if sibling_port is not None:
            command += ["--sibling-port", str(sibling_port.fileno())]
            fds.append(sibling_port.fileno())
        try:
            stdout = None if inherits_stdout else subprocess.DEVNULL
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, pass_fds=fds, env=environ)
        except OSError:
            ours.close()
            raise
    return SpawnedWorker(process, ours)


class PreforkedWorkers:
    """Workers that start before anything else, and import their modules while the supervisor does.

    has_peers: the shared load table has a row for the load from other gateways.
    sibling_ports: listening sockets on which workers get requests of each other, by their numbers.

    Why the supervisor holds them: connections wait there until a worker has been replaced.
    """

    def __init__(
        self, count: int, *, inherits_stdout: bool = False, has_peers: bool = False, slots: int = SHARED_SLOTS
    ) -> None:
        self.count = count
        self.has_peers = has_peers
        self.inherits_stdout = inherits_stdout
        self.shared_memory_fd: int | None = None
        self.environ = narrow_environment(worker_environment(os.environ))  # once: it reads every source file
        self.spawned: list[SpawnedWorker] = []
        self.sibling_ports = [ListenAddress("127.0.0.1", 0).bind() for _ in range(count if count > 1 else 0)]
        if count > 1 or has_peers:
            from fairlead_gateway.routing.load.shared_memory import table_bytes

            self.shared_memory_fd = _create_shared_memory(table_bytes(shared_row_count(count), slots))
        try:
            self.spawned.extend(self.spawn(number) for number in range(1, count + 1))
        except OSError:
            self.close()
            raise

    def spawn(self, number: int) -> SpawnedWorker:
        """Starts a worker with this number. Raises OSError."""
        return spawn_worker(
            number,
            self.shared_memory_fd,
            self.environ,
            inherits_stdout=self.inherits_stdout,
            sibling_port=self.sibling_ports[number - 1] if self.sibling_ports else None,
        )

    def close(self) -> None:
        """Ends the workers that no pool has taken, and closes the shared descriptors.

        Closes their channels, and kills a worker that still runs after `_EXIT_SECONDS`.
        """
        waiting, self.spawned = self.spawned, []
        for worker in waiting:
            worker.channel_socket.close()
        for worker in waiting:
            try:
                worker.process.wait(_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        for port in self.sibling_ports:
            port.close()
        if self.shared_memory_fd is not None:
            os.close(self.shared_memory_fd)
            self.shared_memory_fd = None


def narrow_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns a worker's environment, without the supervisor's secrets and the way to a cluster.

    Variables of other programs stay, since a fleet may name any of them as an engine's token.
    """
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith(_CLUSTER_PREFIXES)
        and (name in _WORKER_VARIABLES or not name.startswith(VARIABLE_PREFIX))
    }


def shared_row_count(count: int) -> int:
    return count * ROWS_PER_WORKER + 1


def _create_shared_memory(size: int) -> int:
    """Returns the file descriptor of shared memory of `size` zero bytes.

    On Linux, its size is sealed.

    Why: a process that reads memory beyond the end of its file is killed. So a worker that shortens
    the file would end the supervisor and its siblings.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("fairlead-rows", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        with contextlib.suppress(OSError):  # a sandbox without seals
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor
    import tempfile

    with tempfile.TemporaryFile() as file:
        descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


_log = logging.getLogger("fairlead.gateway")


@dataclass(slots=True)
class WorkerListener:
    """The callbacks of a worker's handle."""

    on_ready: Callable[["WorkerHandle"], None]
    on_fleet_applied: Callable[["WorkerHandle"], None]
    on_leaving: Callable[["WorkerHandle"], None]
    on_message: Callable[["WorkerHandle", RoutedMessage], None]
    on_exit: Callable[["WorkerHandle"], None]


@dataclass(slots=True)
class _PendingQuery:
    sent_at: float
    reply: asyncio.Future[list[bytes] | None]
    chunks: list[bytes] = field(default_factory=list)


class WorkerHandle:
    """The supervisor's handle of one worker process.

    number: shown in logs and metrics; a replacement has the same number.
    row: index of the worker's row in the shared load table.
    """

    def __init__(self, number: int, row: int, spawned: SpawnedWorker, listener: WorkerListener, clock: Clock) -> None:
        self.number = number
        self.row = row
        self.process = spawned.process
        self.started_at = clock.now()
        self.is_ready = False
        self.is_leaving = False
        self.start_error: str | None = None
        self.fleet_version = -1
        self.fleet_problem: str | None = None
        self.needs_resync = False  # a message was dropped
        self.sent_final_counters = False
        self.unresponsive_since: float | None = None
        self._silent_seconds = 0.0
        self.model_counters: dict[str, ModelSnapshot] = {}
        self.non_model_counters: dict[str, int] = {}
        self.loads: Mapping[str, say.EncodedLoad] = {}
        self.exited: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._sock = spawned.channel_socket
        self._listener = listener
        self._clock = clock
        self._pending_queries: dict[int, _PendingQuery] = {}
        self._query_count = 0
        self._channel: Channel[say.FromWorker] = Channel(say.FromWorker, self._on_message, self._on_channel_closed)
        self._reaping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._channel.open(self._sock)

    def send(self, message: msgspec.Struct) -> bool:
        return self._channel.send(message)

    def send_encoded(self, message: bytes) -> bool:
        return self._channel.send_encoded(message)

    @property
    def unsent_bytes(self) -> int:
        return self._channel.unsent_bytes

    @property
    def is_connected(self) -> bool:
        return self._channel.is_open

    @property
    def is_serving(self) -> bool:
        return self.is_ready and not self.is_leaving and not self.exited.done()

    async def query(self, make_query: Callable[[int], say.Query], kind: type[T]) -> list[T] | None:
        """Sends a query and returns the chunks of the worker's reply.

        None when the worker is not ready, misses the deadline, fails, or is unresponsive since an
        earlier query, and when the channel drops the query.
        """
        if not self.is_ready or self.exited.done() or self.unresponsive_since is not None:
            return None
        self._query_count += 1
        number = self._query_count
        pending = _PendingQuery(self._clock.now(), asyncio.get_running_loop().create_future())
        self._pending_queries[number] = pending
        if not self._channel.send(make_query(number)):
            del self._pending_queries[number]
            return None
        await asyncio.wait({pending.reply}, timeout=WORKER_QUERY_SECONDS)
        if not pending.reply.done():
            self.unresponsive_since = pending.sent_at
            _log.warning("worker %d does not answer", self.number)
            return None
        chunks = pending.reply.result()
        if chunks is None:
            return None
        return [msgspec.msgpack.decode(chunk, type=kind) for chunk in chunks if chunk]

    def kill(self) -> None:
        """Kills the process; `exited` completes when it has ended."""
        if self.process.poll() is None:
            self.process.kill()
        self._start_reaping()

    def count_silence(self, seconds: float) -> None:
        """Counts time in which the worker is unresponsive; after `worker_frozen_seconds`, kills it.

        seconds: since the last call; time in which this process itself has run.

        Why: a worker that hangs still gets its share of new connections, and answers none. A pause
        of the machine does not count, since the worker then goes on like this process.
        """
        self._silent_seconds = 0.0 if self.unresponsive_since is None else self._silent_seconds + seconds
        if self._silent_seconds >= WORKER_FROZEN_SECONDS:
            self._silent_seconds = 0.0
            _log.error("worker %d hangs and is killed", self.number)
            self.kill()

    def exit_cause(self) -> str:
        """Returns why the process ended, as text."""
        code = self.process.returncode
        if self.start_error is not None:
            return self.start_error
        return f"killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"

    # Messages from the worker --------------------------------------------------------------------------------------------

    def _on_message(self, message: say.FromWorker) -> None:
        match message:
            case say.WorkerReport() | PromptSamples() | QuotaReport() | AccessReport() | say.NeedsInstance():
                if isinstance(message, say.WorkerReport) and message.loads is not None:
                    self.loads = message.loads
                self._listener.on_message(self, message)
            case say.ReplyChunk():
                self._on_reply_chunk(message)
            case say.FleetApplied(version, problem):
                self.fleet_version, self.fleet_problem = version, problem
                self._listener.on_fleet_applied(self)
            case say.WorkerReady(version):
                self.is_ready, self.fleet_version = True, version
                self._listener.on_ready(self)
            case say.DrainRequested():
                self.is_leaving = True
                self._listener.on_leaving(self)
            case say.FinalCounters(models, own):
                self.model_counters = {part.key: part for part in models}
                self.non_model_counters, self.sent_final_counters = own, True
            case say.StartFailed(text):
                self.start_error = text

    def _on_reply_chunk(self, chunk: say.ReplyChunk) -> None:
        pending = self._pending_queries.get(chunk.query_id)
        if pending is None:
            return
        pending.chunks.append(chunk.data)
        if chunk.last:
            del self._pending_queries[chunk.query_id]
            if self.unresponsive_since is not None and not self._pending_queries:
                _log.info("worker %d answers again", self.number)
                self.unresponsive_since = None
            pending.reply.set_result(None if chunk.has_failed else pending.chunks)

    def _on_channel_closed(self) -> None:
        """Fails open queries and waits for the end of the process, which closed its channel."""
        self.is_ready = False
        for pending in self._pending_queries.values():
            pending.reply.set_result(None)
        self._pending_queries.clear()
        self._start_reaping()

    def _start_reaping(self) -> None:
        if not self.exited.done() and self._reaping is None:
            self._reaping = asyncio.get_running_loop().create_task(self._reap())

    async def _reap(self) -> None:
        code = await asyncio.get_running_loop().run_in_executor(None, self._wait_for_exit)
        self._channel.close()
        self.exited.set_result(code)
        self._listener.on_exit(self)

    def _wait_for_exit(self) -> int:
        try:
            return self.process.wait(WORKER_QUERY_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def merge_health_states(reported: Sequence[Mapping[str, tuple[str, str]]]) -> Callable[[str], tuple[str, str]]:
    """Returns a function that maps an instance to (health state, reason).

    reported: each worker's (health state, reason) by instance, without healthy instances.
    """

    def health_of(instance: str) -> tuple[str, str]:
        reports = [report[instance] for report in reported if instance in report]
        if not reports:
            return _HEALTHY
        state, reason = min(reports, key=lambda report: _WORST_FIRST.index(report[0]))
        agreeing = sum(report[0] == state for report in reports)
        return state, reason if len(reported) == 1 else f"{reason} ({agreeing} of {len(reported)} workers)"

    return health_of


def merge_ejections(
    states: Sequence[say.WorkerState], now: float, progress_times: Mapping[str, float] | None = None
) -> dict[str, EjectionReport]:
    """Returns the ejection of each instance that has answered no worker since.

    The time is that of the latest ejection, the failed probes are those of all workers.

    progress_times: when each instance was last seen to compute tokens. The time counts from there.

    Why: a full engine can keep probes waiting while it works for plain requests, which show
    nothing before their end. It does not hang.
    """
    progressed = progress_times or {}
    merged: dict[str, EjectionReport] = {}
    for instance in dict.fromkeys(name for state in states for name in state.ejections):
        found = [state.ejections[instance] for state in states if instance in state.ejections]
        latest = max(found, key=lambda ejection: ejection.since)
        if all(state.answer_times.get(instance, latest.since) <= latest.since for state in states):
            failed_probes = sum(ejection.failed_probes for ejection in found)
            since = max(latest.since, progressed.get(instance, latest.since))
            merged[instance] = EjectionReport(max(0.0, now - since), latest.cause, failed_probes, len(found))
    return merged


def merge_answer_times(states: Sequence[say.WorkerState]) -> dict[str, float]:
    """Returns when each instance answered any worker last, in monotonic seconds."""
    merged: dict[str, float] = {}
    for state in states:
        for instance, answered_at in state.answer_times.items():
            merged[instance] = max(answered_at, merged.get(instance, answered_at))
    return merged


def merge_adapters(workers: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, frozenset[str]]:
    """Returns the LoRA adapters of each instance that any worker knows to be loaded."""
    merged: dict[str, frozenset[str]] = {}
    for adapters in workers:
        for instance, names in adapters.items():
            merged[instance] = merged.get(instance, frozenset()).union(names)
    return merged


def merge_loads(workers: Iterable[Mapping[str, say.EncodedLoad]]) -> dict[str, say.EncodedLoad]:
    """Returns the loads of all workers, added up by instance."""
    totals: dict[str, say.EncodedLoad] = {}
    for loads in workers:
        for instance, load in loads.items():
            known = totals.get(instance)
            totals[instance] = load if known is None else _add_loads(known, load)
    return totals


def merge_counts(workers: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Returns the counts of all workers, added up by name."""
    totals: dict[str, int] = {}
    for counts in workers:
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
    return totals


def _add_loads(one: say.EncodedLoad, other: say.EncodedLoad) -> say.EncodedLoad:
    return say.EncodedLoad(
        one.inflight + other.inflight,
        one.waiting + other.waiting,
        one.backlog_seconds + other.backlog_seconds,
        one.inflight_tokens + other.inflight_tokens,
        one.queued + other.queued,
    )


def _without_windows(models: dict[str, ModelSnapshot]) -> dict[str, ModelSnapshot]:
    """Removes the counts of the last minute from the snapshots, and returns the same snapshots.

    Why: these counts would not age, since only the worker itself moves its window on.
    """
    for part in models.values():
        part.window = None
        for instance in part.instances.values():
            instance.window = None
    return models


class MaxLoopLag(LoopLag):
    """The lag of the slowest of several event loops, by quantile."""

    def __init__(self, reported: Sequence[Sequence[tuple[float, float]]]) -> None:
        super().__init__(max_samples=1)
        self._reported = [dict(quantiles) for quantiles in reported]

    def quantile(self, share: float) -> float | None:
        """Returns the lag in seconds; None when no worker has reported this quantile."""
        return max((quantiles[share] for quantiles in self._reported if share in quantiles), default=None)
