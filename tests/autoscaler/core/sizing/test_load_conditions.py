"""Counting the requests of a tick that missed their targets, by role and kind of histogram."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
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
from fairlead_autoscaler.core.performance.error_budget import ErrorBudget

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
