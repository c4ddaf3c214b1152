"""Retry-After from what is known."""

from fairlead.fleet.model import InstanceState
from fairlead_gateway.resilience.worker.retry import StartupTimes, retry_after_seconds
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of

STARTING, READY = InstanceState.STARTING, InstanceState.READY


def of(*states: InstanceState) -> StartupTimes:
    """Knows starts of 40 s, and sees the given states at 100 s."""
    starts = StartupTimes()
    starts.observe_fleet(fleet_of(["http://a"], states=[STARTING]), 0.0)
    starts.observe_fleet(fleet_of(["http://a"], states=[READY]), 40.0)
    starts.observe_fleet(fleet_of(["http://a"] * len(states), states=states), 100.0)
    return starts


def test_an_instance_that_starts_is_expected_after_the_usual_time() -> None:
    fleet = fleet_of(["http://a"], states=[STARTING])
    starts = of(STARTING)
    assert starts.retry_after(fleet, MODEL_KEY, 100.0) == 40
    assert starts.retry_after(fleet, MODEL_KEY, 115.5) == 25
    assert starts.retry_after(fleet, MODEL_KEY, 300.0) == 1


def test_without_a_start_or_without_knowledge_it_is_a_constant() -> None:
    fleet = fleet_of(["http://a"], states=[STARTING])
    new = StartupTimes()
    new.observe_fleet(fleet, 0.0)
    assert new.retry_after(fleet, MODEL_KEY, 1.0) == 2
    assert of(InstanceState.SLEEPING).retry_after(fleet, MODEL_KEY, 100.0) == 2


def test_full_engines_are_expected_to_have_room_when_the_least_busy_one_has_drained() -> None:
    assert retry_after_seconds(4.1) == 5
    assert retry_after_seconds(0.0) == 1
    assert retry_after_seconds(1e9) == 60
