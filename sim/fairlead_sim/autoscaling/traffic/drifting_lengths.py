"""Conversations whose mean lengths drift within an hour, so that neighbours in time are alike.

Source: Azure's hour of conversations of 2023, by blocks of five minutes. Lengths are about
exponential within a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.traffic.arrivals import add_noise

BLOCK_SECONDS: Final = 300.0
PROMPT_BOUNDS: Final = (16, 5_500)
ANSWER_BOUNDS: Final = (16, 1_000)
"""Tokens: as in the recorded hour, next to no answer is shorter."""
_MINUTE_SECONDS = 60.0
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
