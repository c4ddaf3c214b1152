"""Reports what tenants use to the supervisor, and applies its grants."""

import asyncio
from collections.abc import Mapping

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.ipc.channel import MessageSender
from fairlead_gateway.limits.exchange import Need, Row
from fairlead_gateway.limits.messages import QuotaReport, QuotaUpdates, TenantQuotaReport
from fairlead_gateway.limits.worker.limit_plan import LeasedLimit
from fairlead_gateway.limits.worker.tenant_limits import QuotaLink, TenantLimits

_WAITERS_PER_NEED = 64


class QuotaReporter(QuotaLink):
    """The link between one worker's limits and the supervisor.

    tenants: those of the gate; set when the gate exists.
    """

    def __init__(self, sender: MessageSender, loop: asyncio.AbstractEventLoop, clock: Clock, limits: Limits) -> None:
        self._sender = sender
        self._loop = loop
        self._now = clock.now
        self._limits = limits
        self.tenants: Mapping[str, TenantLimits] = {}
        self._active: dict[str, TenantLimits] = {}
        self._requesting: dict[str, TenantLimits] = {}
        self._behind: dict[str, TenantLimits] = {}
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._renew_at = 0.0

    def request_slices(self, limits: TenantLimits) -> None:
        """Sends what the tenant's requests need, in the next iteration of the event loop."""
        self._requesting[limits.tenant.name] = limits
        if self._soon is None:
            self._soon = self._loop.call_soon(self._send_needs)
        self.activate(limits)

    def report_soon(self, limits: TenantLimits) -> None:
        """Reports what the tenant has used, in the next iteration of the event loop."""
        self._behind[limits.tenant.name] = limits
        if self._soon is None:
            self._soon = self._loop.call_soon(self._send_needs)

    def activate(self, limits: TenantLimits) -> None:
        """Reports what the tenant uses from now on, until no slice is out."""
        limits.is_active = True
        self._active[limits.tenant.name] = limits
        self._start_timer()

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(self._limits.quota_report_seconds, self._report)

    def close(self) -> None:
        """Gives all slices back, at the end of the worker."""
        if self._timer is not None:
            self._timer.cancel()
        now = self._now()
        for limits in self.tenants.values():
            for leased in limits.leased.values():
                leased.give_back(now, all_of_it=True)
        self._send(dict(self.tenants.items()), has_needs=False, is_due=True)

    def apply(self, updates: QuotaUpdates) -> list[TenantLimits]:
        """Applies grants; returns the tenants that they are for."""
        touched: dict[str, TenantLimits] = {}
        now = self._now()
        for tenant, update in updates.updates:
            limits = self.tenants.get(tenant)
            leased = None if limits is None else limits.leased.get(update.limit)
            if limits is None or leased is None:
                continue
            touched[tenant] = limits
            if update.is_folded:
                limits.restart()
                continue
            if update.granted is not None:
                leased.on_grant(update.start, update.granted, update.valid_until)
                leased.is_contended = update.is_contended
            leased.on_status(update.status, update.available, update.used, update.ends_at, now)
        return list(touched.values())

    def _send_needs(self) -> None:
        self._soon = None
        requesting, self._requesting = self._requesting, {}
        behind, self._behind = self._behind, {}
        if requesting:
            self._send(requesting, has_needs=True, is_due=True)
        if behind:
            self._send(behind, has_needs=False, is_due=False)

    def _report(self) -> None:
        """Gives back what is spare, and reports what has changed."""
        self._timer = None
        now = self._now()
        is_due = now >= self._renew_at
        if is_due:
            self._renew_at = now + self._limits.quota_renew_seconds
        active = list(self._active.values())
        for limits in active:
            wanted = _wanted(limits)
            for leased in limits.leased.values():
                leased.give_back(now, waiting=wanted.get(leased, (0, 0))[1])
        self._send(self._active, has_needs=False, is_due=is_due)
        for limits in active:
            if not limits.waiting and not any(leased.has_grant for leased in limits.leased.values()):
                limits.is_active = False
                del self._active[limits.tenant.name]
        if self._active:
            self._start_timer()

    def _send(self, tenants: Mapping[str, TenantLimits], *, has_needs: bool, is_due: bool) -> None:
        now = self._now()
        reports = []
        for name, limits in tenants.items():
            rows = [
                (id_, Row("", slice_.start, slice_.granted, slice_.returned, slice_.spent, slice_.busy))
                for id_, leased in limits.leased.items()
                for slice_ in leased.take_report(is_due=is_due)
            ]
            needs = self._needs(limits, now) if has_needs else []
            if rows or needs:
                reports.append(TenantQuotaReport(name, rows, needs))
        if reports:
            self._sender.send(QuotaReport(reports))

    def _needs(self, limits: TenantLimits, now: float) -> list[tuple[str, Need]]:
        wanted = _wanted(limits)
        needs = []
        for id_, leased in limits.leased.items():
            first, total = wanted.get(leased, (0, 0))
            least, wish = leased.least_and_wish(first, now)
            if least > 0 or total > max(0, leased.current.free) or leased.is_low(now):
                needs.append((id_, Need("", max(1, least), max(wish, least, total))))
        return needs


def _wanted(limits: TenantLimits) -> dict[LeasedLimit, tuple[int, int]]:
    """Returns what the first waiting request needs of each limit, and what the first ones need."""
    wanted: dict[LeasedLimit, tuple[int, int]] = {}
    for index, waiter in enumerate(limits.waiting):
        if index == _WAITERS_PER_NEED:
            break
        for leased in waiter.plan.limits:
            amount = waiter.estimate.of(leased.unit)
            known = wanted.get(leased)
            wanted[leased] = (amount, amount) if known is None else (known[0], known[1] + amount)
    return wanted
