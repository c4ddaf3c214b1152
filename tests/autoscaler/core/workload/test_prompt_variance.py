"""The variance of prompt lengths: of unlike prompts, not of lengths that drift."""

from collections.abc import Sequence
from random import Random

import pytest

from fairlead_autoscaler.core.workload.request_lengths import RequestLengths, update_prompt_lengths


def _variability(ticks: Sequence[tuple[float, float]]) -> float:
    """Returns the variance in squares of the mean, after ticks with these tokens and requests."""
    lengths = RequestLengths()
    for tokens, requests in ticks:
        lengths = update_prompt_lengths(lengths, tokens, requests, 5.0)
    mean = lengths.prompt.mean(0.0)
    return lengths.prompt_variance.slow_mean(0.0) / mean**2


def _drawn(mean: float, count: int, draw: Random) -> float:
    return sum(draw.expovariate(1.0 / mean) for _ in range(count))


@pytest.mark.parametrize("counts", [(20,), (1, 5, 60)])
def test_exponential_lengths_vary_by_their_mean(counts: tuple[int, ...]) -> None:
    """However many requests a tick has, in the mean of forty hours."""
    draw, found = Random(1), []
    for _ in range(40):
        ticks = [draw.choice(counts) for _ in range(600)]
        found.append(_variability([(_drawn(1_000.0, count, draw), float(count)) for count in ticks]))
    assert sum(found) / len(found) == pytest.approx(1.0, rel=0.08)


def test_equal_prompts_do_not_vary() -> None:
    assert _variability([(20_000.0, 20.0), (5_000.0, 5.0)] * 100) == 0.0


def test_lengths_that_drift_are_not_unlike() -> None:
    """They double in a quarter of an hour, which the mean of minutes follows too late."""
    drifting = [(1_000.0 * 2.0 ** (place / 180) * 50.0, 50.0) for place in range(180)]
    assert _variability(drifting) < 0.01


def test_one_tick_has_no_variance() -> None:
    lengths = update_prompt_lengths(RequestLengths(), 5_000.0, 5.0, 5.0)
    assert lengths.prompt_variance.slow_of == 0.0
    assert lengths.last_prompts == (5_000.0, 5.0)
