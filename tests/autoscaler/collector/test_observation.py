"""Several gateways become one observation: what adds up, whose word counts, and what is missing."""

import pytest

from fairlead.api.spec.autoscaling import Autoscaling
from fairlead.fleet.model import SloTargets
from fairlead_autoscaler.collector.counter_deltas import CounterKey, advance, start_tracking
from fairlead_autoscaler.collector.observation import (
    GatewayMetrics,
    GatewaySnapshot,
    SignalAges,
    build_observation,
    gateway_traffic,
)
from fairlead_autoscaler.core import GatewayTraffic, PoolObservation, PoolSpec, ReplicaMetrics, ReplicaState, ShapeCount
from fairlead_autoscaler.core.signals.validation import valid_traffic
from fairlead_autoscaler.model_spec import scaled_model
from fairlead_autoscaler.target import ModelState, PoolState, Replica

KEY, ONE, TWO = "default/tiny", "main-0/9001/0", "main-1/9002/0"
MODEL = scaled_model(
    KEY, SloTargets(ttft_seconds=2.0, itl_seconds=0.05), [PoolSpec("main", maximum=4)], interval_seconds=5.0
)
AGES = SignalAges(10.0, 60.0)
STATE = ModelState(
    MODEL,
    Autoscaling(),
    {
        "main": PoolState(
            3,
            (
                Replica("main-0", ReplicaState.READY, 100.0, 8.0, (ONE,)),
                Replica("main-1", ReplicaState.PENDING, 3.0),
                Replica("main-2", ReplicaState.DRAINING, 200.0, 9.0, (TWO,)),
            ),
        )
    },
)


def metrics_of(name: str, arrivals: float = 10.0, **gauges: float) -> GatewayMetrics:
    counted: dict[CounterKey, float] = {
        ("arrivals", KEY): arrivals,
        ("prompt_tokens", KEY): 100.0 * arrivals,
        ("abandoned", KEY): 1.0,
        ("finished", KEY, ONE): 4.0,
        ("first_tokens", KEY, ONE): 5.0,
        ("ttft_seconds", KEY, ONE): 2.5,
        ("gaps", KEY, ONE): 10.0,
        ("gap_seconds", KEY, ONE): 0.4,
        ("output_tokens", KEY, ONE): 33.0,
        ("judged", KEY, ONE, "ttft"): 5.0,
        ("within", KEY, ONE, "ttft"): 3.0,
    }
    here = {(key, KEY, ONE): value for key, value in gauges.items()}
    return GatewayMetrics(name, counted, {("generated_tokens", KEY, ONE): 40.0}, {("held", KEY): 2.0, **here})


def pool_of(readings: GatewaySnapshot) -> PoolObservation:
    return build_observation(STATE, readings, 50.0, AGES).pools["main"]


def replica_of(readings: GatewaySnapshot) -> ReplicaMetrics:
    replicas = pool_of(readings).replicas
    assert replicas is not None
    return replicas[0]


def test_what_gateways_counted_adds_up() -> None:
    seen = build_observation(STATE, GatewaySnapshot((metrics_of("a"), metrics_of("b", 5.0))), 50.0, AGES)
    assert seen.now == 50.0
    assert seen.gateway == GatewayTraffic(15.0, 1_500.0, 4.0, 2.0, kept=0.0, kept_tokens=0.0)
    total = replica_of(GatewaySnapshot((metrics_of("a"), metrics_of("b"))))
    assert (total.finished, total.first_tokens, total.ttft_seconds, total.ttft_counts) == (8.0, 10.0, 5.0, (6.0, 4.0))
    assert total.itl_counts == (0.0, 0.0)


@pytest.mark.parametrize("name", ["arrivals", "prompt_tokens"])
def test_gateway_that_counts_impossible_amounts_hides_no_traffic_of_others(name: str) -> None:
    counters = {("arrivals", KEY): 0.0, ("prompt_tokens", KEY): 0.0}
    tracker = start_tracking(counters, 0.0)
    for value in (1e8, 1e9, 1e13, 1e15):
        _, increases = advance(tracker, {**counters, (name, KEY): value}, 5.0, starts_at_zero=True)
        snapshot = GatewaySnapshot((metrics_of("a"), GatewayMetrics("hostile", increases)))
        traffic = valid_traffic(gateway_traffic(KEY, snapshot))
        assert traffic is not None, "the traffic of a model would be missing as long as one gateway likes"
        assert traffic.arrivals >= 10.0
        assert traffic.prompt_tokens == 1_000.0


def test_pods_are_what_the_world_says_even_while_no_gateway_answers() -> None:
    for readings in (GatewaySnapshot(), GatewaySnapshot((GatewayMetrics("a", error="silent"),))):
        seen = build_observation(STATE, readings, 50.0, AGES)
        assert seen.gateway is None
        pool = seen.pools["main"]
        assert (pool.desired, pool.ready, pool.pending, pool.draining) == (3, 1, 1, 1)
        assert pool.pending_ages_seconds == (3.0,)
        assert pool.replicas is None


def test_of_an_engine_the_freshest_word_counts_and_an_old_one_does_not() -> None:
    old = metrics_of("a", running=9.0, waiting=9.0, kv_share=0.9, age_seconds=4.0)
    new = metrics_of("b", running=3.0, waiting=1.0, kv_share=0.3, age_seconds=1.0)
    replica = replica_of(GatewaySnapshot((old, new)))
    assert replica.kv_share == 0.3
    assert replica.generated_tokens == 40.0  # each gateway relays the same counter: it is not added up
    stale = replica_of(GatewaySnapshot((metrics_of("a", running=9.0, waiting=9.0, kv_share=0.9, age_seconds=10.1),)))
    assert (stale.kv_share, stale.generated_tokens) == (None, 33.0)


def test_gateways_report_requests_in_flight_and_engines_those_that_wait() -> None:
    a, b = metrics_of("a", in_flight=5.0, not_begun=2.0), metrics_of("b", in_flight=3.0, not_begun=1.0)
    replica = replica_of(GatewaySnapshot((a, b)))
    assert (replica.running, replica.waiting) == (5.0, 3.0)  # no engine's word: what has no first token yet waits
    heard = metrics_of("b", in_flight=3.0, not_begun=1.0, running=9.0, waiting=2.0, age_seconds=1.0)
    replica = replica_of(GatewaySnapshot((a, heard)))
    assert (replica.running, replica.waiting) == (6.0, 2.0)
    late = metrics_of("b", in_flight=3.0, not_begun=1.0, running=9.0, waiting=7.0, age_seconds=1.0)
    replica = replica_of(GatewaySnapshot((a, late)))
    assert (replica.running, replica.waiting) == (
        5.0,
        3.0,
    )  # what has a first token waits no more, whatever was said a second ago


def test_while_a_gateway_is_missing_only_the_engines_word_is_of_all() -> None:
    gone = GatewayMetrics("b", error="silent")
    replica = replica_of(
        GatewaySnapshot(
            (metrics_of("a", in_flight=5.0, not_begun=2.0, running=9.0, waiting=2.0, age_seconds=1.0), gone)
        )
    )
    assert (replica.running, replica.waiting) == (9.0, 2.0)
    replica = replica_of(GatewaySnapshot((metrics_of("a", in_flight=5.0, not_begun=2.0), gone)))
    assert (replica.running, replica.waiting) == (None, None)  # a part is no measure of the whole


def test_the_time_between_tokens_is_of_all_tokens_that_were_generated() -> None:
    replica = replica_of(GatewaySnapshot((metrics_of("a", running=1.0, waiting=0.0, age_seconds=1.0),)))
    assert replica.itl_seconds == pytest.approx(40 * 0.04)


def test_a_replica_without_an_endpoint_is_there_and_says_nothing() -> None:
    replicas = pool_of(GatewaySnapshot((metrics_of("a"),))).replicas
    assert replicas is not None
    assert replicas[1] == ReplicaMetrics("main-1", ReplicaState.PENDING, 3.0)


def test_the_objectives_are_the_edges_of_the_histograms() -> None:
    assert (MODEL.ttft_bounds, MODEL.itl_bounds) == ((2.0,), (0.05,))
    none = scaled_model(KEY, SloTargets(), [], interval_seconds=5.0)
    assert (none.ttft_bounds, none.itl_bounds) == ((), ())


def test_shapes_add_up_over_gateways_for_models_with_a_choice_of_pools() -> None:
    counted: dict[CounterKey, float] = {
        ("shapes", KEY, "367", "12"): 2.0,
        ("shapes", KEY, "9999", "12"): 0.0,
        ("shapes", KEY, "many", "12"): 2.0,
        ("shapes", KEY): 2.0,
    }
    readings = GatewaySnapshot(
        (GatewayMetrics("a", counted), GatewayMetrics("b", counted), GatewayMetrics("c", error="silent"))
    )
    assert build_observation(STATE, readings, 50.0, AGES).shapes is None
    two = scaled_model(KEY, SloTargets(), [PoolSpec("main"), PoolSpec("small")], interval_seconds=5.0)
    choice = ModelState(two, Autoscaling(), STATE.pools)
    assert build_observation(choice, readings, 50.0, AGES).shapes == (ShapeCount(367.0, 12.0, 4.0),)
    assert build_observation(choice, GatewaySnapshot((GatewayMetrics("a", error="silent"),)), 50.0, AGES).shapes is None


def ejected(*seconds: float | None, error: str | None = None) -> GatewaySnapshot:
    """Returns gateways that ejected the only ready replica for so long; None: they did not."""
    metrics = [
        metrics_of(f"g{number}") if each is None else metrics_of(f"g{number}", ejected_seconds=each)
        for number, each in enumerate(seconds)
    ]
    return GatewaySnapshot((*metrics, *([GatewayMetrics("missing", error=error)] if error else [])))


@pytest.mark.parametrize(
    ("readings", "count"),
    [
        (ejected(61.0, 75.0), 1),
        (ejected(61.0, 60.0), 0),
        (ejected(61.0, None), 0),
        (ejected(None), 0),
        (ejected(61.0, error="no answer within 2 s"), 1),
        (ejected(error="no answer within 2 s"), None),
        (GatewaySnapshot(), None),
    ],
)
def test_replica_is_ejected_if_every_known_gateway_says_so_for_the_limit(
    readings: GatewaySnapshot, count: int | None
) -> None:
    pool = pool_of(readings)
    assert (pool.ready, pool.ejected) == (1, count)
