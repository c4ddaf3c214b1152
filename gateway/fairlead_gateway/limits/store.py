"""The store of all accounts: grants slices so that their sum never exceeds a limit.

This is the store of a gateway without Redis, and the reference of the script in `redis_script`.

The rest of a limit is its amount, less the debt of the last window, less what each holder has used
or may still use. A grant is at most half of a fair share of the rest. So slices shrink to single
requests near the limit, and a refusal is exact.

The store begins an epoch when it has no state, or when its server's run id has changed. Whatever
was granted before may then be unknown. In strict mode, a window in which that happened grants
nothing more, unless all checkpoints were merged after the leases from before were over. The same
holds for a window that begins within one lease: the clock of the former server may have been ahead.

The account of one limit in one window: the counters of its holders, and what is left.
"""

from copy import copy
from typing import Final

from fairlead_gateway.limits.exchange import (
    CLOSED,
    CONTENDED,
    EXHAUSTED,
    GRANTED,
    NOT_YET,
    Base,
    Exchange,
    ExchangeReply,
    Grant,
    LimitReply,
    LimitReport,
    Need,
    Row,
    previous_start,
    window_span,
)

NO_BASE: Final = Base()

FOLD_ROWS: Final = 16
CONTENDED_MS: Final = 2_000
KEEP_MS: Final = 60_000
UNWINDOWED_KEEP_MS: Final = 3_600_000


class Account:
    """One limit in one window.

    amount: the largest that the limit had in this window.
    debt: what the windows before have used too much.
    wanted_at: when a holder last needed more than was left, in milliseconds.
    """

    __slots__ = ("amount", "base", "debt", "expires_at", "rows", "wanted_at")

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.base = NO_BASE
        self.debt = 0
        self.amount = 0
        self.wanted_at = 0
        self.expires_at = 0

    def row_of(self, holder: str, start: int) -> Row:
        return self.rows.setdefault(holder, Row(holder, start, 0, 0, 0))

    def merge_base(self, base: Base) -> None:
        """Takes over the base of a later fold, which contains the rows that ended before it."""
        if base.until > self.base.until:
            self.base = base
            self.rows = {name: row for name, row in self.rows.items() if row.expires > base.until}
        elif base.until == self.base.until:
            self.base = Base(base.until, max(base.used, self.base.used))

    def is_folded(self, row: Row) -> bool:
        return row.holder not in self.rows and 0 < row.expires <= self.base.until

    def used(self, now_ms: int, *, is_strict: bool, has_window: bool) -> int:
        rows = self.rows.values()
        return self.base.used + sum(row.taken(now_ms, is_strict=is_strict, has_window=has_window) for row in rows)

    def idle_elsewhere(self, holder: str, now_ms: int) -> int:
        return sum(row.idle for name, row in self.rows.items() if name != holder and row.expires > now_ms)

    def live_count(self, now_ms: int) -> int:
        return sum(row.expires > now_ms for row in self.rows.values())


class TenantState:
    """The state of one tenant in the store."""

    __slots__ = ("accounts", "epoch", "is_lost", "is_merged", "run", "since")

    def __init__(self, run: str, now_ms: int, *, is_lost: bool) -> None:
        self.run = run
        self.since = now_ms
        self.epoch = f"{now_ms}-{run[:8]}"
        self.is_lost = is_lost
        self.is_merged = False
        self.accounts: dict[tuple[str, int], Account] = {}


class QuotaStore:
    """The accounts of all tenants.

    run: identifies the process that holds the state.
    has_peers: False if only one gateway uses the store; then no other one can know more.
    """

    def __init__(self, run: str, *, has_peers: bool = True) -> None:
        self.run = run
        self._has_peers = has_peers
        self.tenants: dict[str, TenantState] = {}

    def apply(self, tenant: str, exchange: Exchange, now_ms: int) -> ExchangeReply:
        """Merges a gateway's report, grants what it needs, and returns the new state."""
        state = self._state(tenant, exchange, now_ms)
        if exchange.is_merged and exchange.epoch == state.epoch and now_ms >= state.since + exchange.lease_ms:
            state.is_merged = True
        step = _Step(state, exchange, now_ms)
        limits = [step.apply(report) for report in exchange.limits]
        is_open = state.is_merged or not state.is_lost
        return ExchangeReply(state.epoch, state.since, now_ms, state.is_lost, is_open, limits)

    def retain(self, tenants: set[str]) -> None:
        self.tenants = {name: state for name, state in self.tenants.items() if name in tenants}

    def _state(self, tenant: str, exchange: Exchange, now_ms: int) -> TenantState:
        state = self.tenants.get(tenant)
        if state is None:
            begins = now_ms if self._has_peers else 0
            state = self.tenants[tenant] = TenantState(self.run, begins, is_lost=exchange.epoch != "")
        elif state.run != self.run:
            before = state
            state = self.tenants[tenant] = TenantState(self.run, now_ms, is_lost=True)
            state.accounts = before.accounts
        elif exchange.epoch not in ("", state.epoch):
            state.is_lost = True
        return state


class _Step:
    """The processing of one exchange."""

    def __init__(self, state: TenantState, exchange: Exchange, now_ms: int) -> None:
        self._state = state
        self._exchange = exchange
        self._now = now_ms
        self._may_grant = exchange.epoch in ("", state.epoch)

    def apply(self, report: LimitReport) -> LimitReply:
        now, exchange = self._now, self._exchange
        start, end = window_span(report.window, now)
        has_window = end > 0
        starts = (start, previous_start(report.window, start)) if has_window else (0,)
        # A former server, whose clock was ahead, may have begun the next window.
        gone = self._merge(report, (*starts, end), has_window)
        account = self._account(report, start)
        account.amount = max(account.amount, report.amount)
        before = self._known(report.limit, starts[-1]) if has_window else None
        strict = exchange.is_strict
        if before is not None:
            used_before = before.used(now, is_strict=strict, has_window=True)
            account.debt = max(0, before.debt + used_before - before.amount)
        used = account.debt + account.used(now, is_strict=strict, has_window=has_window)
        available, grants = self._grant(report, account, start, report.amount - used, gone)
        self._fold(account, has_window)
        rows: list[Row] = []
        bases: list[tuple[int, Base]] = []
        if exchange.wants_rows:
            for window_start in starts:
                known = self._known(report.limit, window_start)
                if known is not None:
                    rows += [copy(known.rows[name]) for name in sorted(known.rows)]
                    if known.base.until > 0:
                        bases.append((window_start, known.base))
        is_contended = now - account.wanted_at < CONTENDED_MS
        taken = report.amount - available
        return LimitReply(report.limit, start, end, available, taken, is_contended, grants, rows, bases)

    def _known(self, limit: str, start: int) -> Account | None:
        account = self._state.accounts.get((limit, start))
        return account if account is not None and account.expires_at > self._now else None

    def _account(self, report: LimitReport, start: int) -> Account:
        account = self._known(report.limit, start)
        if account is None:
            account = self._state.accounts[report.limit, start] = Account()
            account.amount = report.amount
            _, end = window_span(report.window, start)
            account.expires_at = 2 * end - start + KEEP_MS
        if report.window == "":
            account.expires_at = self._now + UNWINDOWED_KEEP_MS
        return account

    def _merge(self, report: LimitReport, starts: tuple[int, ...], has_window: bool) -> set[str]:
        """Merges the report's rows; returns the holders whose rows are in the base already."""
        gone: set[str] = set()
        ends_at = self._now + self._exchange.lease_ms
        for start, base in report.bases:
            if start in starts:
                self._account(report, start).merge_base(base)
        for is_own, rows in ((False, report.seen), (True, report.own)):
            for row in rows:
                if row.start not in starts:
                    continue
                account = self._account(report, row.start)
                if has_window and account.is_folded(row):
                    if is_own:
                        gone.add(row.holder)
                    continue
                counters = account.row_of(row.holder, row.start)
                counters.granted = max(counters.granted, row.granted)
                counters.returned = max(counters.returned, row.returned)
                counters.spent = max(counters.spent, row.spent)
                if is_own:
                    counters.busy = row.busy
                    counters.expires = max(counters.expires, ends_at)
                else:
                    counters.expires = max(counters.expires, min(row.expires, ends_at))
        return gone

    def _refusal(self, start: int) -> int:
        """Returns why nothing may be granted now; GRANTED if it may."""
        state, exchange = self._state, self._exchange
        if not self._may_grant:
            return NOT_YET
        if not exchange.is_strict or start > state.since + exchange.lease_ms:
            return GRANTED
        if start > 0 and state.is_lost and not state.is_merged:
            return CLOSED
        return NOT_YET if self._now < state.since + exchange.lease_ms else GRANTED

    def _grant(
        self, report: LimitReport, account: Account, start: int, available: int, gone: set[str]
    ) -> tuple[int, list[Grant]]:
        now, exchange = self._now, self._exchange
        reported = {row.holder: row.granted for row in report.own if row.start == start}
        refusal = self._refusal(start)
        statuses = dict.fromkeys(reported, refusal)
        for need in report.needs:
            if need.holder in gone:
                continue
            if refusal != GRANTED:
                statuses[need.holder] = refusal
                continue
            counters = account.row_of(need.holder, start)
            counters.expires = max(counters.expires, now + exchange.lease_ms)
            ahead = counters.granted - reported.get(need.holder, 0)
            status, cost = self._grant_need(account, counters, need, ahead, available)
            available -= cost
            statuses[need.holder] = status
        grants = []
        for holder, status in statuses.items():
            counters_or_none = account.rows.get(holder)
            if holder in gone:
                grants.append(Grant(holder, 0, -1, status))
            elif counters_or_none is None:
                grants.append(Grant(holder, 0, 0, status))
            else:
                grants.append(Grant(holder, counters_or_none.granted, counters_or_none.expires, status))
        return available, grants

    def _grant_need(self, account: Account, counters: Row, need: Need, ahead: int, available: int) -> tuple[int, int]:
        """Returns the status and what the grant takes of what is available.

        ahead: granted in an earlier exchange whose reply the holder has not got.
        """
        now, exchange = self._now, self._exchange
        min_amount = need.least - ahead
        if min_amount <= 0:
            return GRANTED, 0
        # What a holder has overdrawn is counted as used already.
        overdrawn = max(0, counters.spent - (counters.granted - counters.returned))
        cost = max(0, min_amount - overdrawn)
        if cost > available:
            account.wanted_at = now
            idle = account.idle_elsewhere(need.holder, now)
            return (CONTENDED if cost <= available + idle else EXHAUSTED), 0
        # Half of an equal part: slices shrink as the limit nears, so little idles with one holder.
        share = max(0, available) // (2 * max(1, account.live_count(now)))
        if now < self._state.since + exchange.lease_ms:
            share = 0  # other gateways may not have reported yet what they know
        granted = max(min_amount, min(need.wish - ahead, overdrawn + share))
        counters.granted += granted
        return GRANTED, max(0, granted - overdrawn)

    def _fold(self, account: Account, has_window: bool) -> None:
        """Replaces rows that ended long ago by their sum in the base, once they are many.

        Rows of a limit without a window are dropped: what they took is free again.
        """
        exchange, now = self._exchange, self._now
        latest = now - exchange.fold_ms
        ended = [name for name, row in account.rows.items() if row.expires <= latest]
        if len(ended) <= FOLD_ROWS or self._state.since > latest:
            return  # a store that began later may not have all rows yet
        until, used = account.base.until, account.base.used
        for name in ended:
            row = account.rows.pop(name)
            until = max(until, row.expires)
            used += row.taken(now, is_strict=exchange.is_strict, has_window=has_window)
        if has_window:
            account.base = Base(until, used)
