"""The rule of a plan matches its cause, and learned values stay finite."""

from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ScalingCore,
)


def _planned(maximum: int, arrivals: float) -> PoolPlan:
    """Returns the plan of a full pool after a minute of so many requests a tick."""
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=1, maximum=maximum),)))
    plan = None
    for tick in range(12):
        seen = PoolObservation(maximum, maximum, replicas=())
        plan = core.step(Observation(tick * 5.0, GatewayTraffic(arrivals, arrivals * 900.0), {"main": seen})).pools[
            "main"
        ]
    assert plan is not None
    return plan


def test_a_pool_that_has_all_it_may_have_and_needs_more_says_so() -> None:
    plan = _planned(2, 500.0)
    assert (plan.replicas, plan.rule) == (2, "maximum")
    assert "the maximum is 2" in plan.reason


def test_a_pool_that_has_all_it_may_have_and_needs_no_more_has_enough() -> None:
    assert _planned(2, 1.0).rule == "enough"


def test_a_pool_that_needs_less_than_it_must_have_says_so() -> None:
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=2, maximum=4),)))
    seen = {"main": PoolObservation(2, 2, replicas=())}
    plan = [core.step(Observation(tick * 5.0, GatewayTraffic(0.0, 0.0), seen)).pools["main"] for tick in range(200)][-1]
    assert (plan.replicas, plan.rule) == (2, "minimum")
    assert "the minimum is 2" in plan.reason


def test_the_last_one_of_a_pool_that_may_have_none_is_not_said_to_be_needed() -> None:
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=0, maximum=4),)))
    seen = {"main": PoolObservation(1, 1, replicas=())}
    rules = []
    for tick in range(900):
        plan = core.step(Observation(tick * 5.0, GatewayTraffic(0.0, 0.0), seen)).pools["main"]
        rules.append((plan.rule, "until idling costs more than a cold start" in plan.reason))
        if plan.replicas == 0:
            break
    assert rules[-2] == ("enough", True)
    assert rules[-1][0] == "zero"


def test_what_is_woken_says_that_a_request_came_not_how_little_it_needs() -> None:
    core = ScalingCore(ModelSpec("chat", 3.0, 0.15, (PoolSpec("main", minimum=0, maximum=4),)))
    nothing = {"main": PoolObservation(0, 0, replicas=())}
    for tick in range(4):
        core.step(Observation(tick * 5.0, GatewayTraffic(0.0, 0.0), nothing))
    plan = core.step(Observation(20.0, GatewayTraffic(0.0, 0.0, 1.0), nothing)).pools["main"]
    assert (plan.replicas, plan.rule) == (1, "wake")
    assert "a request came" in plan.reason
