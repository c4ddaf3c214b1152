"""Keeps the ledger: receives what requests used, writes it, and reads it for reports.

Records are written once a second, in a thread. While the disk takes none, they wait up to a bound;
those beyond it are lost, counted, and shown in the warnings and metrics.

Counters of the tenants that use most, with a bounded number of series.

The first tenants get series of their own until there are no more. A tenant without one that has
recently used twice as much as the smallest one with one takes its place. What a tenant uses while
it has no series counts as `other`. So each use is counted once, and no shown counter falls.

Appends lines to the ledger's files. Blocks on the disk, so it runs in a thread.

Makes usage records from the rows of workers: tokens, cost and engine time. Pure.
"""

import asyncio
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Fleet, Instance
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.units import NANO_USD_PER_USD
from fairlead.usage.checkpoints import Retention, maintain
from fairlead.usage.ledger_files import REPLICAS, USAGE, LedgerFile, file_gateway_name, ledger_id
from fairlead.usage.ledger_reader import LedgerContent, read_ledger
from fairlead.usage.record import UsageRecord, day_of, format_time
from fairlead.usage.replica_log import ReplicaLog, replicas_of
from fairlead_gateway.usage.engine_time import decode_microseconds, prefill_microseconds
from fairlead_gateway.usage.messages import UsageRow

OTHER: Final = "other"
_HALF_LIFE_SECONDS: Final = 3_600.0
_PROMOTION_FACTOR: Final = 2.0

METRIC_TENANTS: Final = 100
"""Limit: tenants with metrics of their own, those that use most; the rest are `other`."""
USAGE_HEARTBEAT_SECONDS: Final = 10.0
"""Limit: interval at which the replica log says that replicas still exist."""
USAGE_GAP_SECONDS: Final = 60.0
"""Limit: replicas do not count for a longer pause of a gateway than this."""
USAGE_MAINTENANCE_SECONDS: Final = 3_600.0
"""Limit: interval at which checkpoints are written and old lines removed."""
USAGE_FILE_BYTES: Final = 256 * 1024 * 1024
"""Limit: a file of a ledger; a longer one is continued in the next."""
USAGE_LINES_BYTES: Final = 2 * 1024 * 1024 * 1024
"""Limit: records in complete files of a ledger; of more, the oldest become totals earlier."""
USAGE_RECORDS_PENDING: Final = 200_000
"""Limit: usage records that wait for a ledger that cannot be written; the next are lost and
counted.
"""
USAGE_FLUSH_SECONDS: Final = 1.0
"""Limit: interval at which records are written and forced to the disk."""
USAGE_LINES_DAYS: Final = 31
"""Limit: full days for which single usage records are kept; their totals stay."""

_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class EngineReadings:
    """The gateway's knowledge of an instance.

    profile: returns the learned profile; None if there is none.
    running: returns how many requests it runs at once; None if it does not report it.
    """

    profile: Callable[[str], EngineProfile | None]
    running: Callable[[str], float | None]


class RequestPricing:
    """The prices and profiles by which requests become records."""

    def __init__(self, readings: EngineReadings) -> None:
        self._readings = readings
        self._fleet = Fleet()
        self._instances: Mapping[str, Instance] = {}
        self._default_profile = builtin_profile("h100-llama8b")

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet. Instances of the last one stay known: their requests end now."""
        current = {instance.id: instance for group in fleet.instances.values() for instance in group}
        before = {instance.id: instance for group in self._fleet.instances.values() for instance in group}
        self._fleet, self._instances = fleet, {**before, **current}

    def record(self, row: UsageRow) -> UsageRecord:
        """Returns the record of a request."""
        profile, instance = self._profile(row.instance), self._instances.get(row.instance)
        is_external = instance is not None and instance.leaves_cluster
        running = self._readings.running(row.instance)
        output = row.output_tokens
        prefill_instance = row.prefill_instance or row.instance
        prefill = prefill_microseconds(self._profile(prefill_instance), row.input_tokens, row.cached_tokens)
        decode = decode_microseconds(profile, row.input_tokens, output, running)
        prefill_pool = self._pool(row.prefill_instance) if row.prefill_instance else ""
        model = self._fleet.models.get(row.model)
        price = None if model is None else model.price
        return UsageRecord(
            id=row.id,
            at=format_time(row.ended_wall),
            tenant=row.tenant,
            model=row.model,
            status=row.status,
            key=row.key,
            adapter=row.adapter,
            dialect=row.dialect,
            tier=row.tier,
            input_tokens=row.input_tokens,
            cached_tokens=row.cached_tokens,
            output_tokens=output,
            is_estimated=row.is_estimated,
            cost_nano_usd=None if price is None else price.cost(row.input_tokens, row.cached_tokens, output),
            saved_nano_usd=None if price is None else price.saved(row.cached_tokens),
            pool=row.pool,
            instance=row.instance,
            is_external=is_external,
            engine_microseconds=0 if is_external else decode if prefill_pool else prefill + decode,
            prefill_pool=prefill_pool,
            prefill_microseconds=prefill if prefill_pool else 0,
        )

    def _profile(self, instance_id: str) -> EngineProfile:
        learned = self._readings.profile(instance_id)
        if learned is not None:
            return learned
        instance = self._instances.get(instance_id)
        return self._default_profile if instance is None or instance.profile is None else instance.profile

    def _pool(self, instance_id: str) -> str:
        instance = self._instances.get(instance_id)
        return "" if instance is None else instance.pool


class LedgerWriter:
    """The writer of one gateway's files.

    gateway: its name in file names.
    segment_bytes: a file that is longer is continued in its next segment.
    """

    def __init__(self, folder: Path, gateway: str, segment_bytes: int) -> None:
        self._folder = folder
        self._gateway = gateway
        self._segment_bytes = segment_bytes
        self._descriptors: dict[tuple[str, str], int] = {}

    def append(self, kind: str, day: str, lines: Sequence[bytes]) -> None:
        """Appends lines to the file of a day, and forces them to the disk.

        Raises OSError; the file then holds none of the lines.
        """
        descriptor = self._open(kind, day)
        before = os.fstat(descriptor).st_size
        data = memoryview(b"".join([line + b"\n" for line in lines]))
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
        if os.fstat(descriptor).st_size >= self._segment_bytes:
            os.close(self._descriptors.pop((kind, day)))

    def close(self) -> None:
        """Closes all files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _open(self, kind: str, day: str) -> int:
        known = self._descriptors.get((kind, day))
        if known is not None:
            return known
        self._folder.mkdir(parents=True, exist_ok=True)
        file = LedgerFile(day, kind, self._gateway, self._folder)
        while not self._can_append(file):
            file = file.next_segment()
        descriptor = os.open(file.lines, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # a crash left an incomplete line
        _sync_folder(self._folder)
        for other in [key for key in self._descriptors if key[0] == kind]:
            os.close(self._descriptors.pop(other))
        self._descriptors[kind, day] = descriptor
        return descriptor

    def _can_append(self, file: LedgerFile) -> bool:
        """Whether the file has room.

        Lines in place of those that a checkpoint replaced would not count.
        """
        if not file.lines.exists():
            return not file.checkpoint.exists()
        return file.lines.stat().st_size < self._segment_bytes


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(slots=True)
class TenantCounts:
    """The use of a tenant since it has a series."""

    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    saved_nano_usd: int = 0
    engine_microseconds: int = 0

    def add(self, record: UsageRecord) -> None:
        """Adds a request."""
        self.requests += 1
        self.input_tokens += record.input_tokens
        self.cached_tokens += record.cached_tokens
        self.output_tokens += record.output_tokens
        self.cost_nano_usd += record.cost_nano_usd or 0
        self.saved_nano_usd += record.saved_nano_usd or 0
        self.engine_microseconds += record.engine_microseconds + record.prefill_microseconds


class TenantCounters:
    """The counters of at most `max_tenants` tenants, and of all others together."""

    def __init__(self, max_tenants: int) -> None:
        self._max_tenants = max_tenants
        self._counts: dict[str, TenantCounts] = {}
        self._other: TenantCounts | None = None
        self._recent: dict[str, float] = {}
        self._decayed_at = 0.0

    def add(self, record: UsageRecord, now: float) -> None:
        """Adds a request at monotonic seconds `now`."""
        self._decay(now)
        weight = 1.0 + record.input_tokens - record.cached_tokens + 2.0 * record.output_tokens
        self._recent[record.tenant] = self._recent.get(record.tenant, 0.0) + weight
        counts = self._counts.get(record.tenant)
        if counts is None and self._makes_room(record.tenant):
            counts = self._counts[record.tenant] = TenantCounts()
        if counts is None:
            counts = self._other = self._other or TenantCounts()
        counts.add(record)

    def series(self) -> list[tuple[str, TenantCounts]]:
        found = sorted(self._counts.items())
        return found if self._other is None else [*found, (OTHER, self._other)]

    def metric_values(self) -> dict[str, list[tuple[str, float]]]:
        """Returns the values of each metric, by its name without prefix."""
        series = self.series()

        def values(read: Callable[[TenantCounts], float]) -> list[tuple[str, float]]:
            return [(tenant, read(counts)) for tenant, counts in series]

        return {
            "tenant_requests_total": values(lambda counts: counts.requests),
            "tenant_input_tokens_total": values(lambda counts: counts.input_tokens),
            "tenant_cached_tokens_total": values(lambda counts: counts.cached_tokens),
            "tenant_output_tokens_total": values(lambda counts: counts.output_tokens),
            "tenant_cost_usd_total": values(lambda counts: counts.cost_nano_usd / NANO_USD_PER_USD),
            "tenant_saved_usd_total": values(lambda counts: counts.saved_nano_usd / NANO_USD_PER_USD),
            "tenant_engine_seconds_total": values(lambda counts: counts.engine_microseconds / 1e6),
        }

    def _makes_room(self, tenant: str) -> bool:
        if tenant == OTHER:
            return False
        if len(self._counts) < self._max_tenants:
            return True
        smallest = min(self._counts, key=lambda name: self._recent.get(name, 0.0))
        if self._recent[tenant] <= _PROMOTION_FACTOR * self._recent.get(smallest, 0.0):
            return False
        del self._counts[smallest]
        return True

    def _decay(self, now: float) -> None:
        if now - self._decayed_at < _HALF_LIFE_SECONDS:
            return
        self._decayed_at = now
        self._recent = {tenant: used / 2 for tenant, used in self._recent.items() if used > 1.0}


_log = logging.getLogger("fairlead.gateway")


@dataclass(frozen=True, slots=True)
class _PendingLine:
    kind: str
    day: str
    line: bytes


@dataclass(frozen=True, slots=True)
class LedgerBounds:
    """The bounds of a ledger; tests change them."""

    max_pending: int = USAGE_RECORDS_PENDING
    flush_seconds: float = USAGE_FLUSH_SECONDS
    lines_days: int = USAGE_LINES_DAYS


class UsageService:
    """The ledger of one gateway.

    folder: other gateways may append to it, too.
    lost: records that could not be written.
    """

    def __init__(
        self,
        folder: Path,
        gateway_id: str,
        readings: EngineReadings,
        *,
        clock: Clock,
        bounds: LedgerBounds = LedgerBounds(),
    ) -> None:
        self._folder = folder
        self._writer = LedgerWriter(folder, file_gateway_name(gateway_id), USAGE_FILE_BYTES)
        self._pricing = RequestPricing(readings)
        self._replicas = ReplicaLog(math.ceil(USAGE_GAP_SECONDS))
        self._clock = clock
        self._bounds = bounds
        self._fleet = Fleet()
        self._pending: deque[_PendingLine] = deque()
        self._encoder = msgspec.json.Encoder()
        self._writing = asyncio.Lock()
        self._heartbeat_at = 0.0
        self._maintained_at = -math.inf
        self._problem: str | None = None
        self._task: asyncio.Task[None] | None = None
        self.tenants = TenantCounters(METRIC_TENANTS)
        self.lost = 0
        self.written = 0

    def start(self) -> None:
        work = run_despite_defects(self._run, _log, "usage ledger")
        self._task = asyncio.get_running_loop().create_task(work, name="usage")

    async def stop(self) -> None:
        """Stops the task, and writes what is pending."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        self._observe_replicas()
        await self.flush()
        self._writer.close()

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet: its prices, and the replicas that exist from now on."""
        self._fleet = fleet
        self._pricing.update_fleet(fleet)
        self._observe_replicas()

    def on_rows(self, rows: Sequence[UsageRow], lost: int) -> None:
        """Adds what requests used; `lost` rows did not fit in their worker."""
        self.lost += lost
        now = self._clock.now()
        for row in rows:
            record = self._pricing.record(row)
            self.tenants.add(record, now)
            self._add(USAGE, record.day, record)

    def warnings(self) -> list[str]:
        """Returns texts about what is lost or may be lost."""
        found = [] if self._problem is None else [f"the usage ledger cannot be written: {self._problem}"]
        if self.lost:
            found.append(f"{self.lost} usage records were lost; reports since the start of this gateway lack them")
        return found

    def metrics(self) -> dict[str, int]:
        """Returns the values of the ledger's own metrics."""
        return {
            "usage_records_written_total": self.written,
            "usage_records_lost_total": self.lost,
            "usage_records_pending": len(self._pending),
        }

    async def flush(self) -> None:
        """Writes what is pending. What cannot be written stays pending, and is a warning."""
        async with self._writing:
            while self._pending:
                first = self._pending[0]
                batch = [line for line in self._pending if (line.kind, line.day) == (first.kind, first.day)]
                try:
                    await asyncio.to_thread(self._writer.append, first.kind, first.day, [line.line for line in batch])
                except OSError as error:
                    self._set_problem(error.strerror or str(error))
                    return
                written = set(map(id, batch))
                self._pending = deque(line for line in self._pending if id(line) not in written)
                self.written += len(batch)
            self._set_problem(None)

    async def read(self, first_day: str, last_day: str) -> LedgerContent:
        """Returns what the folder holds about these days, with what this gateway knows now.

        Raises BadInput if the folder cannot be read.
        """
        self._observe_replicas()
        await self.flush()
        content = await asyncio.to_thread(read_ledger, self._folder, first_day, last_day)
        content.lost = self.lost
        return content

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._bounds.flush_seconds)
            now = self._clock.now()
            if now - self._heartbeat_at >= USAGE_HEARTBEAT_SECONDS:
                self._heartbeat_at = now
                self._observe_replicas()
            await self.flush()
            if now - self._maintained_at >= USAGE_MAINTENANCE_SECONDS:
                self._maintained_at = now
                await self._maintain()

    async def _maintain(self) -> None:
        wall = self._clock.wall()
        # Records of yesterday may still be on their way.
        today = day_of(wall - USAGE_MAINTENANCE_SECONDS)
        keep_from = day_of(wall - (self._bounds.lines_days + 1) * _DAY_SECONDS)
        retention = Retention(self._bounds.lines_days, USAGE_LINES_BYTES)
        try:
            await asyncio.to_thread(ledger_id, self._folder)
            await asyncio.to_thread(maintain, self._folder, today, keep_from, retention)
        except Exception as error:  # noqa: BLE001  # shown; the next round tries again
            _log.warning("the usage ledger was not maintained: %s", error)

    def _observe_replicas(self) -> None:
        for line in self._replicas.observe(int(self._clock.wall()), replicas_of(self._fleet)):
            self._add(REPLICAS, line.day, line)

    def _add(self, kind: str, day: str, value: UsageRecord | msgspec.Struct) -> None:
        if len(self._pending) >= self._bounds.max_pending:
            self.lost += 1
            return
        self._pending.append(_PendingLine(kind, day, self._encoder.encode(value)))

    def _set_problem(self, problem: str | None) -> None:
        if problem != self._problem:
            if problem is not None:
                _log.error("the usage ledger cannot be written: %s", problem)
            elif self._problem is not None:
                _log.info("the usage ledger is written again")
        self._problem = problem
