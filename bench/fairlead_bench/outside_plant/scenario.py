"""Scenarios: pools, requests, latency targets, and what goes wrong.

Generated requests: minute rates, and lengths that are alike among neighbours in time.

Step costs of the engines, start-up times, and the seeds of the judgement.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from fairlead_bench.judging_seeds import judging_seeds_of

Curve = Callable[[float], float]
"""A value by the time in seconds."""


class Role(Enum):
    """The part of a request that a pool computes. Values are those of the seam."""

    BOTH = "both"
    PREFILL = "prefill"
    DECODE = "decode"


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


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """The cost of one step in seconds, and the limits of an engine.

    A step costs ``base`` and a part for each sequence, resident token and prompt token.
    chunk: prompt tokens of one step at most
    kv_tokens: tokens that the memory holds; a request reserves its prompt and its answer
    """

    base: float
    per_seq: float
    per_kv_token: float
    per_prompt_token: float
    chunk: int
    max_seqs: int
    kv_tokens: int

    def described(self) -> Mapping[str, float]:
        """Returns the profile as the seam's ``profile``."""
        return {
            "step_base": self.base,
            "step_per_seq": self.per_seq,
            "step_per_kv_token": self.per_kv_token,
            "step_per_prompt_token": self.per_prompt_token,
            "chunk": self.chunk,
        }


SMALL = EngineProfile(0.028, 1e-4, 0.22e-6, 0.33e-3, 512, 64, 40_000)
"""An 8B model on a GPU like the A10G."""
LARGE = EngineProfile(0.012, 40e-6, 87e-9, 90e-6, 1024, 256, 400_000)
"""An 8B model on a GPU like the A100."""

STARTUP_P50, STARTUP_P90 = 120.0, 254.4


def startup_seconds(draw: float) -> float:
    """Returns the start-up time for a uniform draw."""
    return 60.0 + 240.0 * draw * draw


def startup_times(seed: int, pool: str, count: int) -> Sequence[float]:
    """Returns the start-up times of a pool's orders, in their sequence."""
    random_source = random.Random(f"startup/{pool}/{seed}")
    return [startup_seconds(random_source.random()) for _ in range(count)]


def judging_seeds() -> list[int]:
    """Returns the seeds of the judgement, on which nothing is tuned."""
    return judging_seeds_of("outside plant")


INTERVAL_SECONDS = 5.0
MAX_REPLICAS = 60
TTFT_EDGES = [0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 400.0]
GAP_EDGES = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.18, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0]


class MetricFault(Enum):
    """A fault of the metrics during a window."""

    MISSING = "missing"
    ZERO_COUNTERS = "zero counters"
    ZERO_ALL = "zero counters and gauges"


@dataclass(frozen=True, slots=True)
class MetricWindow:
    """A time with faulty metrics, in seconds."""

    start: float
    end: float
    fault: MetricFault


@dataclass(frozen=True, slots=True)
class Crash:
    """The end of one ready replica. ``draw`` chooses it, uniform in 0 to 1."""

    time: float
    draw: float


@dataclass(frozen=True, slots=True)
class Slowdown:
    """A time in which one replica, the oldest, takes ``factor`` times as long for each step."""

    start: float
    end: float
    factor: float


@dataclass(frozen=True, slots=True)
class PoolSetup:
    """One pool: its engines and the bounds of its size."""

    name: str
    role: Role
    profile: EngineProfile
    initial: int
    minimum: int = 1
    maximum: int = MAX_REPLICAS


@dataclass(frozen=True, slots=True)
class Scenario:
    """One family with one seed.

    patience: seconds that a client waits for its first token
    shocks: times of sudden changes that no look before them could have shown
    block_seconds: between two changes of the offline optimum's schedule
    transfer_per_token: seconds to move a token's memory from prefill to decode
    """

    family: str
    seed: int
    seconds: float
    requests: RequestList
    pools: tuple[PoolSetup, ...]
    ttft: float
    gap: float
    patience: float = 60.0
    shocks: tuple[float, ...] = ()
    crashes: tuple[Crash, ...] = ()
    slowdowns: tuple[Slowdown, ...] = ()
    windows: tuple[MetricWindow, ...] = ()
    transfer_per_token: float = 2e-6
    block_seconds: float = 120.0
