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
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from fairlead.fleet.model import Model
from fairlead.limits import Limits
from fairlead.management_api import LimitOut
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait, run_despite_defects
from fairlead.tenants.model import Enforcement, LimitUnit, Tenant, WithoutRedis
from fairlead_gateway.limits.budget_watch import BudgetWatch
from fairlead_gateway.limits.exchange import (
    OPEN,
    UNAVAILABLE,
    Exchange,
    ExchangeReply,
    GrantUpdate,
    LimitReply,
    Need,
    Row,
)
from fairlead_gateway.limits.ledger import LeaseTimes, TenantLedger
from fairlead_gateway.limits.messages import QuotaReport, QuotaUpdates
from fairlead_gateway.limits.store import QuotaStore
from fairlead_gateway.limits.supervisor.checkpoint_files import CheckpointFiles

_MAX_NAMED = 3

QUOTA_FOLD_SECONDS: Final = 60.0
"""Limit: a worker without a lease for this long has no row of its own any more."""
QUOTA_CHECKPOINT_BYTES: Final = 16 * 1024 * 1024
"""Limit: a checkpoint of granted amounts; one larger was not written by a gateway."""

_CONTENDED_SECONDS: Final = 0.1
_CHECKPOINT_SECONDS: Final = 5.0
_FINAL_SECONDS: Final = 2.0
_REFRESH_SECONDS: Final = 1.0


def limit_states(tenant: Tenant, replies: Mapping[str, LimitReply], now_ms: float) -> list[LimitOut]:
    """Returns the state of each limit of a tenant, from the store's last replies."""
    states = []
    for limit in tenant.limits:
        reply = replies.get(limit.id)
        if reply is not None and 0 < reply.end <= now_ms:  # of a window that is over
            reply = None
        states.append(
            LimitOut(
                tenant=tenant.name,
                unit=limit.unit.value,
                per=None if limit.window is None else limit.window.value,
                key=limit.key,
                model=limit.model,
                amount=limit.amount,
                soft=limit.is_soft,
                used=None if reply is None else reply.used,
                available=None if reply is None else reply.available,
                resets_at=reply.end / 1000 if reply is not None and reply.end else None,
            )
        )
    return states


def unpriced_budgets(tenants: Iterable[Tenant], models: Mapping[str, Model]) -> list[str]:
    """Returns a warning for budgets that count nothing for a model, since it has no price."""
    unpriced = [key for key, model in models.items() if model.price is None]
    found = []
    for tenant in tenants:
        if not any(limit.unit is LimitUnit.COST for limit in tenant.limits):
            continue
        free = next((key for key in unpriced if tenant.may_use(key)), None)
        if free is not None:
            found.append(f"the budget of tenant {tenant.name} cannot be enforced: model {free} has no price")
    return _first_of(found, "budgets")


def closed_limits(ledgers: Mapping[str, TenantLedger]) -> list[str]:
    """Returns a warning for strict limits that grant nothing after a loss."""
    found = [
        f"the strict limits of tenant {name} are closed until their windows end: Redis has lost what was used"
        for name, ledger in ledgers.items()
        if not ledger.is_open
    ]
    return _first_of(found, "tenants with closed limits")


def _first_of(found: Collection[str], what: str) -> list[str]:
    more = len(found) - _MAX_NAMED
    return [*list(found)[:_MAX_NAMED], *([f"and {more} more {what}"] if more > 0 else [])]


if TYPE_CHECKING:  # without Redis, its client is not loaded
    from fairlead_kvstore.redis.link import RedisLink


class LimitStore(Protocol):
    """A store of limits.

    problem: why the last exchange failed; None if it did not.
    """

    problem: str | None

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        """Applies exchanges, each of another tenant; None for one that may not have arrived."""


class MemoryLimitStore:
    """The store of a gateway without Redis, which has no peers."""

    def __init__(self, clock: Clock) -> None:
        self.problem: str | None = None
        self._clock = clock
        self._wall_offset = clock.wall() - clock.now()
        self._store = QuotaStore("memory", has_peers=False)

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        now_ms = int((self._clock.now() + self._wall_offset) * 1000)
        return [self._store.apply(tenant, exchange, now_ms) for tenant, exchange in exchanges]


def create_limit_store(link: "RedisLink | None", clock: Clock) -> LimitStore:
    """Returns the store behind a link to Redis; without a link, one in memory."""
    if link is None:
        return MemoryLimitStore(clock)
    from fairlead_gateway.limits.supervisor.redis_limit_store import RedisLimitStore

    return RedisLimitStore(link)


_log = logging.getLogger("fairlead.gateway")


class QuotaWorker(Protocol):
    """A worker process, as the service of limits uses it."""

    number: int

    def send(self, message: msgspec.Struct) -> bool:
        """Sends a message. Returns False when it was dropped."""


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
            ledger.set_limits(tenant.limits, is_strict=is_strict)

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(run_despite_defects(self._run, _log, "the limits of tenants"))

    def warnings(self) -> list[str]:
        """Returns texts about limits that cannot be counted, read or saved."""
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
            for limit, row in tenant.rows:
                row.holder = holder
                ledger.report(limit, row)
                reply = ledger.last_reply.get(limit)
                if reply is not None and reply.is_contended:
                    self._due_at = min(self._due_at, now + _CONTENDED_SECONDS)
            for limit, need in tenant.needs:
                ledger.need(limit, Need(holder, need.least, need.wish))
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
        updates: dict[QuotaWorker, list[tuple[str, GrantUpdate]]] = {}
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
        updates: dict[QuotaWorker, list[tuple[str, GrantUpdate]]],
    ) -> bool:
        """Adds the updates of one tenant; returns whether they must be durable before their use."""
        found = ledger.apply(*answered)
        if name in self._tenants:
            for event in self.budgets.observe(self._tenants[name], answered[1].limits):
                _log.warning("%s", event.describe())
        for holder, update in found:
            worker = self._workers.get(holder)
            if worker is None:
                continue
            if update.is_folded:
                ledger.end_holder(holder)
                self._workers.pop(holder, None)
                self._names.pop((name, worker), None)
            updates.setdefault(worker, []).append((name, update))
        if self._checkpoints is not None and found:
            self._has_unwritten = True
        return self._checkpoints is not None and ledger.is_strict and bool(found)

    def _refuse(
        self,
        name: str,
        ledger: TenantLedger,
        exchange: Exchange,
        updates: dict[QuotaWorker, list[tuple[str, GrantUpdate]]],
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
                    updates.setdefault(worker, []).append((name, GrantUpdate(report.limit, status)))

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
