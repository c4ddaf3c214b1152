"""The outbox: bounded batches, and heartbeats that follow the load."""

from fairlead_gateway.peers.peer_messages import PeerBatch, PeerLoad
from fairlead_gateway.peers.peer_outbox import HEARTBEAT_SECONDS, IDLE_HEARTBEAT_SECONDS, PeerOutbox

KEY = "ns/a"
BUSY: dict[str, dict[str, PeerLoad]] = {KEY: {"e-0": (2, 2, 0.5, 10.0, 1)}}


def test_what_was_sent_goes_out_once_and_loads_only_when_they_change() -> None:
    out = PeerOutbox(b"s")
    out.add(KEY, "e-0", bytes(16), 7)
    ((model, batch),) = out.take_due([KEY], BUSY, 0.0, is_beat=False)
    assert (model, batch.number, batch.sent, batch.peer_loads()) == (KEY, 1, (("e-0", bytes(16), 7, 0),), BUSY[KEY])
    out.on_written(model, batch, 0.0)
    assert out.take_due([KEY], BUSY, 0.1, is_beat=False) == []
    out.add(KEY, "e-1", b"", 8)
    ((_, batch),) = out.take_due([KEY], BUSY, 0.2, is_beat=False)
    assert (batch.number, batch.sent, batch.peer_loads()) == (2, (("e-1", b"", 8, 0),), None)
    out.on_written(KEY, batch, 0.2)
    ((_, batch),) = out.take_due([KEY], {}, 0.3, is_beat=False)
    assert (batch.number, batch.sent, batch.peer_loads()) == (3, (), {})


def test_a_busy_gateway_sends_heartbeats_often_and_an_idle_one_seldom() -> None:
    out = PeerOutbox(b"s")

    def beats(loads: dict[str, dict[str, PeerLoad]], seconds: float) -> list[tuple[float, float]]:
        heartbeats = []
        for turn in range(int(seconds * 4)):
            now = beats_at[0] = beats_at[0] + 0.25
            for model, batch in out.take_due([KEY], loads, now, is_beat=True):
                out.on_written(model, batch, now)
                heartbeats.append((now, batch.within))
                assert batch.peer_loads() == loads.get(KEY, {}), turn
        return heartbeats

    beats_at = [0.0]
    busy = beats(BUSY, 5.0)
    assert [within for _, within in busy] == [HEARTBEAT_SECONDS] * 10
    quiet = beats({}, 20.0)
    assert [within for _, within in quiet] == [IDLE_HEARTBEAT_SECONDS] * 4


def test_a_thousand_idle_models_send_fewer_heartbeats() -> None:
    models = [f"ns/m-{number}" for number in range(4_000)]
    out = PeerOutbox(b"s")
    assert {batch.within for _, batch in out.take_due(models, {}, 0.0, is_beat=True)} == {20.0}


def test_unwritten_batches_are_sent_later_and_the_newest_are_kept() -> None:
    out = PeerOutbox(b"s", max_pending=3)
    for tail in range(3):
        out.add(KEY, "e-0", b"", tail)
    batches = out.take_due([KEY], {}, 0.0, is_beat=False)
    out.add(KEY, "e-0", b"", 3)
    out.requeue(batches)
    ((_, batch),) = out.take_due([KEY], {}, 1.0, is_beat=False)
    assert (batch.number, [tail for _, _, tail, _ in batch.sent]) == (1, [1, 2, 3])
    assert out.dropped == 1
    assert len(out) == 0


def test_a_full_channel_drops_messages() -> None:
    out = PeerOutbox(b"s", max_pending=10)
    for tail in range(25):
        out.add(KEY, "e-0", b"", tail)
    assert (len(out), out.dropped) == (10, 15)
    ((_, batch),) = out.take_due([KEY], {}, 0.0, is_beat=False)
    assert [tail for _, _, tail, _ in batch.sent] == list(range(15, 25))


def test_a_large_batch_becomes_several_and_a_long_prompt_is_cut() -> None:
    out = PeerOutbox(b"s", max_entry_bytes=1_000, max_blocks=50)
    for tail in range(5):
        out.add(KEY, "e-0", bytes(8 * 4_096), tail)
    batches = [batch for _, batch in out.take_due([KEY], BUSY, 0.0, is_beat=False)]
    assert [batch.number for batch in batches] == [1, 2, 3, 4, 5]
    assert {len(hashes) for batch in batches for _, hashes, _, _ in batch.sent} == {400}
    assert [batch.peer_loads() for batch in batches] == [BUSY[KEY], None, None, None, None]


def test_removed_models_are_forgotten_and_peers_get_a_farewell() -> None:
    out = PeerOutbox(b"s")
    out.add(KEY, "e-0", b"", 1)
    out.add("ns/b", "e-1", b"", 2)
    for model, batch in out.take_due([KEY, "ns/b"], BUSY, 0.0, is_beat=True):
        out.on_written(model, batch, 0.0)
    out.add("ns/b", "e-1", b"", 3)
    out.retain([KEY])
    assert len(out) == 0
    assert out.farewell_batches() == [(KEY, PeerBatch(2, 0.0, b"s", leaves=True))]
