"""Few requests: chance does not count as another load, and the first requests say little."""

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ScalingCore,
)
from fairlead_autoscaler.core.workload.request_lengths import DecayingRatio, RequestLengths

_PROFILE = EngineProfile("S", 3.3e-4, step_seconds=28e-3, kv_tokens=40_000, max_sequences=64, step_tokens=512)


def plans(arrivals: list[float], prompt: float = 1_000.0) -> list[PoolPlan]:
    """Returns the plans of a present engine, after each tick with so many arrivals."""
    pool = PoolSpec("main", minimum=1, maximum=20, profile=_PROFILE, startup_p50_seconds=60.0)
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (pool,)))
    seen = {"main": PoolObservation(1, 1, replicas=())}
    return [
        core.step(Observation(5.0 * tick, GatewayTraffic(count, count * prompt), seen)).pools["main"]
        for tick, count in enumerate(arrivals)
    ]


def test_a_few_more_in_one_tick_than_usual_are_no_other_load() -> None:
    usual = [2.0, 3.0] * 40
    before, after = plans([*usual, 2.0])[-1], plans([*usual, 8.0])[-1]
    assert after.inputs["level_replicas"] == before.inputs["level_replicas"]
    assert after.replicas == before.replicas


def test_many_more_are_one_at_once() -> None:
    before, after = plans([2.0, 3.0] * 40)[-1], plans([*[2.0, 3.0] * 40, 40.0])[-1]
    assert after.replicas > 3 * before.replicas


@pytest.mark.parametrize("prompt", [20.0, 1_000.0, 8_000.0])
def test_the_first_request_of_all_starts_no_second_engine(prompt: float) -> None:
    assert [plan.replicas for plan in plans([0.0, 0.0, 0.0, 1.0], prompt)] == [1, 1, 1, 1]


def test_the_first_prompt_says_how_long_prompts_are() -> None:
    assert plans([0.0, 1.0], 20.0)[-1].inputs["prompt_tokens"].value == 20.0


def test_answers_that_have_only_begun_are_not_taken_for_long_ones() -> None:
    """Twenty in flight with a hundred tokens each, and one that ended."""
    lengths = RequestLengths(
        output=DecayingRatio(2_100.0, 1.0, 2_100.0, 1.0), began=DecayingRatio(21.0, 0.0, 21.0, 0.0)
    )
    assert lengths.mean_output_tokens(250.0) == 250.0
    ended = RequestLengths(output=DecayingRatio(21e3, 100.0, 21e3, 100.0), began=DecayingRatio(101.0, 0.0, 101.0, 0.0))
    assert ended.mean_output_tokens(250.0) == pytest.approx(210.0, rel=0.01)
