"""The judge of canaries in simulated traffic: how often it is wrong, and how fast it is right.

    python -m fairlead_bench canary [--out out/bench/canary.json] [--seeds 1000]

The canary gets one request a second and the running revision nine, in conversations. After each
interval of 15 s the judge looks, from the second minute on. The seeds differ from those of the
development.

Simulated traffic of a rollout: what the running revision and its canary do, interval by
interval.

Requests are the turns of conversations, which stay with their revision. The turns of a conversation
have similar prompts and answers. The load of all engines wanders, and a little more on the engines
of each revision.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from math import exp, log
from statistics import median

from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_operator.canary.judge import RevisionInterval, RevisionSums, Verdict, judge
from fairlead_operator.canary.observer import SETTLE_SECONDS

INTERVAL_SECONDS = 15.0
_MEAN_TURNS = 4.0
"""Mean number of turns of a conversation."""

_FIRST_SEED = 10_000
_PERCENT = 100.0


@dataclass(frozen=True, slots=True)
class SimulatedRevision:
    """A revision against the running one.

    ttft, tpot, length: factors. errors: the share of requests that fail.
    """

    ttft: float = 1.0
    tpot: float = 1.0
    length: float = 1.0
    errors: float = 0.001


@dataclass(frozen=True, slots=True)
class TrafficDeviations:
    """Deviations of logarithms, unless it says otherwise.

    prompt, answer: of the conversations; each turn has half of that again.
    tpot: of the requests.
    load: of the load of all engines. own_load: of that of the engines of a revision.
    """

    prompt: float = 0.7
    answer: float = 0.7
    tpot: float = 0.2
    load: float = 0.2
    own_load: float = 0.02


class _WanderingLoad:
    """A logarithm that returns to 0 over five minutes."""

    _KEEP = exp(-INTERVAL_SECONDS / 300.0)

    def __init__(self, draw: random.Random, deviation: float) -> None:
        self._draw = draw
        self._deviation = deviation
        self._value = draw.gauss(0.0, deviation)

    def next(self) -> float:
        """Returns the factor of the next interval."""
        fresh = self._deviation * (1.0 - self._KEEP**2) ** 0.5
        self._value = self._KEEP * self._value + self._draw.gauss(0.0, fresh)
        return exp(self._value)


class RevisionTraffic:
    """The requests to the engines of one revision.

    rate: requests a second.
    """

    def __init__(
        self, draw: random.Random, revision: SimulatedRevision, rate: float, deviations: TrafficDeviations
    ) -> None:
        self._draw = draw
        self._revision = revision
        self._rate = rate
        self._deviations = deviations
        self._load = _WanderingLoad(draw, deviations.own_load)

    def next(self, load: float) -> RevisionSums:
        """Returns what happened in an interval at a load of all engines."""
        gauss, deviations, revision = self._draw.gauss, self._deviations, self._revision
        load *= self._load.next()
        begun = _draw_poisson(self._draw, self._rate * INTERVAL_SECONDS / _MEAN_TURNS)
        attempts = errors = gaps = answers = computed = 0
        ttft = gap_seconds = tokens = 0.0
        for _ in range(begun):
            prompt, answer = gauss(0.0, deviations.prompt), gauss(0.0, deviations.answer)
            for _ in range(_draw_turn_count(self._draw)):
                attempts += 1
                if self._draw.random() < revision.errors:
                    errors += 1
                    continue
                uncached = 800.0 * exp(prompt + gauss(0.0, deviations.prompt / 2))
                computed += int(uncached)
                ttft += revision.ttft * load * (0.03 + uncached / 10_000.0)
                length = max(1, int(200.0 * revision.length * exp(answer + gauss(0.0, deviations.answer / 2))))
                answers, tokens, gaps = answers + 1, tokens + log(length), gaps + length - 1
                gap_seconds += (length - 1) * revision.tpot * load * 0.02 * exp(gauss(0.0, deviations.tpot))
        return RevisionSums(attempts, errors, answers, ttft, gaps, gap_seconds, answers, tokens, computed)


def simulate(
    seed: int,
    canary: SimulatedRevision,
    *,
    rate: float = 1.0,
    running_rate: float = 9.0,
    deviations: TrafficDeviations | None = None,
) -> Iterator[RevisionInterval]:
    """Yields the intervals of a rollout, without end.

    rate, running_rate: requests a second to the canary and to the running revision.
    """
    draw, deviations = random.Random(seed), deviations or TrafficDeviations()
    load = _WanderingLoad(draw, deviations.load)
    sides = (
        RevisionTraffic(draw, SimulatedRevision(), running_rate, deviations),
        RevisionTraffic(draw, canary, rate, deviations),
    )
    while True:
        now = load.next()
        yield RevisionInterval(sides[0].next(now), sides[1].next(now))


def _draw_poisson(draw: random.Random, mean: float) -> int:
    count, left = 0, draw.expovariate(1.0)
    while left < mean:
        count, left = count + 1, left + draw.expovariate(1.0)
    return count


def _draw_turn_count(draw: random.Random) -> int:
    count = 1
    while draw.random() > 1.0 / _MEAN_TURNS:
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class CanaryCase:
    """A canary, and for how long it is judged.

    running_rate: requests a second to the running revision; the canary gets one.
    """

    revision: SimulatedRevision
    minutes: float = 10.0
    running_rate: float = 9.0


HEALTHY: Mapping[str, CanaryCase] = {
    "the same revision": CanaryCase(SimulatedRevision(), 30.0),
    "the same revision, half of the traffic": CanaryCase(SimulatedRevision(), 30.0, 1.0),
    "2 % slower": CanaryCase(SimulatedRevision(ttft=1.02, tpot=1.02), 30.0),
    "answers 5 % longer": CanaryCase(SimulatedRevision(length=1.05), 30.0),
}
REGRESSIONS: Mapping[str, CanaryCase] = {
    "20 % slower": CanaryCase(SimulatedRevision(ttft=1.2, tpot=1.2)),
    "TTFT 20 % higher": CanaryCase(SimulatedRevision(ttft=1.2)),
    "TPOT 20 % higher": CanaryCase(SimulatedRevision(tpot=1.2)),
    "TPOT 20 % higher, half of the traffic": CanaryCase(SimulatedRevision(tpot=1.2), running_rate=1.0),
    "TPOT 30 % higher": CanaryCase(SimulatedRevision(tpot=1.3)),
    "answers twice as long": CanaryCase(SimulatedRevision(length=2.0)),
    "answers half as long": CanaryCase(SimulatedRevision(length=0.5)),
    "5 % errors": CanaryCase(SimulatedRevision(errors=0.05)),
    "2 % errors": CanaryCase(SimulatedRevision(errors=0.02), 20.0),
}


def rollback_minutes(case: CanaryCase, seed: int) -> float | None:
    """Returns the minutes until a canary is rolled back; None if it is not."""
    count = int(case.minutes * 60.0 / INTERVAL_SECONDS)
    intervals = list(islice(simulate(seed, case.revision, running_rate=case.running_rate), count))
    settled = intervals[int(SETTLE_SECONDS / INTERVAL_SECONDS) :]
    if judge(settled, is_complete=True).verdict is not Verdict.ROLLBACK:
        return None
    low, high = 0, len(settled)  # evidence does not go away, so the first look can be searched
    while high - low > 1:
        middle = (low + high) // 2
        is_found = judge(settled[:middle], is_complete=True).verdict is Verdict.ROLLBACK
        low, high = (low, middle) if is_found else (middle, high)
    return (high * INTERVAL_SECONDS + SETTLE_SECONDS) / 60.0


def canary_rows(goals: Goals, seeds: Iterable[int]) -> list[ResultRow]:
    """Returns the rows of all cases."""
    drawn = list(seeds)
    rows = []
    for name, case in HEALTHY.items():
        wrong = sum(rollback_minutes(case, seed) is not None for seed in drawn) / len(drawn)
        rows.append(goals.value(f"rolled back within {case.minutes:.0f} min: {name}", "%", _PERCENT * wrong))
    for name, case in REGRESSIONS.items():
        found = [minutes for seed in drawn if (minutes := rollback_minutes(case, seed)) is not None]
        metric = f"found within {case.minutes:.0f} min: {name}"
        rows.append(goals.value(metric, "%", _PERCENT * len(found) / len(drawn)))
        rows.append(goals.value(f"median time until it is found: {name}", "min", median(found) if found else None))
    return rows


def main(arguments: list[str]) -> int:
    """Returns 1 if a goal is missed."""
    options = parse_options("canary", __doc__, arguments, seeds=(1000, "how many seeds"))
    rows = canary_rows(load_goals("canary"), range(_FIRST_SEED, _FIRST_SEED + options.seeds))
    return write_results("canary", rows, seed=_FIRST_SEED, file=options.out)
