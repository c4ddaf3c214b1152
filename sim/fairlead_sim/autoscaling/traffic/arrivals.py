"""Arrivals of the autoscaler's scenarios, and loads made of other loads.

Source: the shape of a day is read off published plots (Azure, one week of 2024: conversation and
code). The noise between minutes is that of Azure's hour of conversations of 2023.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import Random

from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.traffic.lengths import GRID_SIZE, SHORT_OUTPUT_LENGTHS, LengthDistribution
from fairlead_sim.workload.traces import TraceRequest

_MINUTE_SECONDS = 60.0

CHAT_DAY = (
    (0.0, 3.0),
    (2.0, 2.3),
    (4.0, 2.0),
    (6.0, 2.4),
    (8.0, 3.8),
    (10.0, 5.0),
    (12.0, 4.4),
    (14.5, 5.2),
    (18.0, 4.2),
    (20.5, 4.8),
    (22.0, 4.0),
    (24.0, 3.0),
)
"""(hour, level): three humps, 2.0 at night and 5.2 at the highest."""
CODE_DAY = (
    (0.0, 0.6),
    (3.0, 0.5),
    (6.0, 0.5),
    (9.0, 5.0),
    (10.5, 5.5),
    (12.5, 4.6),
    (15.0, 5.5),
    (17.0, 4.6),
    (19.0, 2.5),
    (21.0, 1.3),
    (24.0, 0.6),
)
"""(hour, level): eleven times as much by day as by night, reached within three hours."""


def daily_rates(shape: Sequence[tuple[float, float]], minutes: int, mean: float) -> list[float]:
    """Returns the requests per second of each minute: a repeated day, smooth between its points.

    shape: (hour, relative rate), up to the hour at which the day repeats.
    mean: requests per second over all minutes.
    """
    hours = [hour for hour, _ in shape]
    rates = []
    for minute in range(minutes):
        hour = (minute + 0.5) / 60.0 % hours[-1]
        after = bisect_right(hours, hour)
        (begin, low), (end, high) = shape[after - 1], shape[after]
        share = 0.5 - 0.5 * math.cos(math.pi * (hour - begin) / (end - begin))
        rates.append(low + share * (high - low))
    scale = mean * minutes / math.fsum(rates)
    return [level * scale for level in rates]


def add_noise(rates: Sequence[float], random_: Random, *, sigma: float, memory: float) -> list[float]:
    """Returns the rates with log-normal noise of ``sigma``; ``memory`` is its autocorrelation."""
    state, noisy_rates = 0.0, []
    for rate in rates:
        state = memory * state + math.sqrt(1.0 - memory * memory) * random_.gauss(0.0, sigma)
        noisy_rates.append(rate * math.exp(state - sigma * sigma / 2.0))
    return noisy_rates


def poisson_arrivals(
    rates: Sequence[float],
    lengths: LengthDistribution,
    random_: Random,
    output_factor: Callable[[float], float] | None = None,
) -> ArrivalTrace:
    """Returns arrivals at the rate of their minute.

    output_factor: the factor on answer lengths by time.
    """
    arrivals: list[float] = []
    for minute, rate in enumerate(rates):
        at, end = minute * _MINUTE_SECONDS, (minute + 1) * _MINUTE_SECONDS
        while rate > 0.0:
            at += random_.expovariate(rate)
            if at >= end:
                break
            arrivals.append(at)
    prompts, outputs = lengths.sampling_grids()
    uniform = random_.random
    factors = [1.0] * len(arrivals) if output_factor is None else [output_factor(at) for at in arrivals]
    return ArrivalTrace(
        arrivals,
        [prompts[int(uniform() * GRID_SIZE)] for _ in arrivals],
        [max(1, round(outputs[int(uniform() * GRID_SIZE)] * factor)) for factor in factors],
    )


def densify(
    requests: Sequence[TraceRequest], times: int, random_: Random, jitter_seconds: float = 30.0
) -> ArrivalTrace:
    """Returns a recorded hour at ``times`` its density.

    Copies arrive at about the same time, with lengths of other requests.
    """
    copies = [*requests]
    for _ in range(times - 1):
        lengths = list(requests)
        random_.shuffle(lengths)
        copies += [
            replace(lengths_of, arrival=max(0.0, request.arrival + random_.uniform(-jitter_seconds, jitter_seconds)))
            for request, lengths_of in zip(requests, lengths, strict=True)
        ]
    copies.sort(key=lambda request: request.arrival)
    return ArrivalTrace(
        [request.arrival for request in copies],
        [request.prompt_tokens for request in copies],
        [request.output_tokens for request in copies],
    )


def mix_loads(
    first: ArrivalTrace, second: ArrivalTrace, share: Callable[[float], float], random_: Random
) -> ArrivalTrace:
    """Returns requests of two loads of equal rate; ``share(time)`` of them are of the second."""
    selected = [
        (at, prompt, output)
        for load, of_other in ((first, False), (second, True))
        for at, prompt, output in zip(load.arrivals, load.prompts, load.outputs, strict=True)
        if (random_.random() < share(at)) is of_other
    ]
    selected.sort()
    return ArrivalTrace(
        [at for at, _, _ in selected], [prompt for _, prompt, _ in selected], [output for _, _, output in selected]
    )


def bursty_load(random_: Random, *, minutes: int = 60, times: int = 3) -> ArrivalTrace:
    """Returns code completion like Azure's hour of 2023, at ``times`` its density.

    Minutes have 0 to 632 requests (147 on average), a third of them nearly none. Seconds have
    up to 67.
    """
    levels: list[float] = []
    while len(levels) < minutes:
        levels += [0.0] * random_.choice((1, 1, 2))
        levels += [min(632.0, random_.lognormvariate(5.25, 0.6)) for _ in range(random_.choice((1, 2, 3, 4)))]
    prompts, outputs = SHORT_OUTPUT_LENGTHS.sampling_grids()
    arrivals: list[float] = []
    for minute, level in enumerate(levels[:minutes]):
        seconds = [random_.lognormvariate(0.0, 1.0) for _ in range(60)]
        scale = level * times / math.fsum(seconds)
        for second, weight in enumerate(seconds):
            expected = min(67.0 * times, weight * scale)
            count = int(expected) + (random_.random() < expected - int(expected))
            arrivals += sorted([minute * _MINUTE_SECONDS + second + random_.random() for _ in range(count)])
    return ArrivalTrace(
        arrivals,
        [prompts[int(random_.random() * GRID_SIZE)] for _ in arrivals],
        [outputs[int(random_.random() * GRID_SIZE)] for _ in arrivals],
    )
