"""Scenarios of the second plant, and the families that draw them.

Traffic families: each is a function of a seed, and needs no recorded file.

The chat families share one mix: prompts of 1,144 tokens and answers of 211 on average, alike among
neighbours in time. What differs is how rate and lengths move, and what breaks.

Source: the hour of the Azure LLM inference trace for conversations (2023). The means of
50 neighbours scatter by 4 % (prompts) and 9 % (answers) beyond chance around the drift of the hour.
With that drift it is 17 % and 25 %. The rate is a hump with 8 % of noise by minute.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from fairlead_bench.judging_seeds import judging_seeds_of

Curve = Callable[[float], float]
"""A value by the time in seconds."""

BLOCK_REQUESTS = 50
"""Requests of a block of neighbours."""

INTERVAL_SECONDS = 5.0
MAX_REPLICAS = 60
TTFT_EDGES = [0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 400.0]
GAP_EDGES = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.18, 0.2, 0.25, 0.3, 0.5, 1.0, 2.0]

_MIN_ANSWER_SHARE = 0.15
"""Share of short answers among those to long prompts."""

_NEIGHBOURS = (0.045, 0.09)
"""Scatter of the means of prompts and answers among blocks of neighbours, around a drift."""
_SHUFFLED_NEIGHBOURS = (0.17, 0.25)
"""The same where blocks of an hour come in any order."""
_STRONG_NEIGHBOURS = (0.3, 0.25)

_HUMP = [(0, 11.0), (6, 14.5), (20, 15.5), (28, 22.5), (36, 21.5), (42, 16.5), (46, 17.0), (51, 13.0), (60, 12.0)]
"""Requests a second by minute."""


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
        sigma = self.block_sigma
        return math.exp(random_source.gauss(0.0, sigma) - sigma * sigma / 2) if sigma else 1.0


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
    return 60.0 + 240.0 * draw * draw


def startup_times(seed: int, pool: str, count: int) -> Sequence[float]:
    random_source = random.Random(f"startup/{pool}/{seed}")
    return [startup_seconds(random_source.random()) for _ in range(count)]


def judging_seeds() -> list[int]:
    return judging_seeds_of("outside plant")


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


MINUTE, HOUR = 60.0, 3600.0
CHAT_TTFT, CHAT_GAP = 3.0, 0.15
_PROMPT_MEAN, _ANSWER_MEAN = 1144.0, 211.0


def _chat_lengths(
    prompt_mean: Curve, answer_mean: Curve, neighbours: tuple[float, float] = _NEIGHBOURS
) -> tuple[Lengths, Lengths]:
    prompts = Lengths(prompt_mean, 0.8, neighbours[0], 16, 5_500)
    return prompts, Lengths(answer_mean, 0.75, neighbours[1], 1, 1_000)


def _mean_lengths(neighbours: tuple[float, float] = _NEIGHBOURS) -> tuple[Lengths, Lengths]:
    return _chat_lengths(_constant(_PROMPT_MEAN), _constant(_ANSWER_MEAN), neighbours)


def _constant(value: float) -> Curve:
    return lambda time: value


def _noisy_rates(name: str, seconds: float, rate: Curve, noise: float) -> list[float]:
    """Returns the rate of each minute: the curve with noise that lasts a few minutes."""
    random_source = random.Random(f"{name}/rates")
    minutes = round(seconds / MINUTE)
    factors = minute_noise(random_source, minutes, noise, 0.5) if noise else [1.0] * minutes
    return [rate((minute + 0.5) * MINUTE) * factor for minute, factor in enumerate(factors)]


def _chat(name: str, rates: Sequence[float], lengths: tuple[Lengths, Lengths] | None = None) -> RequestList:
    prompts, answers = lengths or _mean_lengths()
    arrivals = poisson_arrivals(random.Random(f"{name}/arrivals"), rates, MINUTE)
    return draw_requests(f"{name}/lengths", arrivals, prompts, answers)


def _chat_scenario(family: str, seed: int, seconds: float, requests: RequestList, replicas: int) -> Scenario:
    pool = PoolSetup("main", Role.BOTH, SMALL, replicas)
    return Scenario(family, seed, seconds, requests, (pool,), CHAT_TTFT, CHAT_GAP)


def long_prompts(seed: int) -> Scenario:
    """Returns an hour of prompts up to 126,000 tokens; the fleet begins at half the need."""
    name = f"long-prompts/{seed}"
    rates = [min(max(rate, 5.4), 7.9) for rate in _noisy_rates(name, HOUR, _constant(6.8), 0.08)]
    arrivals = poisson_arrivals(random.Random(f"{name}/arrivals"), rates, MINUTE)
    requests = draw_requests(
        f"{name}/lengths",
        arrivals,
        Lengths(_constant(12_500.0), 1.09, 0.0, 64, 126_000),
        Lengths(_constant(405.0), 0.32, 0.0, 1, 1_500),
    )
    random_source = random.Random(f"{name}/short answers")
    for request in range(len(requests)):
        if random_source.random() < _MIN_ANSWER_SHARE:
            requests.answers[request] = round(5.0 * math.exp(random_source.random() * math.log(12.0)))
    pool = PoolSetup("main", Role.BOTH, LARGE, 9)
    return Scenario("long-prompts", seed, HOUR, requests, (pool,), 30.0, 0.10, shocks=(0.0,))


def noisy_chat(seed: int) -> Scenario:
    """Returns an hour of 8 to 25 requests a second whose mix drifts from prompts to answers."""
    name = f"noisy-chat/{seed}"
    shift = random.Random(f"{name}/shift").uniform(-5.0, 5.0)
    hump = piecewise([((minute + shift * (0 < minute < 60)) * MINUTE, rate) for minute, rate in _HUMP])
    rates = [min(max(rate, 8.0), 25.0) for rate in _noisy_rates(name, HOUR, hump, 0.09)]
    prompt_mean = piecewise([(0.0, 790.0), (HOUR / 2, 1470.0), (HOUR, 820.0)])
    answer_mean = piecewise([(0.0, 280.0), (HOUR / 2, 125.0), (HOUR, 280.0)])
    return _chat_scenario("noisy-chat", seed, HOUR, _chat(name, rates, _chat_lengths(prompt_mean, answer_mean)), 15)


def steady_chat(seed: int) -> Scenario:
    requests = _chat(f"steady-chat/{seed}", [12.0] * 60, _mean_lengths((0.0, 0.0)))
    return _chat_scenario("steady-chat", seed, HOUR, requests, 11)


def alike_neighbours(seed: int) -> Scenario:
    requests = _chat(f"alike-neighbours/{seed}", [12.0] * 60, _mean_lengths(_STRONG_NEIGHBOURS))
    return _chat_scenario("alike-neighbours", seed, HOUR, requests, 11)


def long_tail(seed: int) -> Scenario:
    """Returns an hour with 0.4 % of prompts so long that no fleet serves them within the target."""
    name = f"long-tail/{seed}"
    prompts, answers = _mean_lengths()
    lengths = (replace(prompts, sigma=0.85, high=12_000), answers)
    requests = _chat(name, _noisy_rates(name, HOUR, _constant(12.0), 0.1), lengths)
    return _chat_scenario("long-tail", seed, HOUR, requests, 11)


def chat_day(seed: int) -> Scenario:
    """Returns a day with a night: 8 requests a second on average."""
    name, seconds = f"chat-day/{seed}", 24 * HOUR

    def rate(time: float) -> float:
        phase = 2 * math.pi * time / seconds
        return 8.0 * (1.0 - 0.5 * math.cos(phase) - 0.15 * math.sin(2 * phase))

    requests = _chat(name, _noisy_rates(name, seconds, rate, 0.1), _mean_lengths(_SHUFFLED_NEIGHBOURS))
    return replace(_chat_scenario("chat-day", seed, seconds, requests, 7), block_seconds=5 * MINUTE)


def _rising_chat(family: str, seed: int, windows: tuple[MetricWindow, ...]) -> Scenario:
    name, seconds = f"{family}/{seed}", 4 * HOUR
    rates = _noisy_rates(name, seconds, piecewise([(0.0, 7.4), (seconds, 10.6)]), 0.08)
    requests = _chat(name, rates, _mean_lengths(_SHUFFLED_NEIGHBOURS))
    return replace(_chat_scenario(family, seed, seconds, requests, 8), windows=windows)


def metric_gaps(seed: int) -> Scenario:
    """Returns four hours with two windows of 300 s in which nothing can be read."""
    starts = (1.2 * HOUR, 2.9 * HOUR)
    return _rising_chat(
        "metric-gaps", seed, tuple(MetricWindow(start, start + 300.0, MetricFault.MISSING) for start in starts)
    )


def metric_zeros(seed: int) -> Scenario:
    """Returns four hours with two windows of zeros: first of counters, then of gauges as well."""
    first, second = 1.2 * HOUR, 2.9 * HOUR
    windows = (
        MetricWindow(first, first + 300.0, MetricFault.ZERO_COUNTERS),
        MetricWindow(second, second + 300.0, MetricFault.ZERO_ALL),
    )
    return _rising_chat("metric-zeros", seed, windows)


def silence_bursts(seed: int) -> Scenario:
    """Returns four hours from zero: silences of 8 to 35 minutes, bursts of 3 to 12."""
    name, seconds = f"silence-bursts/{seed}", 4 * HOUR
    random_source = random.Random(f"{name}/bursts")
    rates = [0.0] * round(seconds / MINUTE)
    minute = 0
    while True:
        minute += random_source.randint(8, 35)
        length, rate = random_source.randint(3, 12), random_source.choice((0.3, 1.0, 3.0))
        if minute + length > len(rates):
            break
        rates[minute : minute + length] = [rate] * length
        minute += length
    requests = _chat(name, rates)
    gaps = zip([-HOUR, *requests.arrivals], requests.arrivals, strict=False)
    shocks = tuple(after for before, after in gaps if after - before > 6 * MINUTE)
    pool = PoolSetup("main", Role.BOTH, SMALL, 0, minimum=0)
    return Scenario(
        "silence-bursts",
        seed,
        seconds,
        requests,
        (pool,),
        CHAT_TTFT,
        CHAT_GAP,
        patience=400.0,
        shocks=shocks,
        block_seconds=MINUTE,
    )


def failures(seed: int) -> Scenario:
    """Returns four hours in which a replica ends every 20 minutes, and once two of them."""
    name, seconds = f"failures/{seed}", 4 * HOUR
    random_source = random.Random(f"{name}/crashes")
    times = poisson_arrivals(random_source, [1 / (20 * MINUTE)], seconds - 10 * MINUTE)
    times = sorted([*times, 2 * HOUR, 2 * HOUR + 1.0])
    crashes = tuple(Crash(time, random_source.random()) for time in times)
    requests = _chat(name, _noisy_rates(name, seconds, _constant(9.0), 0.1))
    scenario = _chat_scenario("failures", seed, seconds, requests, 8)
    return replace(scenario, crashes=crashes, shocks=tuple(times))


def slow_engine(seed: int) -> Scenario:
    """Returns two hours in which one replica is 2.5 times as slow for an hour."""
    name, seconds = f"slow-engine/{seed}", 2 * HOUR
    requests = _chat(name, _noisy_rates(name, seconds, _constant(9.0), 0.1))
    scenario = _chat_scenario("slow-engine", seed, seconds, requests, 8)
    return replace(scenario, slowdowns=(Slowdown(HOUR / 2, 1.5 * HOUR, 2.5),), shocks=(HOUR / 2,))


def answer_drift(seed: int) -> Scenario:
    """Returns two hours in which answers grow fourfold and shrink again, at one rate."""
    name, seconds = f"answer-drift/{seed}", 2 * HOUR
    answers = piecewise([(0.0, 120.0), (0.25 * HOUR, 120.0), (HOUR, 480.0), (1.25 * HOUR, 480.0), (seconds, 120.0)])
    rates = _noisy_rates(name, seconds, _constant(8.0), 0.1)
    requests = _chat(name, rates, _chat_lengths(_constant(_PROMPT_MEAN), answers))
    return _chat_scenario("answer-drift", seed, seconds, requests, 7)


def step_five(seed: int) -> Scenario:
    """Returns two hours with five times the rate from minute 40 to minute 80."""
    name, seconds = f"step-five/{seed}", 2 * HOUR
    rates = [12.5 if 40 <= minute < 80 else 2.5 for minute in range(120)]
    scenario = _chat_scenario("step-five", seed, seconds, _chat(name, rates), 3)
    return replace(scenario, shocks=(40 * MINUTE,))


def prefill_decode(seed: int) -> Scenario:
    """Returns two hours on two pools whose mix moves from prompts to answers and back."""
    name, seconds = f"prefill-decode/{seed}", 2 * HOUR
    prompt_mean = piecewise([(0.0, 2400.0), (HOUR, 900.0), (seconds, 2400.0)])
    answer_mean = piecewise([(0.0, 150.0), (HOUR, 400.0), (seconds, 150.0)])
    rates = _noisy_rates(name, seconds, _constant(8.0), 0.15)
    requests = _chat(name, rates, _chat_lengths(prompt_mean, answer_mean))
    pools = (PoolSetup("prefill", Role.PREFILL, SMALL, 9), PoolSetup("decode", Role.DECODE, SMALL, 5))
    return Scenario("prefill-decode", seed, seconds, requests, pools, CHAT_TTFT, CHAT_GAP)


FAMILIES: Mapping[str, Callable[[int], Scenario]] = {
    "long-prompts": long_prompts,
    "noisy-chat": noisy_chat,
    "steady-chat": steady_chat,
    "alike-neighbours": alike_neighbours,
    "long-tail": long_tail,
    "chat-day": chat_day,
    "metric-gaps": metric_gaps,
    "metric-zeros": metric_zeros,
    "silence-bursts": silence_bursts,
    "failures": failures,
    "slow-engine": slow_engine,
    "answer-drift": answer_drift,
    "step-five": step_five,
    "prefill-decode": prefill_decode,
}
