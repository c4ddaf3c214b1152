"""Greedy mix: found within microseconds and without a solver, but not the cheapest.

Shapes with the fewest pools that can serve them come first, then those with the most load. Each
shape goes to the pool whose replica is cheapest for it (cost over throughput). What exceeds the
pool's maximum goes to the next cheapest. Then every pool gets the whole replicas that its load
needs. Last, while that saves anything, the most expensive partly used replica is dropped, if its
load fits the free room of the others. The rest is unserved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead_autoscaler.mix.types import PoolCandidate


@dataclass(frozen=True, slots=True)
class GreedyMix:
    """Replicas of each candidate, and `shares[candidate][shape]`, the share of each shape that it
    takes.

    unserved: requests per second that no candidate takes.
    """

    replicas: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    unserved: float


def solve_greedily(rates: Sequence[float], candidates: Sequence[PoolCandidate]) -> GreedyMix:
    """Returns the greedy mix for `rates`, in requests per second of each shape."""
    state = _GreedyState(rates, candidates)
    for shape in state.order():
        state.place(shape, rates[shape], state.bounds())
    counts = state.counts()
    while (fewer := state.drop_replica(counts)) is not None:
        counts = fewer
    return GreedyMix(tuple(counts), tuple(tuple(row) for row in state.shares()), state.unserved)


class _GreedyState:
    """The placement of the load so far.

    placed: requests per second, by candidate and shape.
    load: of each candidate, in replicas.
    """

    def __init__(self, rates: Sequence[float], candidates: Sequence[PoolCandidate]) -> None:
        self.rates = rates
        self.candidates = candidates
        self.placed = [[0.0] * len(rates) for _ in candidates]
        self.load = [0.0] * len(candidates)
        self.unserved = 0.0

    def order(self) -> list[int]:
        """Returns the shapes that arrive, the hardest first."""

        def key(shape: int) -> tuple[int, float]:
            throughputs = [
                candidate.throughput[shape] for candidate in self.candidates if candidate.throughput[shape] > 0.0
            ]
            return len(throughputs), -(self.rates[shape] / max(throughputs) if throughputs else 0.0)

        return sorted([shape for shape, rate in enumerate(self.rates) if rate > 0.0], key=key)

    def bounds(self) -> list[float]:
        return [float(candidate.maximum) for candidate in self.candidates]

    def place(self, shape: int, rate: float, room: Sequence[float]) -> None:
        """Places `rate` of a shape where it is cheapest.

        room: replicas of each candidate that may be used. The rest is unserved.
        """
        servable = [at for at, candidate in enumerate(self.candidates) if candidate.throughput[shape] > 0.0]
        for at in sorted(
            servable, key=lambda at: self.candidates[at].cost_per_hour / self.candidates[at].throughput[shape]
        ):
            throughput = self.candidates[at].throughput[shape]
            taken = min(rate, max(0.0, room[at] - self.load[at]) * throughput)
            self.placed[at][shape] += taken
            self.load[at] += taken / throughput
            rate -= taken
            if rate <= 1e-12:
                return
        self.unserved += rate

    def counts(self) -> list[int]:
        """Returns the whole replicas for the load of each candidate."""
        return [
            min(candidate.maximum, max(candidate.minimum, math.ceil(load - 1e-9)))
            for candidate, load in zip(self.candidates, self.load, strict=True)
        ]

    def drop_replica(self, counts: list[int]) -> list[int] | None:
        """Returns the replicas with one fewer of the most expensive candidate whose load fits
        elsewhere; None if there is none.
        """
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
        """Moves the load of `at` beyond its replicas in `counts` into the room of the others.

        Returns False, and moves nothing, if it does not fit there.
        """
        placed, load, unserved = [row.copy() for row in self.placed], self.load.copy(), self.unserved
        room = [float(count) for count in counts]
        over = self.load[at] - room[at]
        for shape, rate in enumerate(placed[at]):
            if over <= 1e-12:
                break
            throughput = self.candidates[at].throughput[shape]
            moved = min(rate, over * throughput)
            if moved <= 0.0:
                continue
            self.placed[at][shape] -= moved
            self.load[at] -= moved / throughput
            over -= moved / throughput
            own_room, room[at] = room[at], self.load[at]
            self.place(shape, moved, room)
            room[at] = own_room
        if self.unserved > unserved + 1e-9:
            self.placed, self.load, self.unserved = placed, load, unserved
            return False
        return True

    def shares(self) -> list[list[float]]:
        """Returns the share of each shape (0..1) that each candidate takes."""
        return [
            [part / rate if rate > 0.0 else 0.0 for part, rate in zip(row, self.rates, strict=True)]
            for row in self.placed
        ]
