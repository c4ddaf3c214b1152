"""Pools that do a part of each request: queues that engines do not report."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import PoolObservation, PoolSpec, ReplicaMetrics, ReplicaState
from fairlead_autoscaler.core.signals.validation import pool_totals

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
