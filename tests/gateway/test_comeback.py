"""Retry-After from what is known."""

from fairlead.fleet import InstanceState
from fairlead.limits import Limits
from fairlead_gateway.comeback import Starts, drained
from fairlead_gateway.testing import KEY, fleet_of

STARTING, READY = InstanceState.STARTING, InstanceState.READY


def of(*states: InstanceState) -> Starts:
    """Knows starts of 40 s, and sees the given states at 100 s."""
    starts = Starts(Limits())
    starts.seen(fleet_of(["http://a"], states=[STARTING]), 0.0)
    starts.seen(fleet_of(["http://a"], states=[READY]), 40.0)
    starts.seen(fleet_of(["http://a"] * len(states), states=states), 100.0)
    return starts


def test_an_instance_that_starts_is_expected_after_the_usual_time() -> None:
    fleet = fleet_of(["http://a"], states=[STARTING])
    starts = of(STARTING)
    assert starts.retry_after(fleet, KEY, 100.0) == 40
    assert starts.retry_after(fleet, KEY, 115.5) == 25
    assert starts.retry_after(fleet, KEY, 300.0) == 1


def test_without_a_start_or_without_knowledge_it_is_a_constant() -> None:
    fleet = fleet_of(["http://a"], states=[STARTING])
    new = Starts(Limits())
    new.seen(fleet, 0.0)
    assert new.retry_after(fleet, KEY, 1.0) == 2
    assert of(InstanceState.SLEEPING).retry_after(fleet, KEY, 100.0) == 2


def test_full_engines_are_expected_to_have_room_when_the_least_busy_one_has_drained() -> None:
    assert drained(4.1, Limits()) == 5
    assert drained(0.0, Limits()) == 1
    assert drained(1e9, Limits()) == 60
