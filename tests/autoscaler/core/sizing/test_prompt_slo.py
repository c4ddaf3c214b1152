"""A TTFT target that grows with the prompt: long prompts are not sized by that of short ones."""

from dataclasses import replace

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role, SloTargets
from fairlead_autoscaler.core import (
    GatewayTraffic,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
)
from fairlead_autoscaler.core.sizing.pool_capacity import latency_targets
from fairlead_autoscaler.model_spec import scaled_model

POOL = PoolSpec("main", maximum=60, profile=builtin_profile("h100-llama8b"))
GROWS = SloTargets(ttft_seconds=0.3, ttft_per_kilo_token_seconds=0.5)


def needed(objectives: SloTargets) -> float:
    """Replicas for a request a second of 12,000 prompt tokens."""
    model = scaled_model("default/tiny", objectives, [POOL], interval_seconds=5.0)
    core = ScalingCore(model)
    replica = ReplicaMetrics("a", ReplicaState.READY, 500.0, 20.0, 2.0, 0.0, 0.2, 60_000.0, 250.0, 5.0, 5.0, 5.0)
    for tick in range(60):
        pools = {"main": PoolObservation(4, 4, replicas=(replica,) * 4)}
        plan = core.step(Observation(5.0 * tick, GatewayTraffic(20.0, 240_000.0), pools))
    value = plan.pools["main"].inputs["need_replicas"].value
    assert value is not None
    return value


def test_the_objective_of_a_prompt_grows_with_it_where_one_is_set() -> None:
    model = scaled_model("default/tiny", GROWS, [POOL], interval_seconds=5.0)
    assert latency_targets(model, Role.SERVE, 0.0).ttft_seconds == 0.3
    assert latency_targets(model, Role.SERVE, 12_000.0).ttft_seconds == 6.3
    none = scaled_model("default/tiny", SloTargets(), [POOL], interval_seconds=5.0)
    assert latency_targets(none, Role.SERVE, 12_000.0).ttft_seconds is None


def test_long_prompts_take_fewer_replicas_where_their_objective_grows() -> None:
    assert needed(GROWS) < needed(replace(GROWS, ttft_per_kilo_token_seconds=0.0))
