"""The margin over the level, where SLOs are missed steeply and where gently."""

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core import PoolSpec, ScalingSettings
from fairlead_autoscaler.core.performance.replica_capacity import LatencyTargets, MeanRequest
from fairlead_autoscaler.core.sizing.pool_capacity import replica_model
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


def _need(mix: MeanRequest, objectives: LatencyTargets, level: LoadLevel, bursts: float = 0.0) -> Demand:
    replica = replica_model(PoolSpec("main", profile=_LARGE), mix, 1.0, objectives, _SETTINGS.capacity)
    inputs = DemandInputs(
        level=level,
        swing=0.0,
        bursts=bursts,
        capacity=replica.capacity(12.0),
        replica=replica,
        margin=1.0,
        spare_replicas=0.0,
        ahead_seconds=120.0,
        backlog=_NONE_WAITS,
    )
    return estimate_demand(inputs, _SETTINGS)


def test_margin_is_smaller_where_long_prompts_delay_short_answers() -> None:
    room = _need(_LONG, _PATIENT, LoadLevel(10.0, 4.0, 0.0, 10.0, 9.5)).replicas
    bare = _need(_LONG, _PATIENT, LoadLevel(10.0, 0.0, 0.0, 10.0, 10.0)).replicas
    assert bare < room < bare + 0.7 * 4.0


def test_what_lies_above_the_steady_level_by_chance_counts_for_less_there() -> None:
    steady, lower = (_need(_LONG, _PATIENT, LoadLevel(10.0, 2.0, 0.0, 10.0, each)).replicas for each in (10.0, 9.0))
    assert lower == pytest.approx(steady - (1.0 - _SETTINGS.demand.gentle_room), abs=0.05)


def test_where_queues_follow_on_more_load_the_whole_room_is_kept() -> None:
    one, other = (_need(_CHAT, _USUAL, LoadLevel(10.0, 4.0, 0.0, 10.0, each)).replicas for each in (10.0, 9.0))
    assert one == other == pytest.approx(14.0, rel=0.05)


def test_a_burst_that_comes_back_is_a_need_in_any_case() -> None:
    found = _need(_LONG, _PATIENT, LoadLevel(5.0, 1.0, 0.0, 5.0, 5.0), bursts=18.0)
    assert found.replicas == pytest.approx(18.0, rel=0.05)
