"""Seeded traffic for the autoscaler's scenarios: lengths, drifting lengths, and arrivals.

Lengths of prompts and answers, as quantiles.

Source: those of conversations are from Azure's hour of 2023. The files are not in the repository,
but their quantiles are.

Arrivals of the autoscaler's scenarios, and loads made of other loads.

Source: the shape of a day is read off published plots (Azure, one week of 2024: conversation and
code). The noise between minutes is that of Azure's hour of conversations of 2023.

Conversations whose mean lengths drift within an hour, so that neighbours in time are alike.

Source: Azure's hour of conversations of 2023, by blocks of five minutes. Lengths are about
exponential within a block.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.workload.traces import TraceRequest

GRID_SIZE = 4096
"""Values of a sampling grid."""
_QUANTILE_STEPS = 400

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

BLOCK_SECONDS: Final = 300.0
PROMPT_BOUNDS: Final = (16, 5_500)
ANSWER_BOUNDS: Final = (16, 1_000)
"""Tokens: as in the recorded hour, next to no answer is shorter."""


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """Quantiles (0..1 in equal steps) of prompt and answer tokens, which are drawn independently.

    Source: their correlation in the hour of conversations is -0.11.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]

    def sampling_grids(self, output_factor: float = 1.0) -> tuple[list[int], list[int]]:
        """Returns prompt and answer tokens to draw from uniformly.

        output_factor: factor on the answers.
        """
        outputs = [max(1, round(value * output_factor)) for value in _quantile_grid(self.output)]
        return [max(1, round(value)) for value in _quantile_grid(self.prompt)], outputs


CHAT_LENGTHS = LengthDistribution(
    (2, 181, 207, 372, 387, 396, 403, 414, 703, 984, 1020, 1045, 1071, 1097, 1130, 1189, 1315, 1877, 2735, 4083, 4142),
    (7, 41, 54, 67, 77, 85, 91, 96, 103, 113, 129, 151, 177, 217, 384, 395, 400, 411, 424, 451, 620),
)
"""The hour of conversations: 1,155 / 211 tokens on average."""
SHORT_OUTPUT_LENGTHS = LengthDistribution(
    (
        20,
        170,
        330,
        490,
        650,
        810,
        970,
        1130,
        1290,
        1450,
        1620,
        1800,
        2000,
        2220,
        2470,
        2760,
        3110,
        3560,
        4200,
        5300,
        7400,
    ),
    (1, 5, 6, 7, 8, 8, 9, 10, 11, 12, 13, 15, 17, 19, 22, 26, 31, 40, 56, 100, 250),
)
"""Code completion: about 2,048 / 28 tokens on average."""


SHORT_CHAT_LENGTHS = LengthDistribution(
    (2, 20, 33, 45, 60, 80, 100, 120, 145, 175, 215, 265, 340, 450, 620, 950, 1_900),
    (5, 25, 45, 65, 85, 110, 135, 160, 190, 230, 290, 380, 520, 800),
)
"""Questions without history: about 250 / 200 tokens on average, in round numbers."""
DOCUMENT_LENGTHS = LengthDistribution(
    (1_100, 1_900, 2_400, 2_900, 3_300, 3_700, 4_100, 4_600, 5_200, 6_100, 8_000),
    (60, 110, 140, 170, 200, 240, 280, 330, 400, 520, 800),
)
"""Long prompts: about 3,900 / 270 tokens on average, in round numbers."""


def quantiles_between(knots: Sequence[tuple[float, int]]) -> tuple[int, ...]:
    """Returns quantiles in equal steps, on geometric lines between known ones.

    knots: (share, tokens), from share 0 to share 1.
    """
    quantiles, below = [], 0
    for step in range(_QUANTILE_STEPS + 1):
        share = step / _QUANTILE_STEPS
        while below < len(knots) - 2 and share > knots[below + 1][0]:
            below += 1
        (begin, low), (end, high) = knots[below], knots[below + 1]
        quantiles.append(round(low * (high / low) ** ((share - begin) / (end - begin))))
    return tuple(quantiles)


VERY_LONG_LENGTHS = LengthDistribution(
    quantiles_between(
        (
            (0.0, 100),
            (0.1, 1_200),
            (0.25, 3_500),
            (0.5, 6_900),
            (0.75, 13_500),
            (0.9, 28_000),
            (0.95, 37_000),
            (0.99, 85_000),
            (1.0, 126_000),
        )
    ),
    quantiles_between(
        (
            (0.0, 1),
            (0.05, 10),
            (0.1, 24),
            (0.25, 150),
            (0.5, 351),
            (0.75, 480),
            (0.9, 620),
            (0.95, 760),
            (1.0, 1_600),
        )
    ),
)
"""Conversations with prompts of up to 126,000 tokens: about 12,100 / 346 tokens on average.

Source: Mooncake's published conversations without an upper limit, in rounded quantiles. The squared
coefficient of variation of the prompts is 1.7. One answer in ten has at most 24 tokens.
"""

LONG_CHAT_LENGTHS = LengthDistribution(
    quantiles_between(((0.0, 300), (0.1, 1_500), (0.5, 5_000), (0.9, 12_000), (1.0, 24_000))),
    quantiles_between(((0.0, 20), (0.1, 80), (0.5, 250), (0.9, 600), (1.0, 1_200))),
)
"""Conversations of many turns: about 6,000 / 300 tokens on average, in round numbers."""


def _quantile_grid(quantiles: Sequence[int]) -> list[float]:
    last = len(quantiles) - 1
    values = []
    for place in range(GRID_SIZE):
        position = (place + 0.5) / GRID_SIZE * last
        below = int(position)
        values.append(quantiles[below] + (quantiles[below + 1] - quantiles[below]) * (position - below))
    return values


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


_MINUTE_NOISE, _MINUTE_MEMORY = 0.08, 0.5


@dataclass(frozen=True, slots=True)
class TrafficBlock:
    """Five minutes of traffic: requests per second, and mean tokens of prompts and answers."""

    rate: float
    prompt: float
    answer: float


CONVERSATIONS_BY_BLOCK: Final = (
    TrafficBlock(14.4, 1057, 254),
    TrafficBlock(14.2, 1237, 267),
    TrafficBlock(15.6, 1221, 243),
    TrafficBlock(15.6, 1086, 248),
    TrafficBlock(18.8, 1321, 193),
    TrafficBlock(22.4, 1427, 143),
    TrafficBlock(22.3, 1260, 143),
    TrafficBlock(18.4, 852, 186),
    TrafficBlock(17.0, 1086, 197),
    TrafficBlock(14.2, 1135, 241),
    TrafficBlock(13.0, 957, 261),
    TrafficBlock(7.7, 931, 281),
)
"""The recorded hour at three times its density."""


def drifting_arrivals(blocks: Sequence[TrafficBlock], random_: Random) -> ArrivalTrace:
    """Returns Poisson arrivals with noise between minutes; lengths follow the means of their time.

    Between the middles of two blocks, rate and means are interpolated.
    """
    minutes = round(len(blocks) * BLOCK_SECONDS / _MINUTE_SECONDS)
    rates = [block_at(blocks, (minute + 0.5) * _MINUTE_SECONDS).rate for minute in range(minutes)]
    arrivals: list[float] = []
    for minute, rate in enumerate(add_noise(rates, random_, sigma=_MINUTE_NOISE, memory=_MINUTE_MEMORY)):
        at, end = minute * _MINUTE_SECONDS, (minute + 1) * _MINUTE_SECONDS
        while (at := at + random_.expovariate(rate)) < end:
            arrivals.append(at)
    prompts, answers = [], []
    for at in arrivals:
        block = block_at(blocks, at)
        prompts.append(_draw_tokens(block.prompt, PROMPT_BOUNDS, random_))
        answers.append(_draw_tokens(block.answer, ANSWER_BOUNDS, random_))
    return ArrivalTrace(arrivals, prompts, answers)


def block_at(blocks: Sequence[TrafficBlock], seconds: float) -> TrafficBlock:
    """Returns the traffic at a time, on straight lines between the middles of blocks."""
    place = min(len(blocks) - 1.0, max(0.0, seconds / BLOCK_SECONDS - 0.5))
    before = blocks[int(place)]
    after = blocks[min(int(place) + 1, len(blocks) - 1)]
    share = place - int(place)
    return TrafficBlock(
        before.rate + share * (after.rate - before.rate),
        before.prompt + share * (after.prompt - before.prompt),
        before.answer + share * (after.answer - before.answer),
    )


def _draw_tokens(mean: float, bounds: tuple[int, int], random_: Random) -> int:
    return min(bounds[1], max(bounds[0], round(random_.expovariate(1.0 / mean))))
