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

from fairlead.fleet.model import Role
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, is_within_slo, run_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import PoolSetup

_SEPARATION_SECONDS = 900.0
_BISECTION_STEPS = 8
_GENEROUS_FACTOR = 0.85
_STRETCHES_SECONDS = (1_800.0, 600.0, 120.0)
_MIN_SAVINGS_PER_MISS = (1.0, 0.3, 0.1, 0.03, 0.0)
"""Of what the whole schedule costs per miss that the target bears: so much must a miss save to be accepted."""

ReplicaCounts = dict[str, list[int]]
"""Replicas by pool and segment."""


@dataclass(frozen=True, slots=True)
class OracleSchedule:
    """A schedule of ready replicas, (from when, replicas by pool), and what came of it."""

    steps: tuple[tuple[float, Mapping[str, int]], ...]
    attainment: float
    cost: float

    def is_better_than(self, other: "OracleSchedule", target: float = 0.99) -> bool:
        """Cheaper of two that keep the target; else whichever keeps it, or comes nearer."""
        if self.attainment >= target and other.attainment >= target:
            return self.cost < other.cost
        return self.attainment > other.attainment


def replay_schedule(scenario: AutoscalingScenario, steps: Sequence[tuple[float, Mapping[str, int]]]) -> OracleSchedule:
    """A schedule that was found before, run again."""
    outcome = run_schedule(scenario, steps)
    return OracleSchedule(tuple(steps), outcome.attainment, outcome.cost)


def search_schedule(scenario: AutoscalingScenario, *, target: float = 0.99, runs: int = 400) -> OracleSchedule:
    """At most about so many runs of the plant. Where nothing reaches the target, the schedule with the most attainment."""
    return _ScheduleSearch(scenario, target, runs).run()


@dataclass(frozen=True, slots=True)
class _Lowering:
    """One replica of a pool less over segments [begin, end): what it saves, and the misses that it makes."""

    pool: str
    begin: int
    end: int
    saves: float
    misses: int


class _ScheduleSearch:
    def __init__(self, scenario: AutoscalingScenario, target: float, runs: int) -> None:
        self._scenario = scenario
        self._target = target
        self._runs_left = runs
        self._segment_seconds = 60.0 if scenario.seconds > 3 * 3600.0 else 20.0
        self._segments = ceil(scenario.seconds / self._segment_seconds)
        self._pools = {setup.facts.name: setup for setup in scenario.pools}
        self._works = {name: self._work(setup) for name, setup in self._pools.items()}
        self._best: OracleSchedule | None = None

    def run(self) -> OracleSchedule:
        low, high = 0.05, 1.5  # of busy time: surely enough replicas, surely too few
        for _ in range(_BISECTION_STEPS):
            middle = (low + high) / 2
            if self._evaluate(self._initial_counts(middle))[0].attainment >= self._target:
                low = middle
            else:
                high = middle
        half = self._runs_left // 2
        self._lower_all(self._initial_counts(low * _GENEROUS_FACTOR), half)
        self._lower_all(self._initial_counts(low), 0)
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
            work[min(self._segments - 1, int(at / self._segment_seconds))] += seconds
        for since, factor in self._scenario.faults.slow:
            for segment in range(int(since / self._segment_seconds), self._segments):
                work[segment] *= factor
        return [seconds / self._segment_seconds for seconds in work]

    def _initial_counts(self, share: float) -> ReplicaCounts:
        """Replicas for a share of busy time."""
        serving = [name for name, setup in self._pools.items() if setup.facts.role is Role.SERVE]
        if len(serving) == 2:
            small, large = sorted(serving, key=lambda name: self._pools[name].facts.cost_per_hour)
            base = self._within_bounds(large, [floor(work / share) for work in self._steady_work(self._works[large])])
            rest = [
                work * max(0.0, 1.0 - count * share / max(1e-9, big))
                for work, big, count in zip(self._works[small], self._works[large], base, strict=True)
            ]
            return {large: base, small: self._within_bounds(small, [ceil(work / share) for work in rest])}
        return {
            name: self._within_bounds(name, [ceil(work_seconds / share) for work_seconds in work])
            for name, work in self._works.items()
        }

    def _steady_work(self, work: list[float]) -> list[float]:
        """Of each segment the least within a quarter of an hour around."""
        around = max(1, int(_SEPARATION_SECONDS / 2 / self._segment_seconds))
        return [min(work[max(0, at - around) : at + around + 1]) for at in range(len(work))]

    def _within_bounds(self, pool: str, counts: list[int]) -> list[int]:
        """Within the pool's bounds, and closed where leaving is not worth a start."""
        facts = self._pools[pool].facts
        counts = [max(facts.minimum, min(facts.maximum, count)) for count in counts]
        return self._close_gaps(pool, counts)

    def _close_gaps(self, pool: str, counts: list[int]) -> list[int]:
        """At every level, gaps that cost less than a start are filled."""
        max_gap = int(self._start_seconds(pool) / self._segment_seconds)
        closed = list(counts)
        for level in range(1, max(counts, default=0) + 1):
            last = None
            for at, count in enumerate(counts):
                if count < level:
                    continue
                if last is not None and 1 < at - last <= max_gap + 1:
                    for gap in range(last + 1, at):
                        closed[gap] = max(closed[gap], level)
                last = at
        return closed

    def _start_seconds(self, pool: str) -> float:
        """Of a start, on the mean (u² is a third on the mean)."""
        startup = self._pools[pool].startup
        return (startup.min_seconds + startup.spread_seconds / 3.0) / (1.0 - startup.failure_share)

    # Running one ---------------------------------------------------------------------------------------------------------

    def _evaluate(self, counts: ReplicaCounts) -> tuple[ControllerOutcome, list[int]]:
        """What comes of it, and the misses of each segment's arrivals."""
        self._runs_left -= 1
        steps: list[tuple[float, Mapping[str, int]]] = []
        last: dict[str, int] = {}
        for segment in range(self._segments):
            now = {name: replicas[segment] for name, replicas in counts.items()}
            changed = {name: count for name, count in now.items() if last.get(name) != count}
            if changed:
                steps.append((segment * self._segment_seconds, changed))
            last = now
        outcome = run_schedule(self._scenario, steps)
        schedule = OracleSchedule(tuple(steps), outcome.attainment, outcome.cost)
        if self._best is None or schedule.is_better_than(self._best, self._target):
            self._best = schedule
        book, misses = outcome.request_table, [0] * self._segments
        for request, at in enumerate(book.arrival):
            if not is_within_slo(book, request, outcome.ttft_seconds, outcome.itl_seconds):
                misses[min(self._segments - 1, int(at / self._segment_seconds))] += 1
        return outcome, misses

    # Lowering ------------------------------------------------------------------------------------------------------------

    def _lower_all(self, counts: ReplicaCounts, spare: int) -> None:
        """Lower stretch by stretch, while the target holds and more than ``spare`` runs are left."""
        budget = int((1.0 - self._target) * len(self._scenario.load))
        _, misses = self._evaluate(counts)
        turn = 0
        for enough in _MIN_SAVINGS_PER_MISS:
            min_saving = (
                enough * sum([self._cost(name, replicas) for name, replicas in counts.items()]) / max(1, budget)
            )
            idle = 0
            while idle < len(_STRETCHES_SECONDS) and self._runs_left > spare:
                seconds = _STRETCHES_SECONDS[turn % len(_STRETCHES_SECONDS)]
                turn += 1
                offers = self._measure_lowerings(counts, misses, max(1, int(seconds / self._segment_seconds)), turn)
                worth = [offer for offer in offers if offer.saves >= min_saving * offer.misses]
                taken = self._apply_best(counts, misses, worth, budget)
                if taken is None:
                    idle += 1
                else:
                    counts, misses = taken
                    idle = 0

    def _measure_lowerings(self, counts: ReplicaCounts, misses: list[int], length: int, turn: int) -> list[_Lowering]:
        """Every stretch of that length lowered by one, each measured; those that would cost are left out."""
        far = max(length, int(_SEPARATION_SECONDS / self._segment_seconds))
        shift = (turn * 7919) % length
        begins = range(shift - length if shift else 0, self._segments, length)
        batches: dict[tuple[str, int], list[tuple[int, int]]] = {}
        batch_count = max(1, -(-(length + far) // length))
        for number, begin in enumerate(begins):
            stretch = max(0, begin), min(self._segments, begin + length)
            for name in counts:
                batches.setdefault((name, number % batch_count), []).append(stretch)
        offers: list[_Lowering] = []
        for (name, _), stretches in batches.items():
            lower = {pool: list(replicas) for pool, replicas in counts.items()}
            lowered = [one for one in stretches if self._lower_stretch(lower, name, *one)]
            if not lowered or self._runs_left <= 0:
                continue
            _, now = self._evaluate(lower)
            for begin, end in lowered:
                alone = {name: list(counts[name])}
                self._lower_stretch(alone, name, begin, end)
                saves = self._cost(name, counts[name]) - self._cost(name, alone[name])
                until = min(self._segments, end + far)
                extra_misses = sum(now[begin:until]) - sum(misses[begin:until])
                if saves > 0.0:
                    offers.append(_Lowering(name, begin, end, saves, extra_misses))
        return sorted(offers, key=lambda one: one.saves / one.misses if one.misses > 0 else inf, reverse=True)

    def _lower_stretch(self, counts: ReplicaCounts, pool: str, begin: int, end: int) -> bool:
        """One less over these segments where there are more than the least; False where nowhere."""
        minimum = self._pools[pool].facts.minimum
        replicas = counts[pool]
        before = replicas[begin:end]
        replicas[begin:end] = [max(minimum, count - 1) for count in before]
        return replicas[begin:end] != before

    def _cost(self, pool: str, counts: list[int]) -> float:
        """Replica-seconds of a schedule, starts included, in money."""
        starts = sum([max(0, after - before) for before, after in pairwise(counts)])
        return (sum(counts) * self._segment_seconds + starts * self._start_seconds(pool)) * self._pools[
            pool
        ].facts.cost_per_hour

    def _apply_best(
        self, counts: ReplicaCounts, misses: list[int], offers: list[_Lowering], budget: int
    ) -> tuple[ReplicaCounts, list[int]] | None:
        """As many of the best offers as the target bears, none near another; None when it bears none."""
        chosen: list[_Lowering] = []
        spent = sum(misses)
        far = int(_SEPARATION_SECONDS / 3 / self._segment_seconds)
        for offer in offers:
            near = any(offer.begin < lowering.end + far and lowering.begin < offer.end + far for lowering in chosen)
            if not near and spent + max(0, offer.misses) <= budget:
                chosen.append(offer)
                spent += max(0, offer.misses)
        while chosen and self._runs_left > 0:
            lower = {name: list(replicas) for name, replicas in counts.items()}
            for lowering in chosen:
                self._lower_stretch(lower, lowering.pool, lowering.begin, lowering.end)
            outcome, now = self._evaluate(lower)
            if outcome.attainment >= self._target:
                return lower, now
            chosen = chosen[: len(chosen) // 2]
        return None
