"""The account of one limit in one window: the counters of its holders, and what is left."""

from typing import Final

from fairlead_gateway.quota.exchange import Base, Row

NO_BASE: Final = Base()


class Counters:
    """The counters of one holder, as the store has them."""

    __slots__ = ("busy", "expires", "granted", "returned", "spent")

    def __init__(self) -> None:
        self.granted = 0
        self.returned = 0
        self.spent = 0
        self.busy = 0
        self.expires = 0

    def merge(self, row: Row) -> None:
        """Raises the counters to those of a row."""
        self.granted = max(self.granted, row.granted)
        self.returned = max(self.returned, row.returned)
        self.spent = max(self.spent, row.spent)

    def used(self, now_ms: int, *, is_strict: bool, has_window: bool) -> int:
        """Returns how much of the limit the holder takes.

        After the end of its lease, that is what it has spent. In strict mode it is what it may have
        spent. Units that are given back are free again, since the holder's requests have ended.
        """
        outstanding = self.granted - self.returned
        if self.expires > now_ms or (is_strict and has_window):
            return max(outstanding, self.spent)
        return self.spent if has_window else 0

    def row(self, holder: str, start: int) -> Row:
        """Returns the counters as a row."""
        return Row(holder, start, self.granted, self.returned, self.spent, self.busy, self.expires)


class Account:
    """One limit in one window.

    amount: the largest that the limit had in this window.
    debt: what the windows before have used too much.
    wanted_at: when a holder last needed more than was left, in milliseconds.
    """

    __slots__ = ("amount", "base", "debt", "expires_at", "rows", "wanted_at")

    def __init__(self) -> None:
        self.rows: dict[str, Counters] = {}
        self.base = NO_BASE
        self.debt = 0
        self.amount = 0
        self.wanted_at = 0
        self.expires_at = 0

    def merge_base(self, base: Base) -> None:
        """Takes over the base of a later fold, which contains the rows that ended before it."""
        if base.until > self.base.until:
            self.base = base
            self.rows = {name: row for name, row in self.rows.items() if row.expires > base.until}
        elif base.until == self.base.until:
            self.base = Base(base.until, max(base.used, self.base.used))

    def is_folded(self, row: Row) -> bool:
        """Returns whether the base contains the row already."""
        return row.holder not in self.rows and 0 < row.expires <= self.base.until

    def used(self, now_ms: int, *, is_strict: bool, has_window: bool) -> int:
        """Returns what all holders have used or may still use."""
        rows = self.rows.values()
        return self.base.used + sum(row.used(now_ms, is_strict=is_strict, has_window=has_window) for row in rows)

    def idle_elsewhere(self, holder: str, now_ms: int) -> int:
        """Returns what other holders with a lease were granted and do not need now."""
        return sum(
            max(0, row.granted - row.returned - row.spent - row.busy)
            for name, row in self.rows.items()
            if name != holder and row.expires > now_ms
        )

    def live_count(self, now_ms: int) -> int:
        """Returns the number of holders with a lease."""
        return sum(row.expires > now_ms for row in self.rows.values())
