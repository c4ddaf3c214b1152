"""Signals that a replica lacks, or that are impossible, do not count as zero.

A signal that is missing alone raises no number, and lowers none that would stay with it. The known
signals determine the speed of an engine, the length of answers and the requests in flight. Partial
reports would distort them. Without prompt counts steps seem slow without cause; without answer
counts answers seem to grow.
"""

import copy
import math
from dataclasses import replace
from functools import cache
from itertools import cycle, product
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    ScalingCore,
)
from fairlead_testing.pytest_hooks.nightly import shortened

_PROFILE = EngineProfile(
    "S", 3.3e-4, step_seconds=28e-3, resident_token_seconds=2.2e-7, kv_tokens=40_000, max_sequences=64, step_tokens=512
)
_POOL = PoolSpec("main", minimum=0, maximum=60, profile=_PROFILE, startup_p50_seconds=120.0, startup_p90_seconds=250.0)
_MODEL = ModelSpec("chat", 3.0, 0.15, (_POOL,), ttft_bounds=(1.0, 3.0), itl_bounds=(0.05, 0.15))
_REQUESTS, _PROMPT, _OUTPUT, _GAP = 30.0, 1_000.0, 200.0, 0.05
_SIGNALS = [
    "running",
    "waiting",
    "kv_share",
    "prompt_tokens",
    "generated_tokens",
    "itl_seconds",
    "finished",
    "first_tokens",
    "ttft_seconds",
    "ttft_counts",
    "itl_counts",
]


_WRONG = (None, math.nan, -1.0)


class Steady:
    """Six requests a second on the planned replicas, the same at every tick of five seconds."""

    def __init__(self) -> None:
        self.core, self.now, self.replicas = ScalingCore(_MODEL), 0.0, 8

    def step(
        self, requests: float = _REQUESTS, counted: float | None = 1.0, longer: float = 1.0, **signals: Any
    ) -> PoolPlan:
        """Returns the plan after a tick.

        counted: the gateways' counts, as a factor of the arrivals; None if they are missing.
        longer: the length of prompts, as a factor.
        signals: values that replicas report instead of their own; None if one is missing.
        """
        self.now += 5.0
        each = requests / self.replicas
        running = each / 5.0 * _OUTPUT * _GAP
        seen = ReplicaMetrics(
            "r",
            ReplicaState.READY,
            self.now + 500.0,
            120.0,
            running=running,
            waiting=0.0,
            kv_share=min(1.0, running * (_PROMPT + _OUTPUT / 2) / _PROFILE.kv_tokens),
            prompt_tokens=each * _PROMPT,
            generated_tokens=each * _OUTPUT,
            itl_seconds=each * _OUTPUT * _GAP,
            finished=each,
            first_tokens=each,
            ttft_seconds=each * 0.5,
            ttft_counts=(each, 0.0, 0.0),
            itl_counts=(0.0, each * _OUTPUT, 0.0),
        )
        replicas = tuple([replace(seen, id=f"r{index}", **signals) for index in range(self.replicas)])
        pool = PoolObservation(self.replicas, self.replicas, replicas=None if counted is None else replicas)
        gateway = None if counted is None else GatewayTraffic(requests * counted, requests * counted * longer * _PROMPT)
        plan = self.core.step(Observation(self.now, gateway, {"main": pool})).pools["main"]
        self.replicas = plan.replicas
        return plan


@cache
def settled() -> Steady:
    """After ten minutes with all signals. To be copied, not stepped."""
    steady = Steady()
    for _ in range(120):
        steady.step()
    return steady


@cache
def with_all_signals() -> tuple[int, ...]:
    """Returns the replicas of the ten minutes that follow (five in `make test`), if no signal is
    missing.
    """
    whole = copy.deepcopy(settled())
    return tuple(whole.step().replicas for _ in range(shortened(120, 60)))


@pytest.mark.parametrize(("signal", "wrong"), shortened([*product(_SIGNALS, _WRONG)], [*zip(_SIGNALS, cycle(_WRONG))]))
def test_a_signal_that_is_missing_alone_moves_nothing(signal: str, wrong: float | None) -> None:
    steady = copy.deepcopy(settled())
    had = steady.replicas
    told: Any = (wrong, wrong, wrong) if signal.endswith("counts") and wrong is not None else wrong
    for whole in with_all_signals():
        assert whole <= steady.step(**{signal: told}).replicas <= had


@pytest.mark.parametrize("signal", ["running", "waiting"])
def test_nothing_goes_to_zero_while_nobody_knows_what_is_in_flight(signal: str) -> None:
    steady, silent = Steady(), Steady()
    unknown: dict[str, Any] = {signal: None}
    for _ in range(60):
        steady.step()
        silent.step()
    ticks = 0
    while silent.replicas and ticks < 1_200:
        silent.step(0.0)
        ticks += 1
    assert silent.replicas == 0
    for _ in range(2 * ticks):
        steady.step(0.0, **unknown)
    assert steady.replicas == 1


@pytest.mark.parametrize("missed", [1, 3, 60])
def test_what_was_counted_while_nobody_looked_is_no_burst(missed: int) -> None:
    steady, none = copy.deepcopy(settled()), copy.deepcopy(settled())
    for _ in range(missed):
        steady.step(counted=None)
        none.step(counted=None)
    had = steady.replicas
    steady.step(counted=missed + 1.0)
    none.step()
    for _ in range(24):
        assert steady.step().replicas == none.step().replicas == had


def test_more_that_really_comes_after_such_a_time_is_seen_with_the_second_look() -> None:
    steady = copy.deepcopy(settled())
    for _ in range(12):
        steady.step(counted=None)
    steady.step(3.0 * _REQUESTS)
    inputs = steady.step(3.0 * _REQUESTS).inputs
    level, capacity = inputs["level_replicas"].value, inputs["capacity_requests_per_second"].value
    assert level is not None
    assert capacity is not None
    assert level * capacity == pytest.approx(3.0 * _REQUESTS / 5.0, rel=0.05)


@pytest.mark.parametrize(("served", "slow"), [(2.0, False), (500.0, True)])
def test_gaps_of_who_has_only_just_begun_say_nothing_of_how_fast_engines_are(served: float, slow: bool) -> None:
    steady = copy.deepcopy(settled())
    before = steady.step()
    for _ in range(3):  # as when all that was held for a replica is computed at once
        after = steady.step(age_seconds=120.0 + served, itl_seconds=_REQUESTS / steady.replicas * _OUTPUT * 3 * _GAP)
    known = before.inputs["speed_factor"].value, after.inputs["speed_factor"].value
    assert known[0] is not None
    assert known[1] is not None
    assert (known[1] > 1.5 * known[0]) is slow


def test_prompts_longer_than_the_kv_cache_are_ignored_as_a_miscount() -> None:
    steady = copy.deepcopy(settled())
    had = steady.replicas
    steady.step(longer=1e5)
    assert {steady.step().replicas for _ in range(60)} == {had}
