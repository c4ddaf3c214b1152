"""The messages between a gateway and the store, each about one tenant, and the windows of limits.

All counters only grow, and are merged by the maximum. A message that arrives twice, or late,
changes nothing that was not true before. Times are milliseconds of the store's clock.
"""

from typing import Final

import msgspec

from fairlead.tenants.model import Window

NO_WINDOW: Final = ""
"""The window of units that requests give back."""
_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_ERA_DAYS: Final = 146_097
_FROM_MARCH_0000: Final = 719_468  # days from 0000-03-01 to 1970-01-01

GRANTED: Final = 0
"""The holder has what it needs."""
EXHAUSTED: Final = 1
"""The limit is used up until its window ends, or until requests end."""
CONTENDED: Final = 2
"""Enough is left, in slices of other holders; they give it back shortly."""
NOT_YET: Final = 3
"""The store lost its state, or is new: it grants nothing until every holder has reported."""
CLOSED: Final = 4
"""The store lost its state, and the rest of the window cannot be known."""

UNAVAILABLE: Final = 5
"""The store does not answer, and the tenant's requests are refused meanwhile."""
OPEN: Final = 6
"""The store does not answer, and the tenant's requests are admitted meanwhile."""

_STEPS_OF_A_LIMIT: Final = 256


def window_span(window: str, now_ms: int) -> tuple[int, int]:
    """Returns start and end of the window that contains a time; (0, 0) without a window."""
    if window == Window.MINUTE:
        start = now_ms - now_ms % _MINUTE_MS
        return start, start + _MINUTE_MS
    if window == Window.DAY:
        start = now_ms - now_ms % _DAY_MS
        return start, start + _DAY_MS
    if window == Window.MONTH:
        year, month = _year_and_month(now_ms // _DAY_MS)
        return _month_start(year, month), _month_start(year, month + 1)
    return 0, 0


def previous_start(window: str, start_ms: int) -> int:
    return window_span(window, start_ms - 1)[0]


def _year_and_month(days: int) -> tuple[int, int]:
    """Returns year and month (1..12) of a day since 1970.

    Source: Howard Hinnant, "chrono-compatible low-level date algorithms". The script in Lua does
    the same.
    """
    shifted = days + _FROM_MARCH_0000
    era = shifted // _ERA_DAYS
    day = shifted - era * _ERA_DAYS
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    month = (5 * (day - (365 * year + year // 4 - year // 100)) + 2) // 153
    if month < 10:
        return year + era * 400, month + 3
    return year + era * 400 + 1, month - 9


def _month_start(year: int, month: int) -> int:
    """Returns the first millisecond of a month; month 13 is the next January."""
    if month > 12:
        year, month = year + 1, 1
    if month <= 2:
        year, month = year - 1, month + 12
    era = year // 400
    year_of_era = year - era * 400
    day = (153 * (month - 3) + 2) // 5 + 365 * year_of_era + year_of_era // 4 - year_of_era // 100
    return (era * _ERA_DAYS + day - _FROM_MARCH_0000) * _DAY_MS


def report_step(amount: int) -> int:
    """Returns the part of a limit whose use is reported at once, not at the next interval.

    A gateway that is killed takes what it has not reported along: others use that again. So this is
    one request of small limits, and the reports of large ones are no more than those of a timer.
    """
    return max(1, amount // _STEPS_OF_A_LIMIT)


class Row(msgspec.Struct, array_like=True):
    """The counters of one holder for one limit in one window.

    - start: of the window; 0 without one.
    - granted, returned, spent: only grow.
    - busy: of what is granted, the part reserved for requests in flight. The last report counts.
    - expires: the end of the holder's lease, as the holder knows it; 0 before its first grant.
    """

    holder: str
    start: int
    granted: int
    returned: int
    spent: int
    busy: int = 0
    expires: int = 0

    @property
    def idle(self) -> int:
        return max(0, self.granted - self.returned - self.spent - self.busy)

    @property
    def outstanding(self) -> int:
        return max(0, self.granted - self.returned - self.spent)

    def taken(self, now_ms: int, *, is_strict: bool, has_window: bool) -> int:
        """Returns how much of the limit the holder takes.

        After the end of its lease, that is what it has spent. In strict mode it is what it may have
        spent. Units that are given back are free again, since the holder's requests have ended.
        """
        if self.expires > now_ms or (is_strict and has_window):
            return max(self.granted - self.returned, self.spent)
        return self.spent if has_window else 0


class Need(msgspec.Struct, array_like=True, frozen=True):
    """A holder's need of more of a limit: `least` for the next request, `wish` for a while."""

    holder: str
    least: int
    wish: int


class Base(msgspec.Struct, array_like=True, frozen=True):
    """The total of holders whose lease ended at `until` or before, which have no row any more."""

    until: int = 0
    used: int = 0


class LimitReport(msgspec.Struct, array_like=True):
    """The report and the needs of a gateway for one limit.

    - own: rows of its workers, whose leases are renewed.
    - seen: rows of others, which the gateway has seen before: a store that lost them merges them.
    - bases: (window's start, base) that it has seen.
    """

    limit: str
    window: str
    amount: int
    own: list[Row] = []
    needs: list[Need] = []
    seen: list[Row] = []
    bases: list[tuple[int, Base]] = []


class Exchange(msgspec.Struct, array_like=True):
    """One message to the store, about one tenant.

    - lease_ms: how long the leases of the own rows last.
    - fold_ms: rows whose lease ended so long ago may be added to the base.
    - epoch: the last epoch of the store that this gateway knows; empty at first.
    - is_merged: the exchange holds all checkpoints, read after the epoch's first lease was over.
    - wants_rows: the reply contains all rows.
    """

    is_strict: bool
    lease_ms: int
    fold_ms: int
    epoch: str
    is_merged: bool
    wants_rows: bool
    limits: list[LimitReport]


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """The state of a holder: the absolute counter `granted`, the end of its lease, and a status.

    expires: -1 if the holder's row was folded; it must go on under another name.
    """

    holder: str
    granted: int
    expires: int
    status: int


class GrantUpdate(msgspec.Struct, array_like=True, frozen=True):
    """A grant as its worker gets it: for one limit, with times in monotonic seconds.

    - granted: absolute; None if nothing is known but the status.
    - is_folded: the worker is another holder from now on, and drops the tenant's slices.
    """

    limit: str
    status: int
    start: int = 0
    granted: int | None = None
    valid_until: float = 0.0
    available: int = 0
    used: int = 0
    ends_at: float = 0.0
    is_contended: bool = False
    is_folded: bool = False


class LimitReply(msgspec.Struct, array_like=True):
    """The state of one limit in its current window.

    - available: what is left to grant; negative after an overrun.
    - used: by all holders, with debt of the last window.
    - is_contended: a holder needed more than was left, a short time ago.
    - rows, bases: of this window and the last one; empty unless they were wanted.
    """

    limit: str
    start: int
    end: int
    available: int
    used: int
    is_contended: bool
    grants: list[Grant]
    rows: list[Row]
    bases: list[tuple[int, Base]]


class ExchangeReply(msgspec.Struct, array_like=True):
    """The store's reply.

    - epoch: changes when the store may have lost state; since: when it began.
    - is_lost: the store has lost state in this epoch.
    - is_open: all checkpoints were merged since, or nothing was lost.
    """

    epoch: str
    since: int
    now: int
    is_lost: bool
    is_open: bool
    limits: list[LimitReply]
