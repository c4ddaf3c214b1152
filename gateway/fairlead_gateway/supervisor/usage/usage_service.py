"""Keeps the ledger: receives what requests used, writes it, and reads it for reports.

Records are written once a second, in a thread. While the disk takes none, they wait up to a bound;
those beyond it are lost, counted, and shown in the warnings and metrics.
"""

import asyncio
import logging
import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.usage.checkpoints import Retention, maintain
from fairlead.usage.ledger_files import REPLICAS, USAGE, file_gateway_name, ledger_id
from fairlead.usage.ledger_reader import LedgerContent, read_ledger
from fairlead.usage.record import UsageRecord, day_of
from fairlead.usage.replica_log import ReplicaLog, replicas_of
from fairlead_gateway.ipc.messages import UsageRows
from fairlead_gateway.supervisor.usage.ledger_writer import LedgerWriter
from fairlead_gateway.supervisor.usage.pricing import EngineReadings, RequestPricing
from fairlead_gateway.supervisor.usage.tenant_counters import TenantCounters

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

_log = logging.getLogger("fairlead.gateway")
_DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class _PendingLine:
    kind: str
    day: str
    line: bytes


class UsageService:
    """The ledger of one gateway.

    folder: other gateways may append to it, too.
    lost: records that could not be written.
    """

    def __init__(
        self, folder: Path, gateway_id: str, readings: EngineReadings, *, clock: Clock, limits: Limits
    ) -> None:
        self._folder = folder
        self._writer = LedgerWriter(folder, file_gateway_name(gateway_id), USAGE_FILE_BYTES)
        self._pricing = RequestPricing(readings)
        self._replicas = ReplicaLog(math.ceil(USAGE_GAP_SECONDS))
        self._clock = clock
        self._limits = limits
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
        """Starts the task on the running loop."""
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

    def on_rows(self, message: UsageRows) -> None:
        """Adds what requests used."""
        self.lost += message.dropped
        now = self._clock.now()
        for row in message.rows:
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
            await asyncio.sleep(self._limits.usage_flush_seconds)
            now = self._clock.now()
            if now - self._heartbeat_at >= USAGE_HEARTBEAT_SECONDS:
                self._heartbeat_at = now
                self._observe_replicas()
            await self.flush()
            if now - self._maintained_at >= USAGE_MAINTENANCE_SECONDS:
                self._maintained_at = now
                await self._maintain()

    async def _maintain(self) -> None:
        limits, wall = self._limits, self._clock.wall()
        # Records of yesterday may still be on their way.
        today = day_of(wall - USAGE_MAINTENANCE_SECONDS)
        keep_from = day_of(wall - (limits.usage_lines_days + 1) * _DAY_SECONDS)
        retention = Retention(limits.usage_lines_days, USAGE_LINES_BYTES)
        try:
            await asyncio.to_thread(ledger_id, self._folder)
            await asyncio.to_thread(maintain, self._folder, today, keep_from, retention)
        except Exception as error:  # noqa: BLE001  # shown; the next round tries again
            _log.warning("the usage ledger was not maintained: %s", error)

    def _observe_replicas(self) -> None:
        for line in self._replicas.observe(int(self._clock.wall()), replicas_of(self._fleet)):
            self._add(REPLICAS, line.day, line)

    def _add(self, kind: str, day: str, value: UsageRecord | msgspec.Struct) -> None:
        if len(self._pending) >= self._limits.usage_records_pending:
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
