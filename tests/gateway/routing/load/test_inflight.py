"""The in-flight load: sums equal the requests in flight, in whatever order they finish."""

from math import fsum, isnan
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fairlead_gateway.routing import PrefixChain, RouteRequest, prefix_chain
from fairlead_gateway.routing.load.inflight import (
    MAX_COMPARED_PROMPTS,
    NOTHING_DEFERRED,
    EndpointLoad,
    InflightTracker,
    InstanceLoad,
    compensated_backlog_seconds,
    least_busy,
    total_backlog_seconds,
)
from fairlead_gateway.routing.prefix.prefix_hash import shared_bytes


def make_request(name: str) -> RouteRequest:
    return RouteRequest(name, PrefixChain((), (), 0), 1.0)


def test_a_request_is_backlog_until_its_first_token_and_load_until_its_end() -> None:
    ledger = InflightTracker()
    ledger.add(make_request("r"), "a", prefill_seconds=0.5, tokens=100)
    assert ledger.instance_load("a") == InstanceLoad(1, 1, 0.5, 100)
    ledger.on_first_token("r")
    assert ledger.instance_load("a") == InstanceLoad(1, 0, 0.0, 100)
    assert ledger.remove("r").load.instance == "a"
    assert ledger.instance_load("a") == InstanceLoad()


def test_deferred_prefill_is_no_load_and_hides_that_of_other_processes() -> None:
    whole = EndpointLoad("a", 9, 9, 9.0, 900)
    ledger = InflightTracker(load_override=lambda local: whole)
    ledger.add(make_request("r"), "a", prefill_seconds=0.5, tokens=100)
    ledger.add(make_request("s"), "b", prefill_seconds=0.5, tokens=100)
    loads = [ledger.local_load("a"), ledger.local_load("b")]
    ledger.defer({"a": 0.4})
    assert [load.backlog_seconds for load in ledger.total_loads(loads)] == [pytest.approx(0.1), 0.5]
    ledger.defer(NOTHING_DEFERRED)
    assert ledger.total_loads(loads) == [whole, whole]


def test_a_retry_moves_the_request() -> None:
    ledger = InflightTracker()
    ledger.add(make_request("r"), "a", prefill_seconds=0.5, tokens=100)
    ledger.add(make_request("r"), "b", prefill_seconds=0.25, tokens=100)
    assert ledger.instance_load("a") == InstanceLoad()
    assert ledger.instance_load("b").inflight == 1


def test_unknown_requests_are_ignored() -> None:
    ledger = InflightTracker()
    ledger.on_first_token("nobody")
    assert ledger.remove("nobody") is None


def test_sums_of_retained_instances_are_permanent_objects() -> None:
    ledger = InflightTracker()
    ledger.retain({"a"})
    here = ledger.local_load("a")
    for name, instance in (("r", "a"), ("s", "b")):
        ledger.add(make_request(name), instance, prefill_seconds=1.0, tokens=1.0)
    assert set(ledger.busy_instances()) == {"a", "b"}
    there = ledger.local_load("b")
    ledger.remove("r")
    ledger.remove("s")
    assert ledger.busy_instances() == ()
    assert ledger.local_load("a") is here
    assert ledger.local_load("b") is not there
    ledger.retain({"b"})
    assert ledger.local_load("a") is not here


LOADS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 2)), min_size=1, max_size=9)


@given(LOADS)
def test_the_least_busy_and_the_backlog_of_all_do_not_depend_on_their_order(drawn: list[tuple[float, float]]) -> None:
    loads = [EndpointLoad(f"pod-{n}", 1, 1, backlog, tokens) for n, (backlog, tokens) in enumerate(drawn)]
    least = min(loads, key=lambda load: (load.backlog_seconds, load.inflight_tokens, load.instance))
    for order in (loads, loads[::-1]):
        assert least_busy(order) is least
        assert total_backlog_seconds(order) == fsum(load.backlog_seconds for load in loads)


ACTIONS = st.lists(st.tuples(st.sampled_from("dfe"), st.integers(0, 9), st.sampled_from("abc"), st.floats(0, 10)))


@given(ACTIONS)
def test_sums_are_those_of_the_requests_in_flight(actions: list[tuple[str, int, str, float]]) -> None:
    ledger, flights = InflightTracker(), dict[str, list[object]]()
    for action, number, instance, size in actions:
        request = f"r{number}"
        if action == "d":
            ledger.add(make_request(request), instance, prefill_seconds=size, tokens=size * 10)
            flights[request] = [instance, size, True]
        elif action == "f":
            ledger.on_first_token(request)
            if request in flights:
                flights[request][2] = False
        else:
            ledger.remove(request)
            flights.pop(request, None)
    for instance in "abc":
        mine = [flight for flight in flights.values() if flight[0] == instance]
        load = ledger.instance_load(instance)
        assert load.inflight == len(mine)
        assert load.waiting == sum(1 for flight in mine if flight[2])
        backlog = sum(float(str(flight[1])) for flight in mine if flight[2])
        assert abs(load.backlog_seconds - backlog) < 1e-6
        assert load.backlog_seconds >= 0
        assert load.inflight_tokens >= 0


SECONDS = st.one_of(
    st.floats(0.0, 100.0),
    st.floats(-1e-9, 1e9),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.1, 2.0**-53, 2.0**-54, 1.0, 1.0 + 2.0**-52, -1.0, 1e16, 1e-300, 5e-324]),
)


@given(st.lists(SECONDS, max_size=80))
@example([1.0, 2.0**-53])  # half of the last bit
@example([1.0, 2.0**-53, 2.0**-106])
@example([1e308, 1e308])
def test_compensated_sum_is_the_exact_one_or_none(seconds: list[float]) -> None:
    backlog = compensated_backlog_seconds([EndpointLoad("a", 1, 1, value) for value in seconds])
    assert isnan(backlog) or backlog == fsum(seconds)


@given(st.lists(st.floats(0.001, 100.0), min_size=1, max_size=80))
def test_compensated_sum_of_usual_backlogs_is_almost_always_known(seconds: list[float]) -> None:
    doubtful = sum(
        isnan(compensated_backlog_seconds([EndpointLoad("a", 1, 1, value * factor) for value in seconds]))
        for factor in (1.0, 1.1, 1.7)
    )
    assert doubtful < 3


def _prompt(draw: Random, known: list[bytes]) -> bytes:
    """Returns a prompt that begins as an earlier one does, for up to its whole length."""
    start = draw.choice(known)[: draw.randrange(4_096)] if known else b""
    return start + draw.randbytes(draw.choice([0, 0, 256, 1_000]))


@pytest.mark.parametrize("seed", range(8))
def test_shared_start_is_that_of_a_comparison_with_all_requests_in_flight(seed: int) -> None:
    draw, tracker, known = Random(seed), InflightTracker(), list[bytes]()
    ids: list[str] = []
    for number in range(600):
        if ids and draw.random() < (0.2 if number % 300 < 150 else 0.8):
            tracker.remove(ids.pop(draw.randrange(len(ids))))
        else:
            known.append(_prompt(draw, known))
            chain = prefix_chain(known[-1], secret=b"s", seed=b"m")
            # Some are retries, which move to another instance.
            name = draw.choice(ids) if ids and draw.random() < 0.1 else f"r{number}"
            ids = [one for one in ids if one != name] + [name]
            tracker.add(RouteRequest(name, chain, 1.0), draw.choice("ab"), prefill_seconds=0.0, tokens=1)
        chain = prefix_chain(_prompt(draw, known), secret=b"s", seed=b"m")
        for instance in "abc":
            others = [one.request.chain for one in tracker.requests_at(instance)]
            assert tracker.shared_bytes(instance, chain) == max([shared_bytes(chain, one) for one in others], default=0)
    assert len(known) > 2 * MAX_COMPARED_PROMPTS


def test_blocks_are_counted_only_while_many_requests_are_in_flight() -> None:
    tracker, chain = InflightTracker(), prefix_chain(bytes(4_096), secret=b"s", seed=b"m")
    for number in range(2 * MAX_COMPARED_PROMPTS):
        tracker.add(RouteRequest(f"{number}", chain, 1.0), "a", prefill_seconds=0.0, tokens=1)
        assert (tracker._block_counts is not None) is (number >= MAX_COMPARED_PROMPTS)
    for number in range(2 * MAX_COMPARED_PROMPTS):
        tracker.remove(f"{number}")
    assert tracker._block_counts is None
