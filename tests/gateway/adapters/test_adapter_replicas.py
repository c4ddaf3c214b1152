"""Instances that keep adapters loaded: the first homes, as far as slots reach."""

from fairlead_gateway.adapters.placement import (
    KeptAdapter,
    ResidentValue,
    choose_eviction,
    choose_keepers,
    eviction_seconds,
)


def test_the_first_homes_keep_an_adapter() -> None:
    assert choose_keepers([KeptAdapter("sql", 2, ("c", "a", "b"))], slots=4) == {"c": {"sql"}, "a": {"sql"}}


def test_one_of_several_slots_is_left_to_others() -> None:
    adapters = [KeptAdapter(name, 2, ("a", "b", "c")) for name in ("y", "x", "z")]
    assert choose_keepers(adapters, slots=3) == {"a": {"x", "y"}, "b": {"x", "y"}, "c": {"z"}}
    assert choose_keepers(adapters, slots=1) == {"a": {"x"}, "b": {"x"}, "c": {"y"}}


def test_there_may_be_fewer_instances_than_replicas() -> None:
    assert choose_keepers([KeptAdapter("sql", 9, ("a",))], slots=8) == {"a": {"sql"}}
    assert choose_keepers([KeptAdapter("sql", 9, ())], slots=8) == {}


def test_what_is_kept_is_not_evicted() -> None:
    kept = ResidentValue("kept", 0.0, 1.0, is_kept=True)
    assert choose_eviction([kept, ResidentValue("busy", 9.0, 1.0, is_busy=True)]).name == "busy"
    assert choose_eviction([kept]).name is None
    assert eviction_seconds([kept], 1) == float("inf")
