"""Generated requests: minute rates, and lengths that are alike among neighbours in time."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Curve = Callable[[float], float]
"""A value by the time in seconds."""


@dataclass(slots=True)
class RequestList:
    """The requests of a run, by arrival, and what became of each.

    ttft: seconds to the first token; infinite if there was none
    gap: mean seconds between tokens of the whole answer; infinite if it was cut short
    """

    arrivals: list[float]
    prompts: list[int]
    answers: list[int]
    first_at: list[float] = field(default_factory=list)
    ttft: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)
    is_over: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset()

    def __len__(self) -> int:
        return len(self.arrivals)

    def reset(self) -> None:
        """Forgets what became of the requests."""
        count = len(self.arrivals)
        self.first_at = [math.inf] * count
        self.ttft = [math.inf] * count
        self.gap = [math.inf] * count
        self.is_over = [False] * count

    def late(self, ttft_seconds: float, gap_seconds: float) -> list[bool]:
        """Returns which requests missed one of the two latency targets."""
        return [
            not (ttft <= ttft_seconds and gap <= gap_seconds) for ttft, gap in zip(self.ttft, self.gap, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A clipped lognormal distribution of token counts around a mean that may drift.

    sigma: of the logarithm among the requests of one block
    block_sigma: of the logarithm among blocks of neighbours
    """

    mean: Curve
    sigma: float
    block_sigma: float
    low: int
    high: int

    def draw(self, random_source: random.Random, time: float, block_factor: float) -> int:
        """Returns the tokens of one request."""
        sigma = self.sigma
        centre = self.mean(time) * block_factor
        return min(
            max(round(centre * math.exp(random_source.gauss(0.0, sigma) - sigma * sigma / 2)), self.low), self.high
        )

    def block_factor(self, random_source: random.Random) -> float:
        """Returns the factor of one block of neighbours; its mean is 1."""
        sigma = self.block_sigma
        return math.exp(random_source.gauss(0.0, sigma) - sigma * sigma / 2) if sigma else 1.0


BLOCK_REQUESTS = 50
"""Requests of a block of neighbours."""


def poisson_arrivals(random_source: random.Random, rates: Sequence[float], step_seconds: float) -> list[float]:
    """Returns arrival times of a Poisson process whose rate is constant within each step."""
    arrivals = []
    target = random_source.expovariate(1.0)
    expected = 0.0
    for number, rate in enumerate(rates):
        mass = rate * step_seconds
        while rate > 0.0 and target < expected + mass:
            arrivals.append((number + (target - expected) / mass) * step_seconds)
            target += random_source.expovariate(1.0)
        expected += mass
    return arrivals


def minute_noise(random_source: random.Random, minutes: int, sigma: float, memory: float) -> list[float]:
    """Returns a factor per minute: the exponential of an autoregressive process, mean about 1."""
    value = random_source.gauss(0.0, sigma)
    factors = []
    for _ in range(minutes):
        factors.append(math.exp(value - sigma * sigma / 2))
        value = memory * value + math.sqrt(1 - memory * memory) * random_source.gauss(0.0, sigma)
    return factors


def piecewise(points: Sequence[tuple[float, float]]) -> Curve:
    """Returns the linear interpolation between points ``(seconds, value)``."""

    def value(time: float) -> float:
        before = points[0]
        for point in points:
            if time < point[0]:
                share = (time - before[0]) / (point[0] - before[0]) if point[0] > before[0] else 0.0
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]

    return value


def draw_requests(name: str, arrivals: list[float], prompts: Lengths, answers: Lengths) -> RequestList:
    """Returns the requests for the arrivals; ``name`` seeds the draws."""
    random_source = random.Random(name)
    prompt_tokens, answer_tokens = [], []
    prompt_factor = answer_factor = 1.0
    for number, time in enumerate(arrivals):
        if number % BLOCK_REQUESTS == 0:
            prompt_factor = prompts.block_factor(random_source)
            answer_factor = answers.block_factor(random_source)
        prompt_tokens.append(prompts.draw(random_source, time, prompt_factor))
        answer_tokens.append(answers.draw(random_source, time, answer_factor))
    return RequestList(arrivals, prompt_tokens, answer_tokens)
