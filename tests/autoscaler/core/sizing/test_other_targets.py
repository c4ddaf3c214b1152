"""The demand at other targets, which a plan shows next to that at the model's own."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
)

_MODEL = ModelSpec(
    "default/tiny", 2.0, 0.15, (PoolSpec("main", maximum=40, profile=builtin_profile("l4-qwen8b")),), target=0.99
)
_OTHERS = ("need_at_95_replicas", "need_at_99_9_replicas")


def _needs(model: ModelSpec) -> dict[str, float]:
    """Returns the inputs of the last of some ticks under one load."""
    core = ScalingCore(model)
    replica = ReplicaMetrics("a", ReplicaState.READY, 500.0, 20.0, 9.0, 0.0, 0.4, 12_000.0, 2_000.0, 100.0, 10.0, 10.0)
    pools = {"main": PoolObservation(8, 8, replicas=(replica,) * 8)}
    for tick in range(30):
        plan = core.step(Observation(5.0 * tick, GatewayTraffic(20.0, 24_000.0), pools, 1e9))
    return {name: shown.value for name, shown in plan.pools["main"].inputs.items() if shown.value is not None}


def test_a_looser_target_needs_less_and_a_stricter_one_more() -> None:
    found = _needs(_MODEL)
    assert found["need_at_95_replicas"] < found["need_replicas"] < found["need_at_99_9_replicas"]


@pytest.mark.parametrize(("name", "target"), [(_OTHERS[0], 0.95), (_OTHERS[1], 0.999)])
def test_the_demand_is_that_of_a_model_with_the_other_target(name: str, target: float) -> None:
    other = _needs(replace(_MODEL, target=target))["need_replicas"]
    assert _needs(_MODEL)[name] == pytest.approx(other, rel=0.02)


def test_the_models_own_target_is_not_shown_again() -> None:
    assert "need_at_95_replicas" not in _needs(replace(_MODEL, target=0.95))
    assert "need_at_99_9_replicas" in _needs(replace(_MODEL, target=0.95))


def test_without_targets_there_are_no_others() -> None:
    found = _needs(replace(_MODEL, ttft_seconds=None, itl_seconds=None))
    assert found["need_replicas"] > 0.0
    assert not set(_OTHERS) & set(found)
