"""The service of limits: one exchange with the store at a time, for all tenants that need one.

Workers report what tenants have used and what their requests need. While an exchange is under way,
further needs collect for the next one. So a busy gateway makes few large exchanges, and an idle one
none.

While the store is away, workers go on with the slices that they have, until their leases end. Then
requests are refused or admitted, as the tenant says.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

import msgspec

from fairlead.limits import Limits
from fairlead.management_api import LimitOut
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.tenants.model import Enforcement, Tenant, WithoutRedis
from fairlead_gateway.ipc.messages import QuotaReport, QuotaUpdate, QuotaUpdates
from fairlead_gateway.quota.exchange import OPEN, UNAVAILABLE, Exchange, ExchangeReply, Need, Row
from fairlead_gateway.quota.ledger import HolderUpdate, LeaseTimes, LimitTerms, TenantLedger
from fairlead_gateway.supervisor.quota.budget_watch import BudgetWatch
from fairlead_gateway.supervisor.quota.checkpoint_files import CheckpointFiles
from fairlead_gateway.supervisor.quota.limit_stores import LimitStore
from fairlead_gateway.supervisor.quota.quota_status import closed_limits, limit_states

QUOTA_FOLD_SECONDS: Final = 60.0
"""Limit: a worker without a lease for this long has no row of its own any more."""
QUOTA_CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
"""Limit: a checkpoint of granted amounts; one larger was not written by a gateway."""

_log = logging.getLogger("fairlead.gateway")
_CONTENDED_SECONDS: Final = 0.1
_CHECKPOINT_SECONDS: Final = 5.0
_FINAL_SECONDS: Final = 2.0
_REFRESH_SECONDS: Final = 1.0
_MAX_MESSAGE_NUMBER: Final = 1 << 62


class QuotaWorker(Protocol):
    """A worker process, as the service of limits uses it."""

    number: int

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message. Returns False when it was dropped."""
        ...


class QuotaService:
    """The limits of all tenants in one gateway.

    checkpoint_folder: None: grants are not durable.
    """

    def __init__(
        self,
        store: LimitStore,
        gateway_id: str,
        *,
        clock: Clock,
        limits: Limits,
        checkpoint_folder: Path | None = None,
    ) -> None:
        self._store = store
        self._gateway_id = gateway_id
        self._clock = clock
        self._limits = limits
        self._times = LeaseTimes(int(limits.quota_lease_seconds * 1000), int(QUOTA_FOLD_SECONDS * 1000))
        self._checkpoints = (
            None
            if checkpoint_folder is None
            else CheckpointFiles(checkpoint_folder, gateway_id, QUOTA_CHECKPOINT_BYTES)
        )
        self.budgets = BudgetWatch(gateway_id)
        self._tenants: dict[str, Tenant] = {}
        self.ledgers: dict[str, TenantLedger] = {}
        self._names: dict[tuple[str, QuotaWorker], str] = {}
        self._workers: dict[str, QuotaWorker] = {}
        self._due_at = 0.0
        self._checkpoint_at = 0.0
        self._has_unwritten = False
        self._is_restored = False
        self._may_write = False  # before all checkpoints were read, a new one would lack what they hold
        self._refresh: set[str] = set()
        self._refreshed: asyncio.Future[None] | None = None
        self._restored: dict[str, list[tuple[str, Row]]] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.checkpoint_problem: str | None = None
        self.exchange_count = 0

    def set_tenants(self, tenants: Iterable[Tenant]) -> None:
        """Replaces all tenants; counters of limits that stay are kept."""
        self._tenants = {tenant.name: tenant for tenant in tenants if tenant.limits}
        self.budgets.retain(self._tenants.values())
        for name in self.ledgers.keys() - self._tenants.keys():
            del self.ledgers[name]
        for key in [key for key in self._names if key[0] not in self._tenants]:
            self._workers.pop(self._names.pop(key), None)
        for name, tenant in self._tenants.items():
            is_strict = tenant.enforcement is Enforcement.STRICT
            ledger = self.ledgers.get(name)
            if ledger is None:
                ledger = TenantLedger(self._times, is_strict=is_strict, is_durable=self._checkpoints is not None)
                self.ledgers[name] = ledger
                if name in self._restored:
                    ledger.restore(self._restored[name])
            terms = [
                LimitTerms(limit.id, limit.window.value if limit.window is not None else "", limit.amount)
                for limit in tenant.limits
            ]
            ledger.set_limits(terms, is_strict=is_strict)

    def start(self) -> None:
        """Starts on the running loop. No exchange is made before all checkpoints were read."""
        if self._task is None:
            self._task = asyncio.create_task(run_despite_defects(self._run, _log, "the limits of tenants"))

    def warnings(self) -> list[str]:
        """Returns texts about limits that cannot be counted."""
        found = closed_limits(self.ledgers)
        if self._store.problem is not None:
            found.append(f"limits of tenants cannot be read: {self._store.problem}")
        if self.checkpoint_problem is not None:
            found.append(self.checkpoint_problem)
        return found

    async def states(self, tenants: frozenset[str] | None, limit: int) -> list[LimitOut]:
        """Returns the state of limits, after an exchange with the store.

        tenants: None for all.
        limit: the most tenants to return.
        """
        names = sorted(name for name in self._tenants if tenants is None or name in tenants)[:limit]
        self._refresh.update(names)
        self._wake.set()
        refreshed = self._refreshed = self._refreshed or asyncio.get_running_loop().create_future()
        await asyncio.wait({refreshed}, timeout=_REFRESH_SECONDS)
        now_ms = self._clock.wall() * 1000
        found: list[LimitOut] = []
        for name in names:
            tenant, ledger = self._tenants.get(name), self.ledgers.get(name)
            if tenant is not None and ledger is not None:
                found += limit_states(tenant, ledger.last_reply, now_ms)
        return found

    async def stop(self) -> None:
        """Reports what workers have spent and given back at their end, and writes the last
        checkpoint.
        """
        await cancel_and_wait(self._task)
        self._task = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FINAL_SECONDS):
                await self._exchange([name for name, ledger in self.ledgers.items() if ledger.has_news], is_due=True)
        if self._may_write:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FINAL_SECONDS):
                    await self._write_checkpoint()

    # Workers.

    def on_report(self, worker: QuotaWorker, report: QuotaReport) -> None:
        """Takes a worker's counters and needs."""
        now = self._clock.now()
        for tenant in report.tenants:
            ledger = self.ledgers.get(tenant.tenant)
            if ledger is None:
                continue
            holder = self._holder(tenant.tenant, worker)
            for row in tenant.rows:
                counters = Row(holder, row.start, row.granted, row.returned, row.spent, row.busy)
                ledger.report(row.limit, counters)
                reply = ledger.last_reply.get(row.limit)
                if reply is not None and reply.is_contended:
                    self._due_at = min(self._due_at, now + _CONTENDED_SECONDS)
            for need in tenant.needs:
                ledger.need(need.limit, Need(holder, need.least, need.wish))
        self._wake.set()

    def on_worker_exit(self, worker: QuotaWorker) -> None:
        """Settles what a worker that has ended was granted."""
        for key in [key for key in self._names if key[1] is worker]:
            holder = self._names.pop(key)
            self._workers.pop(holder, None)
            ledger = self.ledgers.get(key[0])
            if ledger is not None:
                ledger.end_holder(holder)
        self._wake.set()

    def _holder(self, tenant: str, worker: QuotaWorker) -> str:
        """Returns the name under which a worker holds slices of a tenant's limits."""
        name = self._names.get((tenant, worker))
        if name is None:
            name = self._names[tenant, worker] = f"{self._gateway_id}/{worker.number}-{secrets.token_hex(4)}"
            self._workers[name] = worker
        return name

    # The store.

    async def _restore(self) -> None:
        """Removes old checkpoints, and merges those of all gateways, once."""
        if self._checkpoints is None or self._is_restored:
            return
        self._is_restored = True
        with contextlib.suppress(OSError):  # those that stay are read
            await asyncio.get_running_loop().run_in_executor(None, self._checkpoints.remove_old, self._clock.wall())
        self._restored = await self._read_checkpoints(self._checkpoints)
        for name, rows in self._restored.items():
            ledger = self.ledgers.get(name)
            if ledger is not None:
                ledger.restore(rows)

    async def _run(self) -> None:
        await self._restore()
        self._may_write = True
        while True:
            has_news = any(ledger.has_news for ledger in self.ledgers.values())
            pause = max(0.0, self._due_at - self._clock.now()) if has_news or self._has_unwritten else None
            if not self._wake.is_set():
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass
            self._wake.clear()
            await asyncio.sleep(0)  # other workers' messages of this moment
            now = self._clock.now()
            is_due = now >= self._due_at
            if is_due:
                self._due_at = now + self._limits.quota_renew_seconds
            refresh, self._refresh = self._refresh, set()
            names = [
                name
                for name, ledger in self.ledgers.items()
                if ledger.has_needs or ledger.is_behind or name in refresh or (is_due and ledger.has_news)
            ]
            if names:
                await self._exchange(names, is_due=is_due)
            if self._refreshed is not None and not self._refresh:
                self._refreshed.set_result(None)
                self._refreshed = None
            if self._has_unwritten and now >= self._checkpoint_at:
                self._checkpoint_at = now + _CHECKPOINT_SECONDS
                await self._write_checkpoint()

    async def _exchange(self, names: list[str], *, is_due: bool) -> None:
        """Exchanges with the store about these tenants, and sends workers the results."""
        sent = [(name, self.ledgers[name].exchange(wants_rows=is_due)) for name in names]
        sent_at = self._clock.now()
        self.exchange_count += 1
        replies = await self._store.apply(sent)
        updates: dict[QuotaWorker, list[QuotaUpdate]] = {}
        must_write = False
        needs_checkpoints = False
        for (name, exchange), reply in zip(sent, replies, strict=True):
            ledger = self.ledgers.get(name)
            if ledger is None:
                continue
            if reply is None:
                self._refuse(name, ledger, exchange, updates)
                continue
            must_write = self._apply(name, ledger, (exchange, reply, sent_at), updates) or must_write
            needs_checkpoints = needs_checkpoints or ledger.needs_checkpoints
        if must_write and not await self._write_checkpoint():
            return  # what is not durable is not used; workers ask again
        for worker, messages in updates.items():
            worker.send(QuotaUpdates(messages))
        if needs_checkpoints:
            await self._merge_checkpoints()

    def _apply(
        self,
        name: str,
        ledger: TenantLedger,
        answered: tuple[Exchange, ExchangeReply, float],
        updates: dict[QuotaWorker, list[QuotaUpdate]],
    ) -> bool:
        """Adds the updates of one tenant; returns whether they must be durable before their use."""
        found = ledger.apply(*answered)
        if name in self._tenants:
            for event in self.budgets.observe(self._tenants[name], answered[1].limits):
                _log.warning("%s", event.describe())
        for update in found:
            worker = self._workers.get(update.holder)
            if worker is None:
                continue
            if update.is_folded:
                self._rename(name, ledger, worker, update.holder)
            updates.setdefault(worker, []).append(_encoded(name, update))
        if self._checkpoints is not None and found:
            self._has_unwritten = True
        return self._checkpoints is not None and ledger.is_strict and bool(found)

    def _rename(self, tenant: str, ledger: TenantLedger, worker: QuotaWorker, holder: str) -> None:
        """Gives a worker another name: the store has added its row to the base."""
        ledger.end_holder(holder)
        self._workers.pop(holder, None)
        self._names.pop((tenant, worker), None)

    def _refuse(
        self, name: str, ledger: TenantLedger, exchange: Exchange, updates: dict[QuotaWorker, list[QuotaUpdate]]
    ) -> None:
        """Answers needs while the store is away, as the tenant says."""
        ledger.on_failed()
        tenant = self._tenants.get(name)
        is_open = tenant is not None and tenant.without_redis is WithoutRedis.ADMIT
        status = OPEN if is_open else UNAVAILABLE
        for report in exchange.limits:
            for need in report.needs:
                ledger.forget_need(report.limit, need.holder)
                worker = self._workers.get(need.holder)
                if worker is not None:
                    update = QuotaUpdate(name, report.limit, 0, None, 0.0, status, 0, 0, 0.0, False, False)
                    updates.setdefault(worker, []).append(update)

    # Checkpoints.

    async def _write_checkpoint(self) -> bool:
        """Writes what was granted; returns False if that failed."""
        if self._checkpoints is None:
            return True
        rows = {name: ledger.rows() for name, ledger in self.ledgers.items()}
        self._has_unwritten = False
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._checkpoints.write, rows)
        except OSError as error:
            self._has_unwritten = True
            self.checkpoint_problem = f"the checkpoint of limits cannot be written: {error.strerror or error}"
            return False
        self.checkpoint_problem = None
        return True

    async def _read_checkpoints(self, files: CheckpointFiles) -> dict[str, list[tuple[str, Row]]]:
        try:
            rows, problems = await asyncio.get_running_loop().run_in_executor(None, files.read_all)
        except OSError as error:
            self.checkpoint_problem = f"the checkpoints of limits cannot be read: {error.strerror or error}"
            return {}
        self.checkpoint_problem = f"a checkpoint of limits cannot be read: {problems[0]}" if problems else None
        return rows

    async def _merge_checkpoints(self) -> None:
        """Merges all checkpoints for the tenants for which the store has lost its state."""
        if self._checkpoints is None:
            return
        waiting = [name for name, ledger in self.ledgers.items() if ledger.needs_checkpoints]
        rows = await self._read_checkpoints(self._checkpoints)
        if self.checkpoint_problem is not None:
            return
        for name in waiting:
            ledger = self.ledgers.get(name)
            if ledger is not None:
                ledger.restore(rows.get(name, ()), is_complete=True)
        self._due_at = self._clock.now()
        self._wake.set()


def _encoded(tenant: str, update: HolderUpdate) -> QuotaUpdate:
    return QuotaUpdate(
        tenant,
        update.limit,
        update.start,
        update.granted,
        update.valid_until,
        update.status,
        max(-_MAX_MESSAGE_NUMBER, min(_MAX_MESSAGE_NUMBER, update.available)),
        min(_MAX_MESSAGE_NUMBER, update.used),
        update.ends_at,
        update.is_contended,
        update.is_folded,
    )
