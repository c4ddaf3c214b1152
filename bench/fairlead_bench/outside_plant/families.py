"""Traffic families: each is a function of a seed, and needs no recorded file.

The chat families share one mix: prompts of 1,144 tokens and answers of 211 on average, alike among
neighbours in time. What differs is how rate and lengths move, and what breaks.

Source: the hour of the Azure LLM inference trace for conversations (2023). The means of
50 neighbours scatter by 4 % (prompts) and 9 % (answers) beyond chance around the drift of the hour.
With that drift it is 17 % and 25 %. The rate is a hump with 8 % of noise by minute.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from fairlead_bench.outside_plant.scenario import (
    LARGE,
    SMALL,
    Crash,
    Curve,
    Lengths,
    MetricFault,
    MetricWindow,
    PoolSetup,
    RequestList,
    Role,
    Scenario,
    Slowdown,
    draw_requests,
    minute_noise,
    piecewise,
    poisson_arrivals,
)

MINUTE, HOUR = 60.0, 3600.0
CHAT_TTFT, CHAT_GAP = 3.0, 0.15
_PROMPT_MEAN, _ANSWER_MEAN = 1144.0, 211.0
_MIN_ANSWER_SHARE = 0.15
"""Share of short answers among those to long prompts."""


_NEIGHBOURS = (0.045, 0.09)
"""Scatter of the means of prompts and answers among blocks of neighbours, around a drift."""
_SHUFFLED_NEIGHBOURS = (0.17, 0.25)
"""The same where blocks of an hour come in any order."""
_STRONG_NEIGHBOURS = (0.3, 0.25)


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


_HUMP = [(0, 11.0), (6, 14.5), (20, 15.5), (28, 22.5), (36, 21.5), (42, 16.5), (46, 17.0), (51, 13.0), (60, 12.0)]
"""Requests a second by minute."""


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
    """Returns an hour of 12 requests a second without noise or drift, lengths independent."""
    requests = _chat(f"steady-chat/{seed}", [12.0] * 60, _mean_lengths((0.0, 0.0)))
    return _chat_scenario("steady-chat", seed, HOUR, requests, 11)


def alike_neighbours(seed: int) -> Scenario:
    """Returns a steady hour in which 50 neighbours share a length that is far from the mean."""
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
