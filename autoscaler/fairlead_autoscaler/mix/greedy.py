"""A mix without a solver: worse than the cheapest, found in microseconds, and never without an answer.

Shapes are dealt with from the one with the fewest pools that can take it, then by load. Each goes to the pool whose replica
is cheapest for it (cost ÷ throughput), as far as replicas up to the pool's maximum have room, and what is left to the next
cheapest. Then every pool gets the whole replicas that its load needs. Last, while it saves anything, the cheapest-to-drop
part replica is dropped if what it holds fits into the room that the others' last replicas have left. What fits nowhere is
unserved, and said.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_autoscaler.mix.types import PoolCandidate


@dataclass(frozen=True, slots=True)
class GreedyMix:
    """Replicas of each candidate, the share of each shape that it takes (``shares[candidate][shape]``), and requests per
    second left over."""

    replicas: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    unserved: float


def solve_greedily(rates: Sequence[float], candidates: Sequence[PoolCandidate]) -> GreedyMix:
    """The greedy mix for ``rates`` (requests per second of each shape)."""
    work = _GreedyState(rates, candidates)
    for shape in work.order():
        work.place(shape, rates[shape], work.bounds())
    counts = work.counts()
    while (fewer := work.drop_replica(counts)) is not None:
        counts = fewer
    return GreedyMix(tuple(counts), tuple(tuple(row) for row in work.shares()), work.unserved)


class _GreedyState:
    """What has been placed where: ``placed[candidate][shape]`` requests per second, ``load[candidate]`` replicas' worth."""

    def __init__(self, rates: Sequence[float], candidates: Sequence[PoolCandidate]) -> None:
        self.rates = rates
        self.candidates = candidates
        self.placed = [[0.0] * len(rates) for _ in candidates]
        self.load = [0.0] * len(candidates)
        self.unserved = 0.0

    def order(self) -> list[int]:
        """Shapes that arrive, hardest first."""

        def key(shape: int) -> tuple[int, float]:
            able = [one.throughput[shape] for one in self.candidates if one.throughput[shape] > 0.0]
            return len(able), -(self.rates[shape] / max(able) if able else 0.0)

        return sorted([shape for shape, rate in enumerate(self.rates) if rate > 0.0], key=key)

    def bounds(self) -> list[float]:
        return [float(one.maximum) for one in self.candidates]

    def place(self, shape: int, rate: float, room: Sequence[float]) -> None:
        """Put so much of a shape where it is cheapest, with ``room`` replicas of each candidate; the rest is unserved."""
        able = [at for at, one in enumerate(self.candidates) if one.throughput[shape] > 0.0]
        for at in sorted(
            able, key=lambda at: self.candidates[at].cost_per_hour / self.candidates[at].throughput[shape]
        ):
            each = self.candidates[at].throughput[shape]
            taken = min(rate, max(0.0, room[at] - self.load[at]) * each)
            self.placed[at][shape] += taken
            self.load[at] += taken / each
            rate -= taken
            if rate <= 1e-12:
                return
        self.unserved += rate

    def counts(self) -> list[int]:
        """Whole replicas for the load of each."""
        return [
            min(one.maximum, max(one.minimum, math.ceil(load - 1e-9)))
            for one, load in zip(self.candidates, self.load, strict=True)
        ]

    def drop_replica(self, counts: list[int]) -> list[int] | None:
        """One replica fewer somewhere, if the others' room holds what it had; the dearest such. None where there is none."""
        order = sorted(range(len(counts)), key=lambda at: -self.candidates[at].cost_per_hour)
        for at in order:
            if counts[at] <= self.candidates[at].minimum:
                continue
            fewer = counts.copy()
            fewer[at] -= 1
            if self._fit_into_room(at, fewer):
                return fewer
        return None

    def _fit_into_room(self, at: int, counts: list[int]) -> bool:
        """Move what is over one replica fewer of ``at`` into the others' room; False, and all as before, where it does not
        fit."""
        placed, load, unserved = [row.copy() for row in self.placed], self.load.copy(), self.unserved
        room = [float(count) for count in counts]
        over = self.load[at] - room[at]
        for shape, rate in enumerate(placed[at]):
            if over <= 1e-12:
                break
            each = self.candidates[at].throughput[shape]
            moved = min(rate, over * each)
            if moved <= 0.0:
                continue
            self.placed[at][shape] -= moved
            self.load[at] -= moved / each
            over -= moved / each
            keep, room[at] = room[at], self.load[at]
            self.place(shape, moved, room)
            room[at] = keep
        if self.unserved > unserved + 1e-9:
            self.placed, self.load, self.unserved = placed, load, unserved
            return False
        return True

    def shares(self) -> list[list[float]]:
        """What each candidate takes of each shape, 0..1."""
        return [
            [part / rate if rate > 0.0 else 0.0 for part, rate in zip(row, self.rates, strict=True)]
            for row in self.placed
        ]
