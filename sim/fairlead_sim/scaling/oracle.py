"""The cheapest schedule found that keeps the target: what a clairvoyant would have paid, and the yardstick of every controller.

The clairvoyant knows each request and how long each start will take. So replicas are ready when it wants them, and it pays for each
from as long before as its start takes (``Pool``'s foresight). What is searched for is how many are ready when, in segments:

1. **A first schedule.** The work of each segment in engine-seconds (prompt tokens, generated tokens, the KV that these read, at the
   speed that the engines really have then) divided by a share of busy time and by the segment gives replicas. A replica that
   would leave and be back before a start is paid back stays. The share is the highest that keeps the target, by bisection; and one
   step more generous, for what follows.
2. **Lowering.** One replica less over a stretch costs some misses and saves its time, and more where it spares a start. Misses stay
   near their cause, so stretches far enough apart are tried in one and the same run. Those that save enough per miss are taken
   together, as many as the target bears, over long and short stretches in turn. What is enough falls by and by: first what costs
   no misses or hardly any, last whatever the target still bears; otherwise the first stretches would spend what others use better.

It is a search: a cheaper schedule may exist, and none of ours can be called better than "so much above the best that was found".
With two kinds of accelerator the large one carries what is always there, in whole replicas, the small one the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, inf

from fairlead.fleet import Role
from fairlead_sim.scaling.loop import Outcome, foreseen, inside
from fairlead_sim.scaling.plant import Scenario
from fairlead_sim.scaling.pool import PoolSetup

_FAR_SECONDS = 900.0
_HALVINGS = 8
_GENEROUS = 0.85
_STRETCHES_SECONDS = (1_800.0, 600.0, 120.0)
_ENOUGH = (1.0, 0.3, 0.1, 0.03, 0.0)
"""Of what the whole schedule costs per miss that the target bears: so much must a miss save to be accepted."""

Counts = dict[str, list[int]]
"""Replicas by pool and segment."""


@dataclass(frozen=True, slots=True)
class Found:
    """A schedule of ready replicas, (from when, replicas by pool), and what came of it."""

    steps: tuple[tuple[float, Mapping[str, int]], ...]
    attainment: float
    cost: float

    def better(self, other: "Found", target: float = 0.99) -> bool:
        """Cheaper of two that keep the target; else whichever keeps it, or comes nearer."""
        if self.attainment >= target and other.attainment >= target:
            return self.cost < other.cost
        return self.attainment > other.attainment


def replayed(scenario: Scenario, steps: Sequence[tuple[float, Mapping[str, int]]]) -> Found:
    """A schedule that was found before, run again."""
    outcome = foreseen(scenario, steps)
    return Found(tuple(steps), outcome.attainment, outcome.cost)


def search(scenario: Scenario, *, target: float = 0.99, runs: int = 400) -> Found:
    """At most about so many runs of the plant. Where nothing reaches the target, the schedule with the most attainment."""
    return _Search(scenario, target, runs).found()


@dataclass(frozen=True, slots=True)
class _Lower:
    """One replica of a pool less over segments [begin, end): what it saves, and the misses that it makes."""

    pool: str
    begin: int
    end: int
    saves: float
    misses: int


class _Search:
    def __init__(self, scenario: Scenario, target: float, runs: int) -> None:
        self._scenario = scenario
        self._target = target
        self._left = runs
        self._dt = 60.0 if scenario.seconds > 3 * 3600.0 else 20.0
        self._segments = ceil(scenario.seconds / self._dt)
        self._pools = {setup.facts.name: setup for setup in scenario.pools}
        self._works = {name: self._work(setup) for name, setup in self._pools.items()}
        self._best: Found | None = None

    def found(self) -> Found:
        low, high = 0.05, 1.5  # of busy time: surely enough replicas, surely too few
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if self._try(self._first(middle))[0].attainment >= self._target:
                low = middle
            else:
                high = middle
        half = self._left // 2
        self._lowered(self._first(low * _GENEROUS), half)
        self._lowered(self._first(low), 0)
        assert self._best is not None
        return self._best

    # The first schedule --------------------------------------------------------------------------------------------------

    def _work(self, setup: PoolSetup) -> list[float]:
        """Engine-seconds of each segment's arrivals on this pool, the steps' base left out."""
        profile, role, load = setup.profile, setup.facts.role, self._scenario.load
        work = [0.0] * self._segments
        token = profile.sequence_seconds + profile.prefill_token_seconds
        for at, prompt, output in zip(load.arrivals, load.prompts, load.outputs, strict=True):
            seconds = 0.0
            if role is not Role.DECODE:
                seconds += profile.prefill_token_seconds * prompt
            if role is not Role.PREFILL:
                seconds += output * (token + profile.resident_token_seconds * (prompt + output / 2))
            work[min(self._segments - 1, int(at / self._dt))] += seconds
        for since, factor in self._scenario.troubles.slow:
            for segment in range(int(since / self._dt), self._segments):
                work[segment] *= factor
        return [seconds / self._dt for seconds in work]

    def _first(self, share: float) -> Counts:
        """Replicas for a share of busy time."""
        serving = [name for name, setup in self._pools.items() if setup.facts.role is Role.SERVE]
        if len(serving) == 2:
            small, large = sorted(serving, key=lambda name: self._pools[name].facts.cost_per_hour)
            base = self._bounded(large, [floor(work / share) for work in self._steady(self._works[large])])
            rest = [
                work * max(0.0, 1.0 - count * share / max(1e-9, big))
                for work, big, count in zip(self._works[small], self._works[large], base, strict=True)
            ]
            return {large: base, small: self._bounded(small, [ceil(work / share) for work in rest])}
        return {name: self._bounded(name, [ceil(one / share) for one in work]) for name, work in self._works.items()}

    def _steady(self, work: list[float]) -> list[float]:
        """Of each segment the least within a quarter of an hour around."""
        around = max(1, int(_FAR_SECONDS / 2 / self._dt))
        return [min(work[max(0, at - around) : at + around + 1]) for at in range(len(work))]

    def _bounded(self, pool: str, counts: list[int]) -> list[int]:
        """Within the pool's bounds, and closed where leaving is not worth a start."""
        facts = self._pools[pool].facts
        counts = [max(facts.minimum, min(facts.maximum, count)) for count in counts]
        return self._closed(pool, counts)

    def _closed(self, pool: str, counts: list[int]) -> list[int]:
        """At every level, gaps that cost less than a start are filled."""
        most = int(self._start_seconds(pool) / self._dt)
        closed = list(counts)
        for level in range(1, max(counts, default=0) + 1):
            last = None
            for at, count in enumerate(counts):
                if count < level:
                    continue
                if last is not None and 1 < at - last <= most + 1:
                    for gap in range(last + 1, at):
                        closed[gap] = max(closed[gap], level)
                last = at
        return closed

    def _start_seconds(self, pool: str) -> float:
        """Of a start, on the mean (u² is a third on the mean)."""
        startup = self._pools[pool].startup
        return (startup.least_seconds + startup.spread_seconds / 3.0) / (1.0 - startup.failing)

    # Running one ---------------------------------------------------------------------------------------------------------

    def _try(self, counts: Counts) -> tuple[Outcome, list[int]]:
        """What comes of it, and the misses of each segment's arrivals."""
        self._left -= 1
        steps: list[tuple[float, Mapping[str, int]]] = []
        last: dict[str, int] = {}
        for segment in range(self._segments):
            now = {name: of[segment] for name, of in counts.items()}
            changed = {name: count for name, count in now.items() if last.get(name) != count}
            if changed:
                steps.append((segment * self._dt, changed))
            last = now
        outcome = foreseen(self._scenario, steps)
        found = Found(tuple(steps), outcome.attainment, outcome.cost)
        if self._best is None or found.better(self._best, self._target):
            self._best = found
        book, misses = outcome.book, [0] * self._segments
        for request, at in enumerate(book.arrival):
            if not inside(book, request, outcome.ttft_seconds, outcome.itl_seconds):
                misses[min(self._segments - 1, int(at / self._dt))] += 1
        return outcome, misses

    # Lowering ------------------------------------------------------------------------------------------------------------

    def _lowered(self, counts: Counts, spare: int) -> None:
        """Lower stretch by stretch, while the target holds and more than ``spare`` runs are left."""
        budget = int((1.0 - self._target) * len(self._scenario.load))
        _, misses = self._try(counts)
        turn = 0
        for enough in _ENOUGH:
            each = enough * sum([self._price(name, of) for name, of in counts.items()]) / max(1, budget)
            idle = 0
            while idle < len(_STRETCHES_SECONDS) and self._left > spare:
                seconds = _STRETCHES_SECONDS[turn % len(_STRETCHES_SECONDS)]
                turn += 1
                offers = self._offers(counts, misses, max(1, int(seconds / self._dt)), turn)
                worth = [offer for offer in offers if offer.saves >= each * offer.misses]
                taken = self._taken(counts, misses, worth, budget)
                if taken is None:
                    idle += 1
                else:
                    counts, misses = taken
                    idle = 0

    def _offers(self, counts: Counts, misses: list[int], length: int, turn: int) -> list[_Lower]:
        """Every stretch of that length lowered by one, each measured; those that would cost are left out."""
        far = max(length, int(_FAR_SECONDS / self._dt))
        shift = (turn * 7919) % length
        begins = range(shift - length if shift else 0, self._segments, length)
        batches: dict[tuple[str, int], list[tuple[int, int]]] = {}
        each = max(1, -(-(length + far) // length))
        for number, begin in enumerate(begins):
            stretch = max(0, begin), min(self._segments, begin + length)
            for name in counts:
                batches.setdefault((name, number % each), []).append(stretch)
        offers: list[_Lower] = []
        for (name, _), stretches in batches.items():
            lower = {other: list(of) for other, of in counts.items()}
            some = [one for one in stretches if self._lower(lower, name, *one)]
            if not some or self._left <= 0:
                continue
            _, now = self._try(lower)
            for begin, end in some:
                alone = {name: list(counts[name])}
                self._lower(alone, name, begin, end)
                saves = self._price(name, counts[name]) - self._price(name, alone[name])
                until = min(self._segments, end + far)
                more = sum(now[begin:until]) - sum(misses[begin:until])
                if saves > 0.0:
                    offers.append(_Lower(name, begin, end, saves, more))
        return sorted(offers, key=lambda one: one.saves / one.misses if one.misses > 0 else inf, reverse=True)

    def _lower(self, counts: Counts, pool: str, begin: int, end: int) -> bool:
        """One less over these segments where there are more than the least; False where nowhere."""
        least = self._pools[pool].facts.minimum
        of = counts[pool]
        before = of[begin:end]
        of[begin:end] = [max(least, count - 1) for count in before]
        return of[begin:end] != before

    def _price(self, pool: str, counts: list[int]) -> float:
        """Replica-seconds of a schedule, starts included, in money."""
        starts = sum([max(0, after - before) for before, after in pairwise(counts)])
        return (sum(counts) * self._dt + starts * self._start_seconds(pool)) * self._pools[pool].facts.cost_per_hour

    def _taken(
        self, counts: Counts, misses: list[int], offers: list[_Lower], budget: int
    ) -> tuple[Counts, list[int]] | None:
        """As many of the best offers as the target bears, none near another; None when it bears none."""
        chosen: list[_Lower] = []
        spent = sum(misses)
        far = int(_FAR_SECONDS / 3 / self._dt)
        for offer in offers:
            near = any(offer.begin < one.end + far and one.begin < offer.end + far for one in chosen)
            if not near and spent + max(0, offer.misses) <= budget:
                chosen.append(offer)
                spent += max(0, offer.misses)
        while chosen and self._left > 0:
            lower = {name: list(of) for name, of in counts.items()}
            for one in chosen:
                self._lower(lower, one.pool, one.begin, one.end)
            outcome, now = self._try(lower)
            if outcome.attainment >= self._target:
                return lower, now
            chosen = chosen[: len(chosen) // 2]
        return None
