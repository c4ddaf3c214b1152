"""Simulated traffic of a rollout: what the running revision and its canary do, interval by
interval.

Requests are the turns of conversations, which stay with their revision. The turns of a conversation
have similar prompts and answers. The load of all engines wanders, and a little more on the engines
of each revision.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log

from fairlead_operator.canary.judge import RevisionInterval, RevisionSums

INTERVAL_SECONDS = 15.0
_MEAN_TURNS = 4.0
"""Mean number of turns of a conversation."""


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
