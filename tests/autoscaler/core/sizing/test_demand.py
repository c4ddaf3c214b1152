"""The replicas that a load needs, and the conditions and targets that decide on them."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role, SloTargets
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
    ScalingSettings,
)
from fairlead_autoscaler.core.performance.error_budget import ErrorBudget
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest
from fairlead_autoscaler.core.sizing.pool_capacity import GroupService, latency_targets, replica_model
from fairlead_autoscaler.core.sizing.replicas_needed import Backlog, Demand, DemandInputs, estimate_demand
from fairlead_autoscaler.core.workload.load_forecast import LoadLevel
from fairlead_autoscaler.model_spec import scaled_model
from fairlead_testing.autoscaler.control_loop import LARGE_ENGINE

_SETTINGS = ScalingSettings()
_NONE_WAITS = Backlog(0.0, 20.0, 20.0, 120.0)
_LONG, _PATIENT = MeanRequest(7_000.0, 335.0), LatencyTargets(30.0, 0.1)
_CHAT, _USUAL = MeanRequest(1_155.0, 211.0), LatencyTargets(2.0, 0.1)
_LEVEL = LoadLevel(10.0, 0.0, 0.0, 10.0)


def _inputs(mix: MeanRequest = _CHAT, objectives: LatencyTargets = _USUAL) -> DemandInputs:
    """Returns the inputs of a steady load of ten replicas that is known exactly."""
    replica = replica_model(PoolSpec("main", profile=LARGE_ENGINE), GroupService(mix, objectives), 1.0)
    return DemandInputs(
        level=_LEVEL,
        deviation=0.0,
        bursts=0.0,
        capacity=replica.capacity(10.0),
        replica=replica,
        ahead_seconds=120.0,
        backlog=_NONE_WAITS,
    )


def _need(inputs: DemandInputs) -> Demand:
    return estimate_demand(inputs, _SETTINGS)


def _value(demand: Demand, name: str) -> float:
    value = demand.inputs[name].value
    assert value is not None
    return value


@pytest.mark.parametrize(("mix", "targets"), [(_CHAT, _USUAL), (_LONG, _PATIENT)])
def test_a_load_that_is_known_exactly_needs_what_it_fills(mix: MeanRequest, targets: LatencyTargets) -> None:
    demand = _need(_inputs(mix, targets))
    assert demand.replicas == pytest.approx(10.0, rel=1e-3)
    assert (demand.backlog, demand.current_level, demand.recent_level) == (0.0, 10.0, 10.0)


@pytest.mark.parametrize(("mix", "targets"), [(_CHAT, _USUAL), (_LONG, _PATIENT)])
def test_an_uncertain_load_needs_more_by_less_than_three_deviations(mix: MeanRequest, targets: LatencyTargets) -> None:
    needs = [_need(replace(_inputs(mix, targets), deviation=share)) for share in (0.0, 0.1, 0.2)]
    assert 10.2 < needs[1].replicas < 13.0
    assert needs[1].replicas < needs[2].replicas < 16.0
    for share, demand in zip((0.0, 0.1, 0.2), needs, strict=True):
        assert _value(demand, "certain_replicas") == needs[0].replicas
        assert _value(demand, "deviation_share") == share
        assert _value(demand, "need_replicas") == demand.replicas


def test_the_more_may_miss_the_less_is_kept_for_the_same_requests() -> None:
    inputs = replace(_inputs(), deviation=0.1)
    needs = [
        _need(
            replace(inputs, replica=replace(inputs.replica, targets=replace(_USUAL, allowed_miss_share=share)))
        ).replicas
        for share in (0.001, 0.01, 0.05)
    ]
    assert needs[0] > 1.05 * needs[1] > 1.05**2 * needs[2]


def test_the_spread_of_the_bins_is_shown_but_adds_nothing_by_itself() -> None:
    quiet, loud = _need(_inputs()), _need(replace(_inputs(), level=replace(_LEVEL, spread=4.0)))
    assert loud.replicas == quiet.replicas
    assert _value(loud, "spread_replicas") == 4.0


def test_a_trend_counts_until_a_start_is_ready_and_a_floor_holds() -> None:
    rising = _need(replace(_inputs(), level=replace(_LEVEL, slope=0.02)))
    assert rising.replicas == pytest.approx(12.4, rel=0.02)
    assert _value(rising, "forecast_replicas") == pytest.approx(12.4)
    held = _need(replace(_inputs(), level=replace(_LEVEL, floor=11.0)))
    assert held.replicas == pytest.approx(11.0, rel=0.01)


def test_a_burst_that_comes_back_is_a_need_in_any_case() -> None:
    inputs = _inputs(_LONG, _PATIENT)
    quiet = replace(inputs, level=LoadLevel(5.0, 1.0, 0.0, 5.0), deviation=0.3, capacity=inputs.replica.capacity(18.0))
    assert _need(replace(quiet, bursts=18.0)).replicas == pytest.approx(18.0, rel=1e-3)
    assert _need(replace(quiet, bursts=4.0)).replicas == _need(quiet).replicas


def test_while_more_waits_than_usual_the_last_seconds_count_and_the_queue_is_drained() -> None:
    level = replace(_LEVEL, recent=14.0)
    rate = _inputs().capacity.requests_per_second
    usual = _need(replace(_inputs(), level=level, backlog=replace(_NONE_WAITS, requests=40.0)))
    assert usual.current_level == 10.0
    requests = 60.0 * rate * 3.0
    long = _need(replace(_inputs(), level=level, backlog=replace(_NONE_WAITS, requests=requests)))
    assert long.current_level == 14.0
    assert long.backlog == pytest.approx(3.0 - 0.5)
    short = replace(_NONE_WAITS, requests=requests, desired_replicas=8.0)
    assert _need(replace(_inputs(), level=level, backlog=short)).backlog == pytest.approx(2.5 + 6.0 * 120.0 / 60.0)


_REPLICA = ReplicaMetrics(
    "r",
    ReplicaState.READY,
    500.0,
    60.0,
    running=5.0,
    waiting=0.0,
    generated_tokens=2_000.0,
    itl_seconds=2_000.0 * 0.05,
    finished=10.0,
    first_tokens=10.0,
    ttft_counts=(6.0, 3.0, 1.0),
    itl_counts=(5.0, 3.0, 2.0),
)
"""A tick in which one of ten first tokens and two of ten answers miss their targets."""


def _budget(role: Role, replica: ReplicaMetrics = _REPLICA, *, abandoned: float = 0.0, ready: int = 4) -> ErrorBudget:
    """Returns the budget after ten minutes of a pool whose replicas all report the same."""
    pool = PoolSpec("main", role=role, minimum=1, maximum=8, profile=builtin_profile("h100-llama8b"))
    core = ScalingCore(ModelSpec("chat", 2.0, 0.1, (pool,), ttft_bounds=(1.0, 2.0), itl_bounds=(0.05, 0.1)))
    seen = PoolObservation(4, ready, replicas=(replica,) * ready)
    traffic = GatewayTraffic(40.0, 36_000.0, 0.0, abandoned)
    for tick in range(120):
        core.step(Observation(5.0 * tick, traffic, {"main": seen}))
    return core.state.groups[role.value].budget


def _shares(role: Role, replica: ReplicaMetrics = _REPLICA, **given: float) -> tuple[float, float]:
    """Returns the shares of late first tokens and of slow answers."""
    counted = _budget(role, replica, **given).period
    return counted.late_first_tokens / counted.requests, counted.slow_answers / counted.requests


def test_histograms_of_answers_say_which_were_slow() -> None:
    assert _shares(Role.SERVE) == pytest.approx((0.1, 0.2))


def test_each_role_answers_for_its_part_of_a_request() -> None:
    assert _shares(Role.PREFILL) == pytest.approx((0.1, 0.0))
    assert _shares(Role.DECODE) == pytest.approx((0.0, 0.2))


def test_histograms_of_single_gaps_are_not_counts_of_answers() -> None:
    """Then engines whose mean gap is beyond the target say which answers were slow."""
    gaps = replace(_REPLICA, itl_counts=(1_000.0, 500.0, 490.0))
    assert _shares(Role.SERVE, gaps) == pytest.approx((0.1, 0.0))
    slow = replace(gaps, itl_seconds=2_000.0 * 0.12)
    assert _shares(Role.SERVE, slow) == pytest.approx((0.1, 1.0))


def test_clients_that_gave_up_missed_their_first_token() -> None:
    late, _ = _shares(Role.SERVE, abandoned=10.0)
    assert late == pytest.approx((4.0 + 10.0) / 50.0)


def test_what_is_missed_while_none_is_ready_or_in_the_first_minutes_is_excused() -> None:
    assert _budget(Role.SERVE).period.requests == pytest.approx(40.0 * 96, rel=0.02), "two minutes do not count"
    assert _budget(Role.SERVE, abandoned=20.0, ready=0).period.requests == 0.0


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
    needs = _needs(_MODEL)
    assert needs["need_at_95_replicas"] < needs["need_replicas"] < needs["need_at_99_9_replicas"]


@pytest.mark.parametrize(("name", "target"), [(_OTHERS[0], 0.95), (_OTHERS[1], 0.999)])
def test_the_demand_is_that_of_a_model_with_the_other_target(name: str, target: float) -> None:
    other = _needs(replace(_MODEL, target=target))["need_replicas"]
    assert _needs(_MODEL)[name] == pytest.approx(other, rel=0.02)


def test_the_models_own_target_is_not_shown_again() -> None:
    assert "need_at_95_replicas" not in _needs(replace(_MODEL, target=0.95))
    assert "need_at_99_9_replicas" in _needs(replace(_MODEL, target=0.95))


def test_without_targets_there_are_no_others() -> None:
    needs = _needs(replace(_MODEL, ttft_seconds=None, itl_seconds=None))
    assert needs["need_replicas"] > 0.0
    assert not set(_OTHERS) & set(needs)


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
