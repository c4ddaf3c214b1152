"""A worker's slices of limits: what it may spend without asking, and what it has spent.

A request takes from the slice of the current window before it starts, and settles with that same
slice when it ends. What it used beyond is charged to the current window.
"""

import math
from typing import Final

from fairlead_gateway.quota.exchange import CLOSED, EXHAUSTED, GRANTED, OPEN

DEMAND_SECONDS: Final = 1.0
"""A slice is wished for so many seconds of demand, as it was lately."""
IDLE_SECONDS: Final = 5.0
"""A slice that no request has used for so long is given back."""
REFUSED_SECONDS: Final = 0.1
"""A limit that is used up is not asked for again before."""
OPEN_SECONDS: Final = 1.0
"""Requests of a tenant that is admitted without Redis need no slice for so long."""
_DECAY_SECONDS: Final = 0.02
"""Demand decays in steps of at least so long. Why: an exponential costs as much as all the rest."""
_STEPS_OF_A_LIMIT: Final = 256
MAX_COUNT: Final = 1 << 60
"""A counter of one holder grows no further, so that sums of them fit into messages."""


def report_step(amount: int) -> int:
    """Returns the part of a limit whose use is reported at once, not at the next interval.

    A gateway that is killed takes what it has not reported along: others use that again. So this is
    one request of small limits, and the reports of large ones are no more than those of a timer.
    """
    return max(1, amount // _STEPS_OF_A_LIMIT)


class Slice:
    """The counters of one holder for one limit in one window; see `exchange.Row`.

    valid_until: monotonic seconds until which requests may take from it.
    """

    __slots__ = ("busy", "granted", "returned", "spent", "start", "valid_until")

    def __init__(self, start: int) -> None:
        self.start = start
        self.granted = 0
        self.returned = 0
        self.spent = 0
        self.busy = 0
        self.valid_until = 0.0

    @property
    def free(self) -> int:
        """The amount left for further requests; negative after an overrun."""
        return self.granted - self.returned - self.spent - self.busy


class LeasedLimit:
    """One limit of a tenant in one worker.

    has_window: False for units that requests give back when they end.
    open_until: monotonic seconds until which requests need no slice.
    is_known: the store has said how much is left.
    available, used, ends_at: the limit over all gateways, as last known; the end of the window in
        monotonic seconds.
    unreported: what requests have used since the last report.
    """

    __slots__ = (
        "_changed",
        "_demand",
        "_demand_at",
        "available",
        "closing",
        "current",
        "ends_at",
        "has_window",
        "is_contended",
        "is_known",
        "last_taken_at",
        "open_until",
        "status",
        "status_at",
        "unreported",
        "used",
    )

    def __init__(self, *, has_window: bool, is_soft: bool = False) -> None:
        self.has_window = has_window
        self.open_until = math.inf if is_soft else 0.0
        self.current = Slice(0)
        self.closing: list[Slice] = []
        self.status = GRANTED
        self.status_at = 0.0
        self.is_known = False
        self.available = 0
        self.used = 0
        self.ends_at = 0.0
        self.is_contended = False
        self.last_taken_at = 0.0
        self.unreported = 0
        self._demand = 0.0
        self._demand_at = 0.0
        self._changed = False

    def has(self, amount: int, now: float) -> bool:
        """Returns whether a request that needs an amount can start now. 0 needs no slice."""
        slice_ = self.current
        return (
            now < self.open_until
            or (now < slice_.valid_until and slice_.granted - slice_.returned - slice_.spent - slice_.busy >= amount)
            or amount == 0
        )

    def is_used_up(self, amount: int, now: float) -> bool:
        """Returns whether the store has just said that less than an amount is left."""
        if self.status not in (EXHAUSTED, CLOSED) or now - self.status_at >= REFUSED_SECONDS or now >= self.ends_at > 0:
            return False
        return amount > max(0, self.available) + max(0, self.current.free)

    def take(self, amount: int, now: float) -> Slice:
        """Reserves an amount for a request, and returns the slice to settle with."""
        slice_ = self.current
        slice_.busy += amount
        self.last_taken_at = now
        if now - self._demand_at >= _DECAY_SECONDS:
            self._demand = self._recent_demand(now)
            self._demand_at = now
        self._demand = self._demand + amount  # not `+=`, which mypyc adds as objects
        self._changed = True
        return slice_

    def settle(self, slice_: Slice, taken: int, used: int) -> None:
        """Ends the reservation of a request. used: nothing for units that are given back."""
        slice_.busy -= taken
        self._changed = True
        if not self.has_window:
            return
        self.unreported = self.unreported + used
        if slice_ is self.current or used <= taken:
            slice_.spent += used
        else:  # the window of the request is over
            slice_.spent += taken
            self.current.spent += used - taken
        if self.current.spent > MAX_COUNT:
            self.current.spent = MAX_COUNT

    def least_and_wish(self, amount: int, now: float) -> tuple[int, int]:
        """Returns what to ask for, so that waiting requests of an amount in total can start."""
        free = self.current.free if now < self.current.valid_until else 0
        least = max(0, amount - free)
        return least, least + math.ceil(self._recent_demand(now))

    def is_low(self, now: float) -> bool:
        """Returns whether the store should be asked before requests must wait for it.

        To be called after `take`.
        """
        if now < self.open_until:
            return now >= self.ends_at
        slice_ = self.current
        left = slice_.granted - slice_.returned - slice_.spent - slice_.busy
        return 4 * left < self._demand and now - self.status_at >= REFUSED_SECONDS / 10

    def on_grant(self, start: int, granted: int, valid_until: float) -> None:
        """Applies a grant for the window that starts at `start`."""
        slice_ = self.current
        if slice_.start == 0:  # used before the store said which window it is
            slice_.start = start
        if start != slice_.start:
            if start < slice_.start:
                return
            if slice_.granted or slice_.spent or slice_.busy:
                self.closing.append(slice_)
            slice_ = self.current = Slice(start)
            self._changed = True
        slice_.granted = max(slice_.granted, granted)
        slice_.valid_until = max(slice_.valid_until, valid_until)

    def on_status(self, status: int, available: int, used: int, ends_at: float, now: float) -> None:
        """Records what the store said about the limit."""
        self.status, self.status_at = status, now
        if status == OPEN:
            self.open_until = max(self.open_until, now + OPEN_SECONDS)
            return
        self.is_known = True
        self.available, self.used, self.ends_at = available, used, ends_at

    def give_back(self, now: float, *, waiting: int = 0, all_of_it: bool = False) -> None:
        """Gives back what will not be used: of ended windows, when idle, or when others wait."""
        for slice_ in self.closing:
            slice_.returned += max(0, slice_.free)
        slice_ = self.current
        spare = slice_.free - waiting
        if spare <= 0:
            return
        idle = now - self.last_taken_at
        if all_of_it or idle >= IDLE_SECONDS or (self.is_contended and idle >= DEMAND_SECONDS / 4):
            slice_.returned += spare
        elif self.is_contended:
            slice_.returned += max(0, spare - math.ceil(self._recent_demand(now) / 4))
        else:
            return
        self._changed = True

    def take_report(self, *, is_due: bool) -> list[Slice]:
        """Returns the slices to report; none if nothing has changed, unless a report is due."""
        if not self._changed and not (is_due and self.current.granted > self.current.returned):
            return []
        self._changed = False
        self.unreported = 0
        slices = [*self.closing, self.current]
        self.closing = [slice_ for slice_ in self.closing if slice_.busy > 0]
        return slices

    @property
    def has_grant(self) -> bool:
        """Whether a grant is out, a request is in flight, or a change was not reported."""
        slice_ = self.current
        is_out = slice_.busy > 0 or slice_.granted > slice_.returned + slice_.spent
        return self._changed or is_out or bool(self.closing)

    def restart(self) -> None:
        """Starts again under another holder's name; requests in flight end with the old slices."""
        self.current = Slice(0)
        self.closing = []
        self._changed = False

    def _recent_demand(self, now: float) -> float:
        elapsed = now - self._demand_at
        if elapsed >= 8.0 * DEMAND_SECONDS:
            return 0.0
        return self._demand * math.exp(-elapsed / DEMAND_SECONDS)
