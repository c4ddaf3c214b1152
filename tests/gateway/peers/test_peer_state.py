"""The state of peers: their load counts while they are alive; lost batches are counted."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.peers.peer_messages import PeerBatch, PeerLoad, split_loads
from fairlead_gateway.peers.peer_outbox import HEARTBEAT_SECONDS
from fairlead_gateway.peers.peer_state import (
    DISPATCH_BATCH_SECONDS,
    DISPATCH_POLL_SECONDS,
    LATE_FACTOR,
    PeerState,
)

KEY = "ns/a"
ONE: PeerLoad = (1, 1, 0.5, 10.0, 0)
SENT = (("e-0", bytes(8), 7, 0),)


def batch(
    number: int, loads: dict[str, PeerLoad] | None = None, *, within: float = 0.5, leaves: bool = False
) -> PeerBatch:
    assigned, queued = split_loads(loads) if loads is not None else (None, {})
    return PeerBatch(number, within, b"s", SENT, assigned, leaves, queued=queued)


def test_loads_of_peers_add_up_and_stay_until_the_next_report() -> None:
    peers = PeerState(b"s")
    assert peers.apply_batch(KEY, "b", batch(1, {"e-0": ONE}), 0.0, is_live=True) == SENT
    peers.apply_batch(KEY, "c", batch(1, {"e-0": (2, 0, 1.5, 5.0, 0), "e-1": ONE}), 0.0, is_live=True)
    assert peers.reported_loads() == {"e-0": (3, 1, 2.0, 15.0, 0), "e-1": ONE}
    peers.apply_batch(KEY, "b", batch(2), 0.1, is_live=True)
    assert peers.reported_loads()["e-0"] == (3, 1, 2.0, 15.0, 0)
    peers.apply_batch(KEY, "b", batch(3, {}), 0.2, is_live=True)
    assert peers.reported_loads()["e-0"] == (2, 0, 1.5, 5.0, 0)


def test_a_gateway_that_falls_silent_has_nothing_in_flight_within_two_seconds() -> None:
    peers = PeerState(b"s")
    peers.apply_batch(KEY, "b", batch(1, {"e-0": ONE}, within=HEARTBEAT_SECONDS), 10.0, is_live=True)
    peers.expire(11.49)
    assert peers.reported_loads() == {"e-0": ONE}
    peers.expire(11.51)
    assert peers.reported_loads() == {}
    assert peers.known_peers(11.51) == []


@given(
    gaps=st.lists(st.floats(0.0, HEARTBEAT_SECONDS), min_size=1, max_size=20),
    phase=st.floats(0.0, HEARTBEAT_SECONDS / 2),
    late=st.floats(0.0, DISPATCH_BATCH_SECONDS + DISPATCH_POLL_SECONDS),
)
def test_whenever_a_gateway_dies_its_load_is_gone_within_two_seconds(
    gaps: list[float], phase: float, late: float
) -> None:
    """The peer dies right after a batch, which arrives up to a round later.

    The receiver checks twice per heartbeat, from any moment on.
    """
    peers = PeerState(b"s")
    now = 10.0
    for number, gap in enumerate(gaps, 1):
        now += gap
        peers.apply_batch(KEY, "b", batch(number, {"e-0": ONE}, within=HEARTBEAT_SECONDS), now + late, is_live=True)
    died, tick = now, now + phase
    while peers.reported_loads():
        peers.expire(tick)
        assert not peers.reported_loads() or tick < died + 2.0
        tick += HEARTBEAT_SECONDS / 2
    assert peers.known_peers(tick) == []
    assert died + LATE_FACTOR * HEARTBEAT_SECONDS < tick, "and not while it may only be late"


def test_an_idle_model_does_not_keep_a_late_peer_alive() -> None:
    peers = PeerState(b"s")
    peers.apply_batch(KEY, "b", batch(1, {"e-0": ONE}), 0.0, is_live=True)
    peers.apply_batch("ns/quiet", "b", batch(1, {}, within=5.0), 0.0, is_live=True)
    peers.expire(2.0)
    assert peers.reported_loads() == {}
    assert [(peer.name, peer.age_seconds) for peer in peers.known_peers(2.0)] == [("b", 2.0)]
    peers.expire(15.1)
    assert len(peers) == 0


def test_the_past_is_a_hint_and_no_sign_of_life() -> None:
    peers = PeerState(b"s")
    assert peers.apply_batch(KEY, "b", batch(4, {"e-0": ONE}), 0.0, is_live=False) == SENT
    assert (peers.reported_loads(), len(peers), peers.missed_batches) == ({}, 0, 0)


def test_lost_batches_are_counted_and_repeated_ones_are_not() -> None:
    peers = PeerState(b"s")
    for number in (5, 6, 6, 9, 0):
        peers.apply_batch(KEY, "b", batch(number), 0.0, is_live=True)
    assert peers.missed_batches == 2


def test_one_that_leaves_in_good_order_is_gone_at_once() -> None:
    peers = PeerState(b"s")
    peers.apply_batch(KEY, "b", batch(1, {"e-0": ONE}), 0.0, is_live=True)
    assert peers.apply_batch(KEY, "b", batch(2, leaves=True), 0.1, is_live=True) == SENT
    assert (peers.reported_loads(), len(peers)) == ({}, 0)


def test_hashes_under_another_secret_mean_nothing_but_the_load_counts() -> None:
    peers = PeerState(b"ours")
    assert peers.apply_batch(KEY, "b", batch(1, {"e-0": ONE}), 0.0, is_live=True) == ()
    assert peers.reported_loads() == {"e-0": ONE}
    assert [peer.shares_secret for peer in peers.known_peers(0.0)] == [False]


def test_more_gateways_than_the_limit_are_not_counted() -> None:
    peers = PeerState(b"s", max_peers=2)
    for name in "bcd":
        peers.apply_batch(KEY, name, batch(1, {"e-0": ONE}), 0.0, is_live=True)
    assert (len(peers), peers.rejected_peers, peers.reported_loads()["e-0"][0]) == (2, 1, 2)


def test_a_model_that_left_is_forgotten() -> None:
    peers = PeerState(b"s")
    peers.apply_batch(KEY, "b", batch(1, {"e-0": ONE}), 0.0, is_live=True)
    peers.forget_model(KEY)
    assert peers.reported_loads() == {}
