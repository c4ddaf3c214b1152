"""The period of the error budget is that of the model's SLO."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    CoreState,
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingSettings,
    decide,
)

_MODEL = ModelSpec(
    "default/tiny",
    2.0,
    0.15,
    (PoolSpec("main", maximum=40, profile=builtin_profile("l4-qwen8b")),),
    target=0.99,
    ttft_bounds=(2.0,),
    itl_bounds=(0.15,),
)


def _period_requests(model: ModelSpec) -> float:
    """Returns the requests that the budget counts after five busy minutes and an idle half hour."""
    state = CoreState()
    counts = (2.0, 0.0)
    replica = ReplicaMetrics(
        "a", ReplicaState.READY, 500.0, 20.0, 1.0, 0.0, 0.1, 2_400.0, 400.0, 20.0, 2.0, 2.0, ttft_counts=counts
    )
    idle = ReplicaMetrics("a", ReplicaState.READY, 500.0, 20.0, *(0.0,) * 8, ttft_counts=(0.0, 0.0))
    for tick in range(420):
        is_busy = tick < 60
        own = replica if is_busy else idle
        pools = {"main": PoolObservation(4, 4, replicas=(own,) * 4)}
        gateway = GatewayTraffic(8.0, 9_600.0) if is_busy else GatewayTraffic(0.0, 0.0)
        state, _ = decide(state, Observation(5.0 * tick, gateway, pools, 1e9), model, ScalingSettings())
    return state.groups[Role.SERVE.value].budget.period.requests


def test_requests_count_for_the_period_of_the_slo() -> None:
    day, half_hour = (_period_requests(replace(_MODEL, period_seconds=seconds)) for seconds in (86_400.0, 1_800.0))
    assert half_hour < day / 2.0
    assert _period_requests(_MODEL) == pytest.approx(day)
