"""Demand: replicas for an uncertain load, for bursts that come back, and for a backlog."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core import PoolSpec, ScalingSettings
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest
from fairlead_autoscaler.core.sizing.pool_capacity import GroupService, replica_model
from fairlead_autoscaler.core.sizing.replicas_needed import Backlog, Demand, DemandInputs, estimate_demand
from fairlead_autoscaler.core.workload.load_forecast import LoadLevel

_SETTINGS = ScalingSettings()
_NONE_WAITS = Backlog(0.0, 20.0, 20.0, 120.0)
_LARGE = EngineProfile(
    "L",
    9e-5,
    step_seconds=12e-3,
    resident_token_seconds=8.7e-8,
    kv_tokens=400_000,
    max_sequences=256,
    step_tokens=1_024,
)
_LONG, _PATIENT = MeanRequest(7_000.0, 335.0), LatencyTargets(30.0, 0.1)
_CHAT, _USUAL = MeanRequest(1_155.0, 211.0), LatencyTargets(2.0, 0.1)
_LEVEL = LoadLevel(10.0, 0.0, 0.0, 10.0)


def _inputs(mix: MeanRequest = _CHAT, objectives: LatencyTargets = _USUAL) -> DemandInputs:
    """Returns the inputs of a steady load of ten replicas that is known exactly."""
    replica = replica_model(PoolSpec("main", profile=_LARGE), GroupService(mix, objectives), 1.0)
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
