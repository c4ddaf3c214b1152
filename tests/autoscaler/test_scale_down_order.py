"""The order of removal: unready replicas, then the least valuable caches, then the least busy."""

from dataclasses import replace

from fairlead_autoscaler.collector.counter_deltas import CounterKey
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot
from fairlead_autoscaler.core import ReplicaState
from fairlead_autoscaler.scale_down_order import removal_order
from fairlead_autoscaler.target import Replica

KEY = "default/tiny"


def ready(name: str, age: float = 100.0) -> Replica:
    return Replica(name, ReplicaState.READY, age, 5.0, (f"{name}/0",))


def readings(unique: dict[str, float], work: dict[str, float]) -> GatewaySnapshot:
    gauges: dict[CounterKey, float] = {
        ("unique_used_blocks", KEY, f"{name}/0"): value for name, value in unique.items()
    }
    gauges |= {("in_flight", KEY, f"{name}/0"): value for name, value in work.items()}
    return GatewaySnapshot((GatewayMetrics("a", {}, {}, gauges),))


def test_the_one_whose_cache_nobody_misses_leaves_first() -> None:
    order = removal_order(KEY, [ready("a"), ready("b"), ready("c")], readings({"a": 30, "b": 5, "c": 90}, {"b": 9}))
    assert order == ("b", "a", "c")


def test_of_equal_caches_the_one_with_the_least_to_do() -> None:
    order = removal_order(KEY, [ready("a"), ready("b"), ready("c")], readings({}, {"a": 3, "b": 1, "c": 2}))
    assert order == ("b", "c", "a")


def test_one_that_the_index_does_not_know_counts_as_the_average() -> None:
    order = removal_order(KEY, [ready("a"), ready("b"), ready("c")], readings({"a": 10, "c": 90}, {}))
    assert order == ("a", "b", "c")


def test_unready_replicas_leave_first_and_leaving_ones_are_not_counted() -> None:
    starting = [Replica("new", ReplicaState.PENDING, 2.0), Replica("newer", ReplicaState.PENDING, 1.0)]
    going = Replica("gone", ReplicaState.DRAINING, 500.0)
    assert removal_order(KEY, [ready("a"), *starting, going], readings({"a": 0}, {})) == ("newer", "new", "a")


def test_without_any_word_the_youngest_leaves() -> None:
    assert removal_order(KEY, [ready("old", 900.0), ready("young", 9.0)], GatewaySnapshot()) == ("young", "old")


def test_replica_that_every_gateway_ejected_leaves_before_other_ready_ones() -> None:
    replicas = [ready("a"), ready("b"), Replica("new", ReplicaState.PENDING, 2.0)]
    ejecting = readings({"a": 0, "b": 90}, {}).gateways[0]
    ejecting = replace(ejecting, gauges={**ejecting.gauges, ("ejected_seconds", KEY, "b/0"): 5.0})
    assert removal_order(KEY, replicas, GatewaySnapshot((ejecting,))) == ("new", "b", "a")
    other = replace(ejecting, name="b", gauges={})
    assert removal_order(KEY, replicas, GatewaySnapshot((ejecting, other))) == ("new", "a", "b")
