"""Metric series of the LoRA adapters with most requests; their number is bounded.

Workers count each adapter. The first adapters get series of their own until there are no more. One
without a series that has recently had twice the requests of the smallest one with a series takes
its place. What an adapter counts while it has no series counts as `other`. So each event is counted
once, and no shown counter falls.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeAlias

AdapterKey: TypeAlias = tuple[str, str]
"""The base model as `namespace/name`, and the name of the adapter."""
AdapterTables: TypeAlias = Sequence[Mapping[str, int]]
"""Counts of adapters by name, one table for each of these positions."""

REQUESTS: Final = 0
LOADS: Final = 1
LOAD_MICROSECONDS: Final = 2
LOAD_FAILURES: Final = 3
EVICTIONS: Final = 4
POSITIONS: Final = 5

OTHER: Final = "other"
_HALF_LIFE_SECONDS: Final = 3_600.0
_PROMOTION_FACTOR: Final = 2.0


class AdapterSeries:
    """The counts of at most `max_adapters` adapters, and of the others of each model."""

    def __init__(self, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._totals: dict[AdapterKey, list[int]] = {}
        self._counts: dict[AdapterKey, list[int]] = {}
        self._others: dict[str, list[int]] = {}
        self._fresh: dict[AdapterKey, Sequence[int]] = {}  # what this update has added to each
        self._recent: dict[AdapterKey, float] = {}
        self._decayed_at = 0.0

    def update(self, models: Mapping[str, AdapterTables], now: float) -> None:
        """Adds what has been counted since the last update.

        models: all counts since the start of the workers. An adapter that has left is in none.
        now: monotonic seconds.
        """
        self._decay(now)
        before, self._totals, self._fresh = self._totals, {}, {}
        for model, tables in models.items():
            for adapter in dict.fromkeys(name for table in tables for name in table):
                key = (model, adapter)
                totals = self._totals[key] = [table.get(adapter, 0) for table in tables]
                known = before.get(key)
                more = totals if known is None else [max(0, new - old) for new, old in zip(totals, known, strict=True)]
                if any(more):
                    self._add(key, more)
        for key in self._counts.keys() - self._totals.keys():
            del self._counts[key]
            self._recent.pop(key, None)
        for model in self._others.keys() - models.keys():
            del self._others[model]

    def rows(self) -> Iterator[tuple[AdapterKey, Sequence[int]]]:
        """Yields the counts of each adapter with a series; those of the others are last."""
        yield from sorted(self._counts.items())
        for model, counts in sorted(self._others.items()):
            yield (model, OTHER), counts

    def _add(self, key: AdapterKey, more: Sequence[int]) -> None:
        self._recent[key] = self._recent.get(key, 0.0) + more[REQUESTS]
        counts = self._counts.get(key)
        if counts is None and self._make_room(key):
            counts = self._counts[key] = [0] * POSITIONS
        if counts is None:
            self._add_to_others(key[0], more)
            return
        self._fresh[key] = more
        for position, amount in enumerate(more):
            counts[position] += amount

    def _add_to_others(self, model: str, more: Sequence[int]) -> None:
        counts = self._others.setdefault(model, [0] * POSITIONS)
        for position, amount in enumerate(more):
            counts[position] += amount

    def _make_room(self, key: AdapterKey) -> bool:
        """Returns whether the adapter may have a series. For one that is used far more, that of the
        least used goes.
        """
        if key[1] == OTHER:
            return False
        if len(self._counts) < self._max_adapters:
            return True
        smallest = min(self._counts, key=lambda known: self._recent.get(known, 0.0), default=None)
        if smallest is None or self._recent[key] <= _PROMOTION_FACTOR * self._recent.get(smallest, 0.0):
            return False
        del self._counts[smallest]
        if smallest in self._fresh:  # no scrape has shown it
            self._add_to_others(smallest[0], self._fresh[smallest])
        return True

    def _decay(self, now: float) -> None:
        if now - self._decayed_at < _HALF_LIFE_SECONDS:
            return
        self._decayed_at = now
        self._recent = {key: requests / 2 for key, requests in self._recent.items() if requests > 1.0}
