"""The messages between a gateway and the store, each about one tenant.

All counters only grow, and are merged by the maximum. A message that arrives twice, or late,
changes nothing that was not true before. Times are milliseconds of the store's clock.
"""

from typing import Final

import msgspec

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


class Row(msgspec.Struct, array_like=True, frozen=True):
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
        """The part of the grant that is neither spent nor reserved."""
        return max(0, self.granted - self.returned - self.spent - self.busy)

    @property
    def outstanding(self) -> int:
        """The part of the grant that is not spent."""
        return max(0, self.granted - self.returned - self.spent)


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
