"""The pool of worker processes: start, messages, queries, restart after a crash, drain.

Every worker has a number from 1 and, while it runs, a row of the shared load table. After a crash,
the pool waits before it starts a replacement. The pause doubles with each crash within
`_STABLE_SECONDS` of a start, up to `max_worker_restart_seconds`. A worker that gets SIGTERM is
replaced first; then it drains, for as long as its requests take. The pool keeps the counters of
workers that have ended.

Assigns each instance its slot in the rows of the shared load table.

An instance that left the fleet keeps its slot for at least a minute, and until the slot is zero in
every worker's row.

Why: by then every worker has the new fleet, or has been unresponsive for so long that its load is
unknown anyway.
"""

import asyncio
import logging
import mmap
import signal
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec

from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.units import format_duration
from fairlead_gateway import messages as say
from fairlead_gateway.ipc.channel import CHANNEL_PENDING_BYTES, encode_message
from fairlead_gateway.kv_index.messages import IndexedModels
from fairlead_gateway.messages import DRAIN_END_SECONDS, SHARED_SLOTS, WORKER_QUERY_SECONDS
from fairlead_gateway.peers.messages import PeerUpdates
from fairlead_gateway.peers.peer_messages import PeerLoadRow
from fairlead_gateway.routing.load import shared_memory
from fairlead_gateway.supervisor.worker_handle import (
    ROWS_PER_WORKER,
    WORKER_FROZEN_SECONDS,
    PreforkedWorkers,
    RoutedMessage,
    SpawnedWorker,
    WorkerHandle,
    WorkerListener,
    _without_windows,
    merge_counts,
    merge_loads,
    shared_row_count,
)
from fairlead_gateway.telemetry.snapshot import ModelSnapshot, sum_snapshots

_RETIRED_SECONDS = 60.0
_NO_UPDATES = PeerUpdates()

WORKER_START_SECONDS: Final = 60.0
"""Limit: a worker that does not listen by then is killed and started again."""
WORKER_RESTART_SECONDS: Final = 0.1
"""Limit: pause before a crashed worker is started again; doubles each time."""
MAX_WORKER_RESTART_SECONDS: Final = 10.0
"""Limit: longest pause before a worker is started again; ten seconds of life reset it."""

T = TypeVar("T")

_CRASH_WARNING_SECONDS = 60.0
_DRAIN_POLL_SECONDS = 0.02
_STABLE_SECONDS = 10.0  # a crash after this time begins a new streak


class SlotAllocator:
    """The slots of the shared load table, by instance.

    is_idle: returns whether a slot is zero in all rows.
    """

    def __init__(self, count: int, is_idle: Callable[[int], bool]) -> None:
        self._is_idle = is_idle
        self._free = list(range(count - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._left_at: dict[str, float] = {}

    def assign(self, fleet: Fleet, now: float) -> dict[str, int]:
        """Returns the slots by instance, including instances that left recently.

        Instances beyond the number of slots get none.
        """
        present = {instance.id for instances in fleet.instances.values() for instance in instances}
        for instance_id in self._slots:
            if instance_id in present:
                self._left_at.pop(instance_id, None)
            else:
                self._left_at.setdefault(instance_id, now)
        for instance_id, left_at in list(self._left_at.items()):
            if now - left_at >= _RETIRED_SECONDS and self._is_idle(self._slots[instance_id]):
                self._free.append(self._slots.pop(instance_id))
                del self._left_at[instance_id]
        for instances in fleet.instances.values():
            for instance in instances:
                if instance.id not in self._slots and self._free:
                    self._slots[instance.id] = self._free.pop()
        return dict(self._slots)


_log = logging.getLogger("fairlead.gateway")


@dataclass(frozen=True, slots=True)
class CrashRecord:
    """The unplanned end of a worker process."""

    at: float
    number: int
    cause: str


@dataclass(frozen=True, slots=True)
class WorkerPoolHooks:
    """The callbacks of a pool.

    configure: returns a worker's first message, from number, row, its siblings' rows, and slots.
    on_worker_ready: called when a new worker serves, which has no index and no profiles yet.
    access_messages: returns the messages with all API keys and tenants.
    """

    configure: Callable[[int, int, list[int], dict[str, int]], say.Configure]
    on_message: Callable[[WorkerHandle, RoutedMessage], None]
    on_worker_ready: Callable[[], None]
    on_worker_exit: Callable[[WorkerHandle], None]
    access_messages: Callable[[], Sequence[msgspec.Struct]] = tuple


class WorkerPool:
    """The worker processes of a gateway."""

    def __init__(self, preforked: PreforkedWorkers, hooks: WorkerPoolHooks, clock: Clock, limits: Limits) -> None:
        self._preforked = preforked
        self._hooks = hooks
        self._clock = clock
        self._limits = limits
        self.workers: list[WorkerHandle] = []
        self.sibling_ports = [port.getsockname()[1] for port in preforked.sibling_ports]
        self.crash_count = 0
        self.is_stopping = False
        self._started = False
        self._recent_crashes: deque[CrashRecord] = deque(maxlen=64)
        self._crash_streaks: dict[int, int] = {}
        self._exited_counters: dict[str, ModelSnapshot] = {}
        self._exited_non_model_counters: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._free_rows = list(range(preforked.count * ROWS_PER_WORKER - 1, -1, -1))
        self._load_cells = (
            None
            if preforked.shared_memory_fd is None
            else memoryview(
                mmap.mmap(
                    preforked.shared_memory_fd,
                    shared_memory.table_bytes(shared_row_count(preforked.count), SHARED_SLOTS),
                )
            ).cast("q")
        )
        self._peer_load_row = (
            PeerLoadRow(self._load_cells, SHARED_SLOTS, shared_row_count(preforked.count) - 1)
            if self._load_cells is not None and preforked.has_peers
            else None
        )
        self._slot_allocator = SlotAllocator(SHARED_SLOTS if self._load_cells is not None else 0, self._is_slot_idle)
        self._slot_of: dict[str, int] = {}
        self._fleet = Fleet()
        self._pending_fleets: deque[Fleet] = deque()
        self._applied_fleet = Fleet()

    # Start and end -------------------------------------------------------------------------------------------------------

    async def activate_and_wait(self, fleet: Fleet) -> None:
        """Configures the preforked workers and waits until all serve. To be called once.

        A worker that is not ready within `worker_start_seconds` is killed. Raises Unavailable when
        a worker ends before it is ready; the others still run until `kill_and_wait`.
        """
        self._fleet = self._applied_fleet = fleet
        self._assign_slots(fleet)
        preforked, self._preforked.spawned = self._preforked.spawned, []
        for number, spawned in enumerate(preforked, 1):
            self.workers.append(self._create_handle(number, spawned))
        first = list(self.workers)
        for worker in first:
            await self._open_worker(worker)
        await self._wait_until(
            lambda: all(worker.is_ready for worker in first) or any(worker.exited.done() for worker in first)
        )
        for worker in first:
            if worker.exited.done():
                raise Unavailable(
                    worker.start_error or f"worker {worker.number} {worker.exit_cause()} before it was ready"
                )
        self._started = True

    async def drain_then_kill(self, hurry: asyncio.Event) -> None:
        """Drains all workers, kills those that still run after it, and waits until all ended.

        The drain ends when no worker is left, or none has answered for `worker_frozen_seconds`, at
        the latest after `drain_seconds`, `drain_end_seconds` and twice `worker_query_seconds`. No
        worker is replaced any more.

        hurry: once set, the drain ends at once: requests in flight get an error.
        """
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        for worker in self.workers:
            if not worker.send(say.StartDrain()) and not worker.is_connected:
                worker.kill()  # without a channel it has no requests
        exit_seconds = DRAIN_END_SECONDS + 2 * WORKER_QUERY_SECONDS
        end = self._clock.now() + self._limits.drain_seconds + exit_seconds
        is_hurried = False
        while self._clock.now() < end and not all(self._is_frozen(worker) for worker in self.workers):
            if hurry.is_set() and not is_hurried:
                is_hurried = True
                self.broadcast(say.EndDrain())
                end = self._clock.now() + exit_seconds
            await asyncio.sleep(_DRAIN_POLL_SECONDS)
        await self.kill_and_wait()

    async def kill_and_wait(self) -> None:
        """Kills all workers and waits until they have ended."""
        self.is_stopping = True
        for task in self._tasks:
            task.cancel()
        for worker in self.workers:
            worker.kill()
        living = [worker.exited for worker in self.workers if not worker.exited.done()]
        if living:
            await asyncio.wait(living)

    def kill_frozen(self, seconds: float) -> None:
        """Kills workers that hang, so that they are replaced. See `WorkerHandle.count_silence`."""
        if not self.is_stopping:
            for worker in self.workers:
                worker.count_silence(seconds)

    def _is_frozen(self, worker: WorkerHandle) -> bool:
        since = worker.unresponsive_since
        return since is not None and self._clock.now() - since >= WORKER_FROZEN_SECONDS

    def _create_handle(self, number: int, spawned: SpawnedWorker) -> WorkerHandle:
        events = WorkerListener(
            self._on_ready,
            self._on_fleet_applied,
            self._on_leaving,
            self._on_message,
            self._on_exit,
        )
        return WorkerHandle(number, self._free_rows.pop(), spawned, events, self._clock)

    async def _open_worker(self, worker: WorkerHandle) -> None:
        await worker.open()
        worker.send(self._hooks.configure(worker.number, worker.row, self._rows_of_others(worker), self._slot_of))
        self._broadcast_active_rows()
        self._call_later(WORKER_START_SECONDS, lambda: None if worker.is_ready else worker.kill())

    # Life cycle ----------------------------------------------------------------------------------------------------------

    def _on_ready(self, worker: WorkerHandle) -> None:
        self._changed.set()
        for other in self.workers:
            if other.is_leaving and other.number == worker.number:
                other.send(say.StartDrain())
        if worker.needs_resync or worker.fleet_version != self._fleet.version:
            self._resync(worker)
        self._hooks.on_worker_ready()

    def _on_leaving(self, worker: WorkerHandle) -> None:
        self._advance_applied_fleet()
        if self.is_stopping or not self._started:
            worker.send(say.StartDrain())
            return
        _log.info("worker %d drains and is replaced", worker.number)
        self._start_replacement(worker.number, 0.0)

    def _on_exit(self, worker: WorkerHandle) -> None:
        self.workers.remove(worker)
        self._release_worker(worker)
        self._changed.set()
        self._advance_applied_fleet()
        if self.is_stopping or worker.is_leaving or not self._started:
            return
        if worker.process.returncode == -signal.SIGTERM:  # stopped before it handled signals
            self._start_replacement(worker.number, WORKER_RESTART_SECONDS)
            return
        now = self._clock.now()
        self.crash_count += 1
        self._recent_crashes.append(CrashRecord(now, worker.number, worker.exit_cause()))
        _log.error("worker %d crashed: %s", worker.number, worker.exit_cause())
        streak = self._crash_streaks.get(worker.number, 0) if now - worker.started_at < _STABLE_SECONDS else 0
        self._crash_streaks[worker.number] = streak + 1
        self._start_replacement(
            worker.number,
            min(MAX_WORKER_RESTART_SECONDS, WORKER_RESTART_SECONDS * 2.0 ** min(streak, 16)),
        )

    def _release_worker(self, worker: WorkerHandle) -> None:
        """Frees the row of a worker that ended, and keeps its counters."""
        if self._load_cells is not None:
            shared_memory.clear_row(self._load_cells, SHARED_SLOTS, worker.row)
        self._free_rows.append(worker.row)
        self._hooks.on_worker_exit(worker)
        self._exited_counters = sum_snapshots([self._exited_counters, _without_windows(worker.model_counters)])
        self._exited_non_model_counters = merge_counts([self._exited_non_model_counters, worker.non_model_counters])
        self._broadcast_active_rows()

    def _start_replacement(self, number: int, pause_seconds: float) -> None:
        async def replace() -> None:
            await asyncio.sleep(pause_seconds)
            while not self._free_rows:  # too many still drain
                await self._wait_until(lambda: bool(self._free_rows))
            try:
                spawned = self._preforked.spawn(number)
            except OSError as error:
                _log.error("worker %d cannot be started: %s", number, error)
                self._start_replacement(number, MAX_WORKER_RESTART_SECONDS)
                return
            worker = self._create_handle(number, spawned)
            self.workers.append(worker)
            await self._open_worker(worker)

        self._start_task(replace())

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _call_later(self, seconds: float, call: Callable[[], object]) -> None:
        asyncio.get_running_loop().call_later(seconds, call)

    async def _wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    # The fleet -----------------------------------------------------------------------------------------------------------

    def update_fleet(self, fleet: Fleet) -> None:
        """Sends all workers a new fleet."""
        self._fleet = fleet
        self._pending_fleets.append(fleet)
        self._assign_slots(fleet)
        message = encode_message(say.FleetUpdate(fleet, self._slot_of))
        for worker in self.workers:
            worker.needs_resync |= not worker.send_encoded(message)
        self._advance_applied_fleet()

    def applied_fleet(self) -> Fleet:
        """Returns the newest fleet that all responsive workers have applied.

        No responsive worker routes over an older one.
        """
        return self._applied_fleet

    def _resync(self, worker: WorkerHandle) -> None:
        """Sends a worker its whole state again, after a message was dropped."""
        now = self._hooks.configure(worker.number, worker.row, self._rows_of_others(worker), self._slot_of)
        messages: list[msgspec.Struct] = [say.FleetUpdate(self._fleet, self._slot_of), say.ActiveRows(now.active_rows)]
        messages.append(IndexedModels(now.indexed_models))
        messages.append(say.WarningsUpdate(now.warnings))
        messages += self._hooks.access_messages()
        if now.certificate is not None:
            messages.append(say.ReloadCertificate())
        if now.gateways is not None:
            messages.append(now.gateways)
        worker.needs_resync = not all(worker.send(message) for message in messages)

    def _on_fleet_applied(self, worker: WorkerHandle) -> None:
        del worker
        self._advance_applied_fleet()

    def _advance_applied_fleet(self) -> None:
        versions = [
            worker.fleet_version for worker in self.workers if worker.is_ready and worker.unresponsive_since is None
        ]
        while self._pending_fleets and all(version >= self._pending_fleets[0].version for version in versions):
            fleet = self._pending_fleets.popleft()
            if not any(worker.fleet_problem for worker in self.workers):
                self._applied_fleet = fleet

    def _is_slot_idle(self, slot: int) -> bool:
        rows = shared_row_count(self._preforked.count)
        return self._load_cells is None or shared_memory.is_slot_idle(self._load_cells, SHARED_SLOTS, rows, slot)

    def _assign_slots(self, fleet: Fleet) -> None:
        self._slot_of = self._slot_allocator.assign(fleet, self._clock.now())
        if self._peer_load_row is not None:
            self._peer_load_row.set_slots(self._slot_of)

    # Messages to the workers ---------------------------------------------------------------------------------------------

    def broadcast(self, message: msgspec.Struct) -> None:
        """Sends a message to all workers."""
        data = encode_message(message)
        for worker in self.workers:
            worker.needs_resync |= not worker.send_encoded(data)

    def _on_message(self, worker: WorkerHandle, message: RoutedMessage) -> None:
        if isinstance(message, say.WorkerReport) and len(self.workers) > 1:
            updates = PeerUpdates(message.dispatches, message.crashes, message.cleared, message.service)
            if updates != _NO_UPDATES:
                self.broadcast_peer_updates(updates, worker)
        self._hooks.on_message(worker, message)

    def broadcast_peer_updates(self, updates: PeerUpdates, sender: WorkerHandle | None = None) -> None:
        """Sends what peers or one worker did to the others, except those that read too slowly."""
        data = encode_message(updates)
        max_unsent_bytes = CHANNEL_PENDING_BYTES // 4  # the rest is for what must arrive
        for worker in self.workers:
            if worker is not sender and worker.is_ready and worker.unsent_bytes < max_unsent_bytes:
                worker.send_encoded(data)

    def set_peer_loads(self, loads: Mapping[str, tuple[int, int, float, float, int]]) -> None:
        """Sets the load from peers.

        loads: by instance: requests, those without a first token, seconds of prefill, tokens.
        """
        if self._peer_load_row is not None:
            self._peer_load_row.set_loads(loads)

    def _broadcast_active_rows(self) -> None:
        if self._load_cells is not None:
            for worker in self.workers:
                worker.needs_resync |= not worker.send(say.ActiveRows(self._rows_of_others(worker)))

    def _rows_of_others(self, worker: WorkerHandle) -> list[int]:
        rows = [other.row for other in self.workers if other is not worker]
        return rows if self._peer_load_row is None else [*rows, self._peer_load_row.row]

    # Queries and counters ------------------------------------------------------------------------------------------------

    async def query(self, make_query: Callable[[int], say.Query], kind: type[T]) -> list[tuple[WorkerHandle, list[T]]]:
        """Queries all ready workers. Returns the replies of those that reply in time.

        A worker that missed a message first gets its whole state again.
        """
        workers = [worker for worker in self.workers if worker.is_ready]
        for worker in workers:
            if worker.needs_resync:
                self._resync(worker)
        replies = await asyncio.gather(*[worker.query(make_query, kind) for worker in workers])
        self._advance_applied_fleet()
        return [(worker, reply) for worker, reply in zip(workers, replies, strict=True) if reply is not None]

    async def collect_counters(self, *, windows: bool) -> dict[str, ModelSnapshot]:
        """Returns the counters of all workers, added up, and keeps what each one answers.

        Workers that have ended or do not answer count with their last known values. Of those that
        have ended, instances that are gone count no longer.

        windows: include the counts of the last minute.
        """
        now = self._clock.now()
        parts: list[dict[str, ModelSnapshot]] = []
        answers = await self.query(lambda number: say.GetCounters(number, now, windows), ModelSnapshot)
        for worker, pieces in answers:
            if not worker.sent_final_counters:
                worker.model_counters = {part.key: part for part in pieces}
        answered = {worker for worker, _ in answers}
        parts += [
            worker.model_counters if worker in answered else _without_windows(worker.model_counters)
            for worker in self.workers
        ]
        present = {instance for models in parts for part in models.values() for instance in part.instances}
        present.update(instance.id for instances in self._fleet.instances.values() for instance in instances)
        for part in self._exited_counters.values():
            for absent in part.instances.keys() - present:
                del part.instances[absent]
        processes = [self._exited_counters, *parts]
        totals: dict[str, ModelSnapshot] = {}
        for key in dict.fromkeys(key for models in processes for key in models):
            totals |= sum_snapshots([{key: models[key]} for models in processes if key in models])
            await asyncio.sleep(0)  # other tasks run between models
        return totals

    def non_model_counters(self) -> dict[str, int]:
        return merge_counts([self._exited_non_model_counters, *(worker.non_model_counters for worker in self.workers)])

    def loads(self) -> dict[str, say.EncodedLoad]:
        return merge_loads(worker.loads for worker in self.workers)

    # Status --------------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        return self._preforked.count

    @property
    def serving_count(self) -> int:
        return sum(worker.is_serving and worker.unresponsive_since is None for worker in self.workers)

    def warnings(self) -> list[str]:
        """Returns a text for each problem of a worker."""
        now = self._clock.now()
        warnings = []
        for worker in sorted(self.workers, key=lambda worker: worker.number):
            if worker.unresponsive_since is not None:
                warnings.append(
                    f"worker {worker.number} has not answered for {format_duration(now - worker.unresponsive_since)}"
                )
            elif worker.is_leaving:
                warnings.append(f"worker {worker.number} drains")
            if worker.fleet_problem is not None:
                warnings.append(f"the last fleet was not applied: {worker.fleet_problem}")
        warnings += self._crash_warnings(now)
        missing = self._preforked.count - sum(worker.is_serving for worker in self.workers)
        if missing > 0 and not self.is_stopping:
            warnings.append(f"{missing} of {self._preforked.count} workers do not serve yet")
        return list(dict.fromkeys(warnings))

    def _crash_warnings(self, now: float) -> Sequence[str]:
        recent = [crash for crash in self._recent_crashes if now - crash.at < _CRASH_WARNING_SECONDS]
        if not recent:
            return ()
        last = recent[-1]
        times = "a worker crashed" if len(recent) == 1 else f"workers crashed {len(recent)} times"
        return (f"{times} in the last minute: worker {last.number} {last.cause}",)
