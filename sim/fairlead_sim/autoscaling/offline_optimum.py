"""The offline optimum: the cheapest schedule with knowledge of the future.

``OptimumCache`` is a file of the schedules that earlier searches found. The key is the scenario's
name, its seed and a digest of its load. Engines and plant may have changed since;
``replay_schedule`` measures a schedule again.

Why: a search takes minutes, a run of its result seconds.

The optimum is the yardstick of every controller. The search knows each request and the duration of
each start. Replicas are ready when they are wanted, and cost from the beginning of their start
(``Pool``'s foresight). The search varies the ready replicas per segment of time:

1. **Initial schedule.** The work of a segment in engine-seconds counts prompt tokens, generated
   tokens and the KV that these read, at the engines' true speed. Work ÷ (share of busy time ×
   segment) is the number of replicas. A replica that would be needed again within the duration of a
   start stays. Bisection finds the highest share that attains the target; with a prefill and a
   decode pool, then the highest of each. A more generous schedule is lowered first, and then this
   one.
2. **Lowering.** One replica less for some time saves its cost, perhaps also a start, and causes
   misses. Misses stay near their cause, so distant lowerings are measured in one run. Lowerings
   that save enough per miss are taken together, as many as the target allows, in long and short
   stretches by turns. The required saving falls over time: the first lowerings must not spend the
   misses that later ones use better.

The result is an upper bound: a cheaper schedule may exist. With two accelerators the large one
carries the permanent load in whole replicas, the small one the rest.
"""

import json
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from math import ceil, floor, inf
from pathlib import Path
from typing import Any

from fairlead.fleet.model import Role
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, is_within_slo, run_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import PoolSetup

_SEPARATION_SECONDS = 900.0
_BISECTION_STEPS = 8

_GENEROUS_FACTOR = 0.85
_STRETCHES_SECONDS = (1_800.0, 600.0, 120.0)
_MIN_SAVINGS_PER_MISS = (1.0, 0.3, 0.1, 0.03, 0.0)
"""Least saving per miss, as a share of cost ÷ permitted misses."""

ReplicaCounts = dict[str, list[int]]
"""Replicas by pool and segment."""


class OptimumCache:
    """The schedules of one file, which may be absent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def get(self, scenario: AutoscalingScenario) -> "OptimumSchedule | None":
        """Returns the known schedule for this scenario, seed and load; None if there is none."""
        entry = self._entries.get(_scenario_key(scenario))
        if entry is None:
            return None
        steps: tuple[tuple[float, Mapping[str, int]], ...] = tuple([(at, counts) for at, counts in entry["steps"]])
        return OptimumSchedule(steps, entry["attainment"], entry["cost"])

    def put(self, scenario: AutoscalingScenario, schedule: "OptimumSchedule") -> None:
        """Stores a schedule and writes the file."""
        self._entries[_scenario_key(scenario)] = {
            "attainment": schedule.attainment,
            "cost": schedule.cost,
            "steps": [[at, counts] for at, counts in schedule.steps],
        }
        lines = [f"{json.dumps(name)}: {json.dumps(kept)}" for name, kept in sorted(self._entries.items())]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _scenario_key(scenario: AutoscalingScenario) -> str:
    load = scenario.load
    digest = sha256(array("d", load.arrivals).tobytes())
    digest.update(array("q", load.prompts).tobytes())
    digest.update(array("q", load.outputs).tobytes())
    return f"{scenario.name}/{scenario.seed}/{digest.hexdigest()[:12]}"


_MIN_BUSY_SHARE, _MAX_BUSY_SHARE = 0.05, 1.5
"""Shares of busy time with which there are certainly enough, and too few, replicas."""


@dataclass(frozen=True, slots=True)
class OptimumSchedule:
    """A schedule of ready replicas (time, replicas by pool) and its outcome."""

    steps: tuple[tuple[float, Mapping[str, int]], ...]
    attainment: float
    cost: float

    def is_better_than(self, other: "OptimumSchedule", target: float = 0.99) -> bool:
        """Whether this schedule is cheaper than the other.

        If one of the two misses ``target``: whether this schedule attains more.
        """
        if self.attainment >= target and other.attainment >= target:
            return self.cost < other.cost
        return self.attainment > other.attainment


def replay_schedule(scenario: AutoscalingScenario, steps: Sequence[tuple[float, Mapping[str, int]]]) -> OptimumSchedule:
    outcome = run_schedule(scenario, steps)
    return OptimumSchedule(tuple(steps), outcome.attainment, outcome.cost)


def search_schedule(scenario: AutoscalingScenario, *, target: float = 0.99, runs: int = 400) -> OptimumSchedule:
    """Returns the cheapest schedule found that attains ``target``, a share (0..1).

    The search takes about ``runs`` runs of the plant. If no schedule attains the target, the one
    with the highest attainment is returned.
    """
    return _ScheduleSearch(scenario, target, runs).run()


@dataclass(frozen=True, slots=True)
class _Lowering:
    """One replica less in the segments [begin, end): the saved cost and the further misses."""

    pool: str
    begin: int
    end: int
    saves: float
    misses: int


class _ScheduleSearch:
    """One search: the best schedule so far, and the runs that are left."""

    def __init__(self, scenario: AutoscalingScenario, target: float, runs: int) -> None:
        self._scenario = scenario
        self._target = target
        self._runs_left = runs
        self._segment_seconds = 60.0 if scenario.seconds > 3 * 3600.0 else 20.0
        self._segments = ceil(scenario.seconds / self._segment_seconds)
        self._pools = {setup.facts.name: setup for setup in scenario.pools}
        self._works = {name: self._work(setup) for name, setup in self._pools.items()}
        self._best: OptimumSchedule | None = None

    def run(self) -> OptimumSchedule:
        names = list(self._pools)
        shares = dict.fromkeys(names, _MIN_BUSY_SHARE)
        if all(setup.facts.role is Role.SERVE for setup in self._pools.values()):
            shares = self._bisect(shares, names, 1.0)
        else:
            groups = [names, *[[name] for name in names]]
            for number, group in enumerate(groups, 1):  # each leaves misses to the next, and to the lowering
                shares = self._bisect(shares, group, number / (len(groups) + 1))
        half = self._runs_left // 2
        self._lower_all(self._initial_counts({name: share * _GENEROUS_FACTOR for name, share in shares.items()}), half)
        self._lower_all(self._initial_counts(shares), 0)
        assert self._best is not None
        return self._best

    def _bisect(self, shares: Mapping[str, float], names: list[str], miss_share: float) -> dict[str, float]:
        """Returns the shares with the highest common one of the named pools that keeps the misses.

        miss_share: share of the misses that the target permits.
        """
        low, high = shares[names[0]], _MAX_BUSY_SHARE
        target = 1.0 - (1.0 - self._target) * miss_share
        for _ in range(_BISECTION_STEPS):
            middle = (low + high) / 2
            counts = self._initial_counts({**shares, **dict.fromkeys(names, middle)})
            if self._evaluate(counts)[0].attainment >= target:
                low = middle
            else:
                high = middle
        return {**shares, **dict.fromkeys(names, low)}

    # The first schedule --------------------------------------------------------------------------------------------------

    def _work(self, setup: PoolSetup) -> list[float]:
        """Returns the engine-seconds of work that arrive per second, by segment.

        The base time of steps does not count.
        """
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

    def _initial_counts(self, shares: Mapping[str, float]) -> ReplicaCounts:
        """Returns the replicas with which engines are busy for these shares of the time, by pool.

        Two pools that serve have one share.
        """
        serving = [name for name, setup in self._pools.items() if setup.facts.role is Role.SERVE]
        if len(serving) == 2:
            small, large = sorted(serving, key=lambda name: self._pools[name].facts.cost_per_hour)
            share = shares[large]
            base = self._within_bounds(large, [floor(work / share) for work in self._steady_work(self._works[large])])
            rest = [
                work * max(0.0, 1.0 - count * share / max(1e-9, big))
                for work, big, count in zip(self._works[small], self._works[large], base, strict=True)
            ]
            return {large: base, small: self._within_bounds(small, [ceil(work / share) for work in rest])}
        return {
            name: self._within_bounds(name, [ceil(work_seconds / shares[name]) for work_seconds in work])
            for name, work in self._works.items()
        }

    def _steady_work(self, work: list[float]) -> list[float]:
        around = max(1, int(_SEPARATION_SECONDS / 2 / self._segment_seconds))
        return [min(work[max(0, at - around) : at + around + 1]) for at in range(len(work))]

    def _within_bounds(self, pool: str, counts: list[int]) -> list[int]:
        """Returns the counts within the pool's bounds, with short gaps closed."""
        facts = self._pools[pool].facts
        counts = [max(facts.minimum, min(facts.maximum, count)) for count in counts]
        return self._close_gaps(pool, counts)

    def _close_gaps(self, pool: str, counts: list[int]) -> list[int]:
        """Returns the counts without gaps that are shorter than a start."""
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
        """Returns the mean seconds until a start succeeds.

        Why: the mean of u² (``StartupDistribution``) is a third.
        """
        startup = self._pools[pool].startup
        return (startup.min_seconds + startup.spread_seconds / 3.0) / (1.0 - startup.failure_share)

    # Evaluation ---------------------------------------------------------------------------------------------------------

    def _evaluate(self, counts: ReplicaCounts) -> tuple[ControllerOutcome, list[int]]:
        """Runs a schedule, and keeps it if it is the best so far.

        Returns the outcome and the misses by segment of arrival.
        """
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
        schedule = OptimumSchedule(tuple(steps), outcome.attainment, outcome.cost)
        if self._best is None or schedule.is_better_than(self._best, self._target):
            self._best = schedule
        book, misses = outcome.request_table, [0] * self._segments
        for request, at in enumerate(book.arrival):
            if not is_within_slo(book, request, outcome.ttft_seconds, outcome.itl_seconds):
                misses[min(self._segments - 1, int(at / self._segment_seconds))] += 1
        return outcome, misses

    # Lowering ------------------------------------------------------------------------------------------------------------

    def _lower_all(self, counts: ReplicaCounts, spare: int) -> None:
        """Searches for lower counts that attain the target; ``_evaluate`` keeps the best.

        Ends when no lowering saves enough, or when only ``spare`` runs are left.
        """
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
        """Returns measured lowerings of ``length`` segments, the most saved per miss first.

        turn: number of the measurement; shifts the stretches.
        """
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
            lowered = [stretch for stretch in stretches if self._lower_stretch(lower, name, *stretch)]
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
        """Lowers the counts of these segments by one. Returns False if all are at the minimum."""
        minimum = self._pools[pool].facts.minimum
        replicas = counts[pool]
        before = replicas[begin:end]
        replicas[begin:end] = [max(minimum, count - 1) for count in before]
        return replicas[begin:end] != before

    def _cost(self, pool: str, counts: list[int]) -> float:
        """Returns the cost of a pool with these counts: replica-seconds × ``cost_per_hour``.

        Starts are included.
        """
        starts = sum([max(0, after - before) for before, after in pairwise(counts)])
        return (sum(counts) * self._segment_seconds + starts * self._start_seconds(pool)) * self._pools[
            pool
        ].facts.cost_per_hour

    def _apply_best(
        self, counts: ReplicaCounts, misses: list[int], offers: list[_Lowering], budget: int
    ) -> tuple[ReplicaCounts, list[int]] | None:
        """Applies as many of the best lowerings as the target allows, none near another.

        Returns the lowered counts and their misses by segment; None if the target allows none.
        """
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
