"""The ledger: sums equal the requests in flight, whatever order things end in."""

from math import fsum

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.routing.ledger import InstanceLoad, Ledger, Tally, backlog_of, least_busy


def asked(name: str) -> RouteRequest:
    return RouteRequest(name, PrefixChain((), (), 0), 1.0)


def test_a_request_is_backlog_until_its_first_token_and_load_until_its_end() -> None:
    ledger = Ledger()
    ledger.dispatched(asked("r"), "a", seconds=0.5, tokens=100)
    assert ledger.load("a") == InstanceLoad(1, 1, 0.5, 100)
    ledger.first_token("r")
    assert ledger.load("a") == InstanceLoad(1, 0, 0.0, 100)
    flight = ledger.ended("r")
    assert flight is not None
    assert flight.tally.instance == "a"
    assert ledger.load("a") == InstanceLoad()


def test_a_retry_moves_the_request() -> None:
    ledger = Ledger()
    ledger.dispatched(asked("r"), "a", seconds=0.5, tokens=100)
    ledger.dispatched(asked("r"), "b", seconds=0.25, tokens=100)
    assert ledger.load("a") == InstanceLoad()
    assert ledger.load("b").inflight == 1


def test_unknown_requests_are_ignored() -> None:
    ledger = Ledger()
    ledger.first_token("nobody")
    assert ledger.ended("nobody") is None


def test_the_sums_of_an_instance_in_service_are_one_object_for_good_and_others_go_with_their_last_request() -> None:
    ledger = Ledger()
    ledger.keep({"a"})
    here = ledger.tally("a")
    for name, instance in (("r", "a"), ("s", "b")):
        ledger.dispatched(asked(name), instance, seconds=1.0, tokens=1.0)
    assert set(ledger.busy()) == {"a", "b"}
    there = ledger.tally("b")
    ledger.ended("r")
    ledger.ended("s")
    assert ledger.busy() == ()
    assert ledger.tally("a") is here
    assert ledger.tally("b") is not there
    ledger.keep({"b"})
    assert ledger.tally("a") is not here


LOADS = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 2)), min_size=1, max_size=9)


@given(LOADS)
def test_the_least_busy_and_the_backlog_of_all_do_not_depend_on_their_order(drawn: list[tuple[float, float]]) -> None:
    loads = [Tally(f"pod-{n}", 1, 1, backlog, tokens) for n, (backlog, tokens) in enumerate(drawn)]
    least = min(loads, key=lambda load: (load.backlog_seconds, load.inflight_tokens, load.instance))
    for order in (loads, loads[::-1]):
        assert least_busy(order) is least
        assert backlog_of(order) == fsum(load.backlog_seconds for load in loads)


ACTIONS = st.lists(st.tuples(st.sampled_from("dfe"), st.integers(0, 9), st.sampled_from("abc"), st.floats(0, 10)))


@given(ACTIONS)
def test_sums_are_those_of_the_requests_in_flight(actions: list[tuple[str, int, str, float]]) -> None:
    ledger, flights = Ledger(), dict[str, list[object]]()
    for action, number, instance, size in actions:
        request = f"r{number}"
        if action == "d":
            ledger.dispatched(asked(request), instance, seconds=size, tokens=size * 10)
            flights[request] = [instance, size, True]
        elif action == "f":
            ledger.first_token(request)
            if request in flights:
                flights[request][2] = False
        else:
            ledger.ended(request)
            flights.pop(request, None)
    for instance in "abc":
        mine = [flight for flight in flights.values() if flight[0] == instance]
        load = ledger.load(instance)
        assert load.inflight == len(mine)
        assert load.waiting == sum(1 for flight in mine if flight[2])
        backlog = sum(float(str(flight[1])) for flight in mine if flight[2])
        assert abs(load.backlog_seconds - backlog) < 1e-6
        assert load.backlog_seconds >= 0
        assert load.inflight_tokens >= 0
