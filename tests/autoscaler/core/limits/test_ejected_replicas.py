"""Replicas that every gateway has ejected are no capacity, and each gets one replacement."""

from dataclasses import replace

import msgspec
import pytest

from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ScalingCore,
    ScalingSettings,
)
from fairlead_autoscaler.core.state import PoolMemory
from fairlead_autoscaler.model_spec import scaled_model


def model_of(minimum: int = 3, maximum: int = 8, together: int | None = None) -> ModelSpec:
    return scaled_model(
        "default/tiny",
        SloTargets(ttft_seconds=2.0, itl_seconds=0.05),
        [PoolSpec("main", minimum=minimum, maximum=maximum)],
        interval_seconds=5.0,
        replicas_most=together,
    )


class Trial:
    """A core whose plans are written at once, and whose starts take a long time."""

    def __init__(
        self, model: ModelSpec | None = None, desired: int = 3, settings: ScalingSettings | None = None
    ) -> None:
        self.core = ScalingCore(model or model_of(), settings or ScalingSettings())
        self.desired = desired
        self.ready = desired
        self.now = 0.0

    def tick(self, ejected: int | None, *, arrivals: float | None = 5.0, ready: int | None = None) -> PoolPlan:
        """Runs one tick and writes its plan. arrivals: None: no gateway answers."""
        self.now += 5.0
        self.ready = self.ready if ready is None else ready
        seen = PoolObservation(
            self.desired, self.ready, max(0, self.desired - self.ready), replicas=(), ejected=ejected
        )
        traffic = None if arrivals is None else GatewayTraffic(arrivals, 100.0 * arrivals)
        plan = self.core.step(Observation(self.now, traffic, {"main": seen})).pools["main"]
        self.desired = plan.replicas
        return plan

    def run(self, ejected: int | None, ticks: int, **more: float | None) -> list[int]:
        return [self.tick(ejected, **more).replicas for _ in range(ticks)]  # type: ignore[arg-type]


def test_ejected_replica_is_replaced_by_exactly_one_however_long_it_lasts() -> None:
    trial = Trial()
    assert trial.run(0, 40) == [3] * 40
    plan = trial.tick(1)
    assert (plan.replicas, plan.rule) == (4, "replace")
    assert plan.reason.endswith("; every gateway has ejected 1 ready replica: 1 more in exchange")
    assert plan.inputs["ejected_replicas"].value == plan.inputs["replacement_replicas"].value == 1.0
    assert plan.inputs["ready_replicas"].value == 2.0
    assert trial.run(1, 100) == [4] * 100
    assert set(trial.run(1, 100, ready=4)) == {4}, "the replacement is ready"


@pytest.mark.parametrize("ready", [2, 3])
def test_order_is_taken_back_at_once_when_the_operator_deletes_the_pod(ready: int) -> None:
    trial = Trial()
    trial.run(0, 40)
    trial.tick(1)
    plan = trial.tick(0, ready=ready)
    assert plan.replicas == 3
    assert plan.reason.endswith("; replacements end")
    assert trial.run(0, 20, ready=3) == [3] * 20
    assert "ejected_replicas" not in trial.tick(0).inputs


def test_order_is_taken_back_when_the_engine_answers_again() -> None:
    trial = Trial()
    trial.run(0, 40)
    assert trial.run(1, 3) == [4] * 3
    assert trial.tick(0, ready=4).replicas == 3


def test_missing_count_keeps_replacements_and_orders_none() -> None:
    trial = Trial()
    trial.run(0, 40)
    assert trial.run(None, 5) == [3] * 5
    trial.tick(1)
    assert trial.run(None, 5) == [4] * 5
    assert trial.run(None, 5, arrivals=None) == [4] * 5
    assert trial.run(0, 3, arrivals=None) == [4] * 3, "in doubt nothing is taken back"


def test_new_core_does_not_order_what_was_ordered_before() -> None:
    assert Trial(desired=4).run(1, 30) == [4] * 30
    assert Trial(desired=3).run(1, 2)[-1] == 4, "below the minimum nothing was ordered"


def test_maximum_and_shared_limit_hold_with_replacements() -> None:
    at_maximum = Trial(model_of(maximum=3))
    at_maximum.run(0, 40)
    plan = at_maximum.tick(2)
    assert plan.replicas == 3
    assert plan.reason.endswith("; every gateway has ejected 2 ready replicas: no room for more")
    shared = Trial(model_of(together=4))
    shared.run(0, 40)
    assert shared.run(2, 10) == [4] * 10


def test_pool_that_goes_to_zero_keeps_no_ejected_replica() -> None:
    trial = Trial(model_of(minimum=0), desired=1)
    trial.run(0, 20, arrivals=0.0)
    ticks = 0
    while trial.tick(1, arrivals=0.0).replicas and ticks < 2_000:
        ticks += 1
    assert trial.run(1, 100, arrivals=0.0) == [0] * 100


def test_frozen_core_keeps_the_number_with_ejected_replicas() -> None:
    trial = Trial()
    trial.run(0, 40)
    trial.tick(1)
    trial.core.settings = replace(trial.core.settings, freeze=True)
    for ejected in (1, 0, 2, None):
        assert trial.tick(ejected).replicas == 4


def test_without_ejected_replicas_nothing_changes() -> None:
    known, unknown = Trial(), Trial()
    for tick in range(200):
        arrivals = None if 90 < tick < 110 else 5.0 + tick % 40
        assert known.tick(0, arrivals=arrivals) == unknown.tick(None, arrivals=arrivals)
    assert known.core.state == unknown.core.state


def test_records_of_an_earlier_release_have_an_unknown_count() -> None:
    assert msgspec.convert({"desired": 3, "ready": 2}, PoolObservation).ejected is None
    assert msgspec.convert({"hedged": 1}, PoolMemory).replacing == 0
