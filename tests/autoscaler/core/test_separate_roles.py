"""Pools that do a part of each request: unreported queues, and starts without a substitute."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import PoolObservation, PoolSpec, ReplicaMetrics, ReplicaState, ScalingSettings
from fairlead_autoscaler.core.signals.validation import pool_totals
from fairlead_autoscaler.core.sizing.pool_planner import PoolDemand, Rule, SignalDoubt, StatelessPoolPlanner
from fairlead_autoscaler.core.state import PoolMemory

_PROFILE = EngineProfile("L", 9e-5, step_seconds=12e-3, kv_tokens=400_000, max_sequences=256, step_tokens=1_024)


_SEEN = ReplicaMetrics(
    "r",
    ReplicaState.READY,
    500.0,
    60.0,
    running=40.0,
    waiting=0.0,
    prompt_tokens=15_000.0,
    finished=30.0,
    first_tokens=30.0,
)


def _waiting(role: Role, **told: Any) -> float:
    """Returns the assumed queue of an engine that reports 40 running requests and none waiting."""
    replica = replace(_SEEN, **told)
    found = pool_totals(PoolObservation(1, 1, replicas=(replica,)), PoolSpec("main", role, profile=_PROFILE), 0.1)
    assert found is not None
    assert found.running + found.waiting == (replica.running or 0.0) + (replica.waiting or 0.0)
    return found.waiting


def test_a_prefill_engine_that_calls_its_queue_running_is_known_by_what_a_step_holds() -> None:
    # Prompts of 500 tokens: two in a step, and one more that has just come.
    assert _waiting(Role.PREFILL) == pytest.approx(40.0 - 1_024.0 / 500.0 - 1.0)
    assert _waiting(Role.PREFILL, prompt_tokens=30.0 * 8_000.0) == 38.0
    assert _waiting(Role.PREFILL, waiting=5.0) == pytest.approx(45.0 - 1_024.0 / 500.0 - 1.0)


@pytest.mark.parametrize("running", [0.0, 1.0, 3.0])
def test_what_a_step_holds_waits_for_nothing(running: float) -> None:
    assert _waiting(Role.PREFILL, running=running) == 0.0


@pytest.mark.parametrize("missing", ["running", "first_tokens", "prompt_tokens"])
def test_where_it_cannot_be_told_nothing_is_made_up(missing: str) -> None:
    assert _waiting(Role.PREFILL, **{missing: None}) == 0.0
    assert _waiting(Role.DECODE) == _waiting(Role.SERVE) == 0.0


def _rule(target: int, ready: int, slow: float, *, apart: bool) -> tuple[int, str]:
    """Returns number and rule of a pool that lacks one replica.

    Starts take 120 s, slow ones ``slow`` seconds.
    """
    wanted = PoolDemand(target, target - 0.2, True, apart, False, False, (120.0, slow), 1.0, {}, "load")
    seen = PoolObservation(ready, ready)
    doubt = SignalDoubt(None, None, False)
    _, plan = StatelessPoolPlanner(PoolMemory(), seen, doubt, (1, 60), 100.0, ScalingSettings()).next_memory_and_plan(
        wanted
    )
    return plan.replicas, plan.rule


def test_a_single_start_that_is_a_quarter_of_a_role_is_hedged_where_starts_differ() -> None:
    assert _rule(4, 3, 254.0, apart=True) == (5, Rule.HEDGED)
    assert _rule(4, 3, 254.0, apart=False) == (4, Rule.UP)
    assert _rule(4, 3, 130.0, apart=True) == (4, Rule.UP), "starts take about the same time"
    assert _rule(6, 5, 254.0, apart=True) == (6, Rule.UP), "a sixth is little"
