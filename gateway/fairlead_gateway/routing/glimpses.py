"""What is known of a fleet's load without looking at all of it: our own part exactly, and the others' as it was seen last.

A fleet of up to ``SCAN_MOST`` instances is looked at as a whole for each request. A larger one is not: what others have on an
instance is remembered from the last time it was looked at, and a decision looks at its candidates, which are few, and at one more
in turn. The mean that prices recomputation, who of several holders is asked and who seems least busy come of what is remembered;
what a candidate costs comes of what is seen now. With nobody beside us what is remembered is nothing, and all of it is exact.
"""

from collections.abc import Collection
from typing import Final

from fairlead_gateway.routing.ledger import Ledger, Tally, backlog_of, least_busy

SCAN_MOST: Final = 16
LOOKS_MOST: Final = 5
"""Instances of a larger fleet whose load is looked at for one decision."""


class Glimpses:
    """Of one model's instances."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._beside: dict[str, Tally] = {}
        self._turn = 0
        self._looks = 0
        self._large = False

    def keep(self, instances: Collection[str]) -> None:
        """Those that are gone are forgotten."""
        self._beside = {name: beside for name, beside in self._beside.items() if name in instances}

    def begin(self, instances: int) -> None:
        """A decision among so many begins."""
        self._large = instances > SCAN_MOST
        self._looks = 0

    def look(self, own: Tally) -> Tally:
        """The load of an instance as it is."""
        seen = self._ledger.seen(own)
        if self._large:
            self._looks += 1
            if seen is not own:
                self._remember(own, seen)
        return seen

    def rough(self, own: Tally) -> Tally:
        """The same; of a large fleet as far as it is known without looking."""
        if not self._large:
            return self._ledger.seen(own)
        beside = self._beside.get(own.instance)
        return own if beside is None else _sum(own, beside)

    def fleet(self, own: list[Tally]) -> tuple[float, Tally]:
        """Mean backlog in seconds, and who is the least busy, roughly where there are many."""
        if not self._large:
            loads = self._ledger.seen_all(own)
        elif self._beside:
            loads = [self.rough(item) for item in own]
        else:
            loads = own
        return backlog_of(loads) / len(loads), least_busy(loads)

    def end(self, own: list[Tally]) -> None:
        """A decision has looked at its candidates; one more in turn, so that what is remembered of the rest stays young."""
        if self._large and self._looks < LOOKS_MOST:
            self._turn = (self._turn + 1) % len(own)
            self.look(own[self._turn])

    def _remember(self, own: Tally, seen: Tally) -> None:
        self._beside[own.instance] = Tally(
            own.instance,
            max(0, seen.inflight - own.inflight),
            max(0, seen.waiting - own.waiting),
            max(0.0, seen.backlog_seconds - own.backlog_seconds),
            max(0.0, seen.inflight_tokens - own.inflight_tokens),
        )


def _sum(own: Tally, beside: Tally) -> Tally:
    return Tally(
        own.instance,
        own.inflight + beside.inflight,
        own.waiting + beside.waiting,
        own.backlog_seconds + beside.backlog_seconds,
        own.inflight_tokens + beside.inflight_tokens,
    )
