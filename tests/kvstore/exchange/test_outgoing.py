"""What is told to other gateways, and when: batches in bounded pieces, heartbeats that follow the work, all of it bounded."""

from dataclasses import replace

from fairlead.limits import Limits
from fairlead_kvstore.exchange.outgoing import Outgoing
from fairlead_kvstore.exchange.records import Batch, Load

KEY = "ns/a"
BUSY: dict[str, dict[str, Load]] = {KEY: {"e-0": (1, 1, 0.5, 10.0)}}


def test_what_was_sent_goes_out_once_and_loads_only_when_they_change() -> None:
    out = Outgoing(b"s", Limits())
    out.sent(KEY, "e-0", bytes(16), 7)
    ((model, batch),) = out.batches([KEY], BUSY, 0.0, beats=False)
    assert (model, batch.number, batch.sent, batch.loads) == (KEY, 1, (("e-0", bytes(16), 7, 0),), BUSY[KEY])
    out.written(model, batch, 0.0)
    assert out.batches([KEY], BUSY, 0.1, beats=False) == []
    out.sent(KEY, "e-1", b"", 8)
    ((_, batch),) = out.batches([KEY], BUSY, 0.2, beats=False)
    assert (batch.number, batch.sent, batch.loads) == (2, (("e-1", b"", 8, 0),), None)
    out.written(KEY, batch, 0.2)
    ((_, batch),) = out.batches([KEY], {}, 0.3, beats=False)
    assert (batch.number, batch.sent, batch.loads) == (3, (), {})


def test_a_gateway_with_work_is_heard_often_and_one_without_seldom_and_each_says_which() -> None:
    limits = Limits()
    out = Outgoing(b"s", limits)

    def beats(loads: dict[str, dict[str, Load]], seconds: float) -> list[tuple[float, float]]:
        found = []
        for turn in range(int(seconds * 4)):
            now = beats_at[0] = beats_at[0] + 0.25
            for model, batch in out.batches([KEY], loads, now, beats=True):
                out.written(model, batch, now)
                found.append((now, batch.within))
                assert batch.loads == loads.get(KEY, {}), turn
        return found

    beats_at = [0.0]
    busy = beats(BUSY, 5.0)
    assert [within for _, within in busy] == [limits.beat_seconds] * 10
    quiet = beats({}, 20.0)
    assert [within for _, within in quiet] == [limits.beat_quiet_seconds] * 4


def test_a_thousand_quiet_models_are_told_of_less_often() -> None:
    models = [f"ns/m-{number}" for number in range(4_000)]
    out = Outgoing(b"s", Limits())
    assert {batch.within for _, batch in out.batches(models, {}, 0.0, beats=True)} == {20.0}


def test_what_redis_did_not_take_goes_out_later_with_the_same_number_and_the_newest_stays() -> None:
    out = Outgoing(b"s", replace(Limits(), sent_waiting=3))
    for tail in range(3):
        out.sent(KEY, "e-0", b"", tail)
    batches = out.batches([KEY], {}, 0.0, beats=False)
    out.sent(KEY, "e-0", b"", 3)
    out.back(batches)
    ((_, batch),) = out.batches([KEY], {}, 1.0, beats=False)
    assert (batch.number, [tail for _, _, tail, _ in batch.sent]) == (1, [1, 2, 3])
    assert out.dropped == 1
    assert len(out) == 0


def test_too_much_waits_for_nobody() -> None:
    out = Outgoing(b"s", replace(Limits(), sent_waiting=10))
    for tail in range(25):
        out.sent(KEY, "e-0", b"", tail)
    assert (len(out), out.dropped) == (10, 15)
    ((_, batch),) = out.batches([KEY], {}, 0.0, beats=False)
    assert [tail for _, _, tail, _ in batch.sent] == list(range(15, 25))


def test_a_large_batch_becomes_several_and_a_long_prompt_is_cut() -> None:
    limits = replace(Limits(), sent_entry_bytes=1_000, sent_blocks=50)
    out = Outgoing(b"s", limits)
    for tail in range(5):
        out.sent(KEY, "e-0", bytes(8 * 4_096), tail)
    batches = [batch for _, batch in out.batches([KEY], BUSY, 0.0, beats=False)]
    assert [batch.number for batch in batches] == [1, 2, 3, 4, 5]
    assert {len(hashes) for batch in batches for _, hashes, _, _ in batch.sent} == {400}
    assert [batch.loads for batch in batches] == [BUSY[KEY], None, None, None, None]


def test_models_that_left_are_forgotten_and_the_others_are_told_of_the_end() -> None:
    out = Outgoing(b"s", Limits())
    out.sent(KEY, "e-0", b"", 1)
    out.sent("ns/b", "e-1", b"", 2)
    for model, batch in out.batches([KEY, "ns/b"], BUSY, 0.0, beats=True):
        out.written(model, batch, 0.0)
    out.sent("ns/b", "e-1", b"", 3)
    out.keep_only([KEY])
    assert len(out) == 0
    assert out.farewell() == [(KEY, Batch(2, 0.0, b"s", leaves=True))]
