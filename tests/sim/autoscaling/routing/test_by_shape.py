"""Routing by request shape between unlike pools of the plant."""

from dataclasses import replace
from functools import cache

from fairlead.engine_profile import builtin_profile
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import reference_pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import mixed_shapes
from fairlead_testing.pytest_hooks.nightly import shortened

SECONDS = shortened(400.0, 200.0)


@cache
def scenario(*, by_shape: bool, large: int = 1, seconds: float = SECONDS) -> AutoscalingScenario:
    """Returns some minutes in front of small engines and one large engine."""
    made = mixed_shapes(
        3,
        [
            reference_pool(builtin_profile("l4-qwen8b"), 8),
            reference_pool(builtin_profile("h100-llama8b"), large, minimum=0),
        ],
    )
    count = sum(at < seconds for at in made.load.arrivals)
    load = ArrivalTrace(made.load.arrivals[:count], made.load.prompts[:count], made.load.outputs[:count])
    return replace(made, seconds=seconds, load=load, by_shape=by_shape)


def served(made: AutoscalingScenario) -> ControllerOutcome:
    """Returns the outcome with the initial replicas."""
    return run_controller(made, ScheduleController([]))


def test_routing_by_shape_keeps_more_objectives() -> None:
    apart, together = (served(scenario(by_shape=one)) for one in (True, False))
    assert apart.requests == together.requests > 7.5 * SECONDS
    assert apart.attainment >= 0.995
    assert together.attainment < apart.attainment
    assert served(scenario(by_shape=True)).request_table.first == apart.request_table.first, "equal scenarios are equal"


def test_where_only_one_kind_is_ready_shape_is_no_matter() -> None:
    one, other = (served(scenario(by_shape=each, large=0, seconds=40.0)) for each in (True, False))
    assert one.request_table.first == other.request_table.first
