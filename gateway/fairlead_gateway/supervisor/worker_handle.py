"""The supervisor's handle of one worker: process, IPC channel, queries and the last report.

Each query has a deadline. A worker that misses it is *unresponsive*: warnings name it, and it gets
no further query until the late reply has arrived. So nothing waits for it twice. A worker that
stays unresponsive is killed.
"""

import asyncio
import logging
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import msgspec

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.ipc import messages as say
from fairlead_gateway.ipc.channel import Channel
from fairlead_gateway.ipc.messages import WORKER_QUERY_SECONDS, AccessReport, QuotaReport, TimingEvents, UsageRows
from fairlead_gateway.supervisor.worker_spawn import SpawnedWorker
from fairlead_gateway.telemetry.snapshot import ModelSnapshot

WORKER_FROZEN_SECONDS: Final = 30.0
"""Limit: a worker without an answer for this long is killed, and a drain ends early without any
answer.
"""

T = TypeVar("T")
_log = logging.getLogger("fairlead.gateway")


RoutedMessage: TypeAlias = say.IndexReport | say.PromptSamples | QuotaReport | UsageRows | AccessReport
"""The messages that a worker's handle only passes on."""


@dataclass(slots=True)
class WorkerListener:
    """The callbacks of a worker's handle."""

    on_ready: Callable[["WorkerHandle"], None]
    on_fleet_applied: Callable[["WorkerHandle"], None]
    on_leaving: Callable[["WorkerHandle"], None]
    on_report: Callable[["WorkerHandle", say.WorkerReport], None]
    on_message: Callable[["WorkerHandle", RoutedMessage], None]
    on_timings: Callable[[TimingEvents], None]
    on_needs_instance: Callable[[str], None]
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

    def __init__(
        self, number: int, row: int, spawned: SpawnedWorker, listener: WorkerListener, clock: Clock, limits: Limits
    ) -> None:
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
        self._channel: Channel[say.FromWorker] = Channel(
            say.FromWorker, self._on_message, self._on_channel_closed, limits
        )
        self._reaping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Opens the IPC channel."""
        await self._channel.open(self._sock)

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message. Returns False when the channel dropped it."""
        return self._channel.send(message)

    def send_encoded(self, message: bytes) -> bool:
        """Sends a message that was encoded once for several workers, like `send`."""
        return self._channel.send_encoded(message)

    @property
    def unsent_bytes(self) -> int:
        """Bytes of sent messages that the system's buffers have not taken yet."""
        return self._channel.unsent_bytes

    @property
    def is_connected(self) -> bool:
        """Whether the IPC channel is open."""
        return self._channel.is_open

    @property
    def is_serving(self) -> bool:
        """Whether the worker accepts new connections."""
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
            case say.WorkerReport():
                if message.loads is not None:
                    self.loads = message.loads
                self._listener.on_report(self, message)
            case say.IndexReport() | say.PromptSamples() | QuotaReport() | UsageRows() | AccessReport():
                self._listener.on_message(self, message)
            case TimingEvents():
                self._listener.on_timings(message)
            case say.NeedsInstance(model):
                self._listener.on_needs_instance(model)
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
