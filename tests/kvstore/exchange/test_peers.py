"""The other gateways: their load counts while they are heard, what they sent stays, and what was lost is counted."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_kvstore.exchange.peers import LATE, Peers
from fairlead_kvstore.exchange.records import Batch, Load

KEY = "ns/a"
ONE: Load = (1, 1, 0.5, 10.0)
SENT = (("e-0", bytes(8), 7, 0),)


def batch(number: int, loads: dict[str, Load] | None = None, *, within: float = 0.5, leaves: bool = False) -> Batch:
    return Batch(number, within, b"s", SENT, loads, leaves)


def test_the_loads_of_all_others_add_up_and_stay_until_they_are_told_anew() -> None:
    peers = Peers(b"s", Limits())
    assert peers.heard(KEY, "b", batch(1, {"e-0": ONE}), 0.0, live=True) == SENT
    peers.heard(KEY, "c", batch(1, {"e-0": (2, 0, 1.5, 5.0), "e-1": ONE}), 0.0, live=True)
    assert peers.loads() == {"e-0": (3, 1, 2.0, 15.0), "e-1": ONE}
    peers.heard(KEY, "b", batch(2), 0.1, live=True)
    assert peers.loads()["e-0"] == (3, 1, 2.0, 15.0)
    peers.heard(KEY, "b", batch(3, {}), 0.2, live=True)
    assert peers.loads()["e-0"] == (2, 0, 1.5, 5.0)


def test_a_gateway_that_falls_silent_has_nothing_in_flight_within_two_seconds() -> None:
    limits = Limits()
    peers = Peers(b"s", limits)
    peers.heard(KEY, "b", batch(1, {"e-0": ONE}, within=limits.beat_seconds), 10.0, live=True)
    peers.expire(11.49)
    assert peers.loads() == {"e-0": ONE}
    peers.expire(11.51)
    assert peers.loads() == {}
    assert peers.present(11.51) == []


@given(
    gaps=st.lists(st.floats(0.0, Limits().beat_seconds), min_size=1, max_size=20),
    phase=st.floats(0.0, Limits().beat_seconds / 2),
    late=st.floats(0.0, Limits().sent_seconds_gathered + Limits().sent_look_seconds),
)
def test_whenever_a_gateway_dies_its_load_is_gone_within_two_seconds(
    gaps: list[float], phase: float, late: float
) -> None:
    """Killed right after any batch, which is heard up to a round later; the receiver looks twice a beat, from any moment on."""
    limits, peers = Limits(), Peers(b"s", Limits())
    now = 10.0
    for number, gap in enumerate(gaps, 1):
        now += gap
        peers.heard(KEY, "b", batch(number, {"e-0": ONE}, within=limits.beat_seconds), now + late, live=True)
    died, tick = now, now + phase
    while peers.loads():
        peers.expire(tick)
        assert not peers.loads() or tick < died + 2.0
        tick += limits.beat_seconds / 2
    assert peers.present(tick) == []
    assert died + LATE * limits.beat_seconds < tick, "and not while it may only be late"


def test_a_quiet_model_keeps_nobody_alive_whose_load_is_late() -> None:
    peers = Peers(b"s", Limits())
    peers.heard(KEY, "b", batch(1, {"e-0": ONE}), 0.0, live=True)
    peers.heard("ns/quiet", "b", batch(1, {}, within=5.0), 0.0, live=True)
    peers.expire(2.0)
    assert peers.loads() == {}
    assert [(one.name, one.age_seconds) for one in peers.present(2.0)] == [("b", 2.0)]
    peers.expire(15.1)
    assert len(peers) == 0


def test_the_past_is_a_hint_and_no_sign_of_life() -> None:
    peers = Peers(b"s", Limits())
    assert peers.heard(KEY, "b", batch(4, {"e-0": ONE}), 0.0, live=False) == SENT
    assert (peers.loads(), len(peers), peers.missed) == ({}, 0, 0)


def test_lost_batches_are_counted_and_repeated_ones_are_not() -> None:
    peers = Peers(b"s", Limits())
    for number in (5, 6, 6, 9):
        peers.heard(KEY, "b", batch(number), 0.0, live=True)
    assert peers.missed == 2


def test_one_that_leaves_in_good_order_is_gone_at_once() -> None:
    peers = Peers(b"s", Limits())
    peers.heard(KEY, "b", batch(1, {"e-0": ONE}), 0.0, live=True)
    assert peers.heard(KEY, "b", batch(2, leaves=True), 0.1, live=True) == SENT
    assert (peers.loads(), len(peers)) == ({}, 0)


def test_hashes_under_another_secret_mean_nothing_but_the_load_counts() -> None:
    peers = Peers(b"ours", Limits())
    assert peers.heard(KEY, "b", batch(1, {"e-0": ONE}), 0.0, live=True) == ()
    assert peers.loads() == {"e-0": ONE}
    assert [one.alike for one in peers.present(0.0)] == [False]


def test_more_gateways_than_the_limit_are_not_counted() -> None:
    peers = Peers(b"s", replace(Limits(), peers=2))
    for name in "bcd":
        peers.heard(KEY, name, batch(1, {"e-0": ONE}), 0.0, live=True)
    assert (len(peers), peers.refused, peers.loads()["e-0"][0]) == (2, 1, 2)


def test_a_model_that_left_is_forgotten() -> None:
    peers = Peers(b"s", Limits())
    peers.heard(KEY, "b", batch(1, {"e-0": ONE}), 0.0, live=True)
    peers.forget(KEY)
    assert peers.loads() == {}
