"""Smooth goodput on drawn timelines: delays and dropped answers never raise it.

`make nightly` draws 10,000.
"""

import math
import random
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import replace

from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import TokenDeadlines, benefit, idle_seconds, smooth_goodput
from fairlead_testing.pytest_hooks.nightly import shortened

TIMELINES = shortened(10_000, 1_500)


def timelines() -> Iterator[tuple[random.Random, TokenDeadlines, RequestResult]]:
    """Returns answers that came quickly, slowly, in bursts or not to their end."""
    for seed in range(TIMELINES):
        draw = random.Random(seed)
        reader = TokenDeadlines(
            ttft_seconds=draw.choice([0.01, 0.5, 5.0]),
            token_seconds=draw.choice([0.0, 0.01, 0.05, 0.2]),
            alpha=draw.choice([0.0, 0.3, 1.0, 10.0]),
            beta=draw.choice([0.0, 1.0, 2.0]),
        )
        yield draw, reader, answer(draw)


def answer(draw: random.Random) -> RequestResult:
    arrival = draw.uniform(0.0, 100.0)
    pace = draw.choice([0.001, 0.05, 0.5])
    times, at = array("d"), arrival + draw.expovariate(1.0)
    for _ in range(draw.randint(1, 40)):
        times.append(at)
        at += draw.choice([0.0, draw.expovariate(1 / pace), draw.expovariate(1.0)])
    spans = ((0, len(times)),)
    error = "cut" if draw.random() < 0.3 else None
    return RequestResult("r", arrival, "a", times[0] - arrival, at, 10, 0, len(times), error, times, spans)


def test_a_token_delivered_later_never_raises_it() -> None:
    lower = 0
    for draw, reader, one in timelines():
        times = list(one.token_times)
        which, delay = draw.randrange(len(times)), draw.expovariate(1.0)
        alone = [at + delay if index == which else at for index, at in enumerate(times)]
        behind = [at if index < which else max(at, alone[which]) for index, at in enumerate(times)]
        before = benefit(reader, one.arrival, times)
        assert benefit(reader, one.arrival, alone) <= before
        assert benefit(reader, one.arrival, behind) <= before
        lower += benefit(reader, one.arrival, behind) < before
    assert lower > TIMELINES / 20


def test_dropping_an_answer_never_raises_it() -> None:
    lower = 0
    for draw, reader, one in timelines():
        whole = benefit(reader, one.arrival, one.token_times)
        dropped = benefit(reader, one.arrival, one.token_times[: draw.randint(0, len(one.token_times))], dropped=True)
        assert dropped <= whole
        lower += dropped < whole
    assert lower > TIMELINES / 2


def plain_goodput(results: Iterable[RequestResult], engine_seconds: float, deadlines: TokenDeadlines) -> float:
    """Returns the tokens per engine-second of answers without a late token."""
    tokens = [
        len(result.token_times)
        for result in results
        if result.error is None and idle_seconds(deadlines, result.arrival, result.token_times) <= 0.0
    ]
    return sum(tokens) / engine_seconds


def test_it_tends_to_plain_goodput() -> None:
    for draw, reader, one in timelines():
        served = [one, answer(draw), answer(draw)]
        strict = replace(reader, alpha=1e300, beta=0.0)
        assert smooth_goodput(served, 10.0, strict) == plain_goodput(served, 10.0, strict)


def test_it_adds_up_over_replicas() -> None:
    for draw, reader, one in timelines():
        here, there = [one, answer(draw)], [answer(draw) for _ in range(draw.randint(0, 3))]
        seconds, others = draw.uniform(1.0, 9.0), draw.uniform(1.0, 9.0)
        together = smooth_goodput([*here, *there], seconds + others, reader) * (seconds + others)
        apart = smooth_goodput(here, seconds, reader) * seconds + smooth_goodput(there, others, reader) * others
        assert math.isclose(together, apart, rel_tol=1e-9, abs_tol=1e-9)


def test_a_stop_is_counted_once_however_many_tokens_stand_behind_it() -> None:
    reader = TokenDeadlines(ttft_seconds=1.0, token_seconds=0.1)
    assert math.isclose(idle_seconds(reader, 0.0, [0.5, 3.1, 3.1, 3.1, 3.4]), 2.0)  # due at 1.1; all behind it in time
    assert idle_seconds(reader, 0.0, [0.5, 0.6, 1.2]) == 0.0
    assert math.isclose(benefit(reader, 0.0, [1.0, 1.7]), 2 * (1 - 0.6 / 1.2))
    assert benefit(reader, 0.0, [1.0, 9.0]) == 0.0  # never less than nothing while it is answered
