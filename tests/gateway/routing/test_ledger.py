"""The ledger: sums equal the requests in flight, whatever order things end in."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing.ledger import InstanceLoad, Ledger


def test_a_request_is_backlog_until_its_first_token_and_load_until_its_end() -> None:
    ledger = Ledger()
    ledger.dispatched("r", "a", seconds=0.5, tokens=100)
    assert ledger.load("a") == InstanceLoad(1, 1, 0.5, 100)
    ledger.first_token("r")
    assert ledger.load("a") == InstanceLoad(1, 0, 0.0, 100)
    assert ledger.ended("r") == "a"
    assert ledger.load("a") == InstanceLoad()


def test_a_retry_moves_the_request() -> None:
    ledger = Ledger()
    ledger.dispatched("r", "a", seconds=0.5, tokens=100)
    ledger.dispatched("r", "b", seconds=0.25, tokens=100)
    assert ledger.load("a") == InstanceLoad()
    assert ledger.load("b").inflight == 1


def test_unknown_requests_are_ignored() -> None:
    ledger = Ledger()
    ledger.first_token("nobody")
    assert ledger.ended("nobody") is None


ACTIONS = st.lists(st.tuples(st.sampled_from("dfe"), st.integers(0, 9), st.sampled_from("abc"), st.floats(0, 10)))


@given(ACTIONS)
def test_sums_are_those_of_the_requests_in_flight(actions: list[tuple[str, int, str, float]]) -> None:
    ledger, flights = Ledger(), dict[str, list[object]]()
    for action, number, instance, size in actions:
        request = f"r{number}"
        if action == "d":
            ledger.dispatched(request, instance, seconds=size, tokens=size * 10)
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
