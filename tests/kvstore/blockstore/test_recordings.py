"""The block store on recorded events of real engines, and on their replies."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.stream_sequencer import EventSequencer
from fairlead_kvstore.events.types import AcceptBatch, EventFrame, ProcessRestarted, StreamComplete
from fairlead_kvstore.reader.event_application import apply_outcomes
from fairlead_testing.kvstore.block_store import (
    apply_batch,
    block_extras,
    cached_depths,
    cached_tokens,
    decode_events,
    instance_state,
)

RECORDINGS = Path(__file__).parents[2] / "recordings" / "vllm" / "kv-events"
MODEL = "default/tiny"
SIZE = 32


def payloads(name: str) -> list[bytes]:
    whole: list[msgspec.Raw] = msgspec.msgpack.decode(
        (RECORDINGS / f"{name}.msgpack").read_bytes(), type=list[msgspec.Raw]
    )
    return [bytes(payload) for payload in whole]


def batches(name: str) -> list[EventBatch]:
    return [decode_events(payload) for payload in payloads(name)]


class Reading:
    """A block store that has read a recording up to some batch."""

    def __init__(self, name: str) -> None:
        self.truth = BlockStore()
        self.truth.attach("i", MODEL, 0.0)
        self.batches = batches(name)
        self.read = 0

    def upto(self, count: int) -> list[changes.Change]:
        reported: list[changes.Change] = []
        for batch in self.batches[self.read : count]:
            reported += apply_batch(self.truth, "i", batch, batch.wall - self.batches[0].wall)
        self.read = count
        return reported

    def predicted(self, tokens: list[int], adapter: str | None = None, **more: Any) -> int:
        chain = block_hashes(chain_root(MODEL, adapter), tokens, SIZE, block_extras(len(tokens) // SIZE, SIZE, **more))
        return cached_tokens(cached_depths(self.truth, "i", chain)[StorageTier.GPU], len(tokens), SIZE)


@pytest.mark.parametrize(("name", "count", "stored", "removed"), [
    ("a-scenarios", 26, 147, 0),
    ("b-eviction-restart", 122, 275, 236),
    ("m-multimodal", 6, 18, 0),
])  # fmt: skip
def test_every_recorded_payload_is_decoded_completely(name: str, count: int, stored: int, removed: int) -> None:
    decoded = batches(name)
    assert len(decoded) == count
    assert sum(batch.unknown + batch.refused for batch in decoded) == 0
    events = [event for batch in decoded for event in batch.events]
    assert sum(len(event.block_hashes) for event in events if isinstance(event, StoredEvent)) == stored
    assert sum(len(event.block_hashes) for event in events if isinstance(event, RemovedEvent)) == removed


@pytest.mark.parametrize(("name", "chains"), [("a-scenarios", 147), ("b-eviction-restart", 260), ("m-multimodal", 18)])
def test_engine_hashes_and_block_hashes_are_equal_together(name: str, chains: int) -> None:
    """Every hash that can be recomputed from tokens names one content.

    In the recording of evictions, 19 blocks follow one that was stored before the subscriber
    joined.
    """
    own_of: dict[object, int] = {}
    value_of: dict[object, object] = {}
    checked = 0
    for batch in batches(name):
        for event in batch.events:
            if not isinstance(event, StoredEvent):
                continue
            start = own_of.get((event.lora_id, event.parent_block_hash))
            if event.parent_block_hash is None:
                start = chain_root(MODEL, event.lora_name)
            if start is None:
                continue
            extras = {
                number: [key for key in keys or [] if key != event.lora_name]
                for number, keys in enumerate(event.extra_keys or [])
            }
            chain = block_hashes(start, event.token_ids, event.block_size, extras)
            for value, own in zip(event.block_hashes, chain, strict=True):
                assert own_of.setdefault((event.lora_id, value), own) == own
                assert value_of.setdefault((event.lora_id, own), value) == value
                checked += 1
    assert checked == chains


# Prompts of the scenarios and the ``cached_tokens`` of the engine's answer, after so many batches.
PLAIN = list(range(100, 200))
ANSWERS = [
    ("cold", 0, PLAIN, None, None, 0),
    ("the same again", 1, PLAIN, None, None, 96),
    ("longer", 1, list(range(100, 296)), None, None, 96),
    ("a whole number of blocks, all cached", 2, list(range(100, 196)), None, None, 64),
    ("with a salt", 5, PLAIN, None, "tenant-7", 0),
    ("with a salt, longer", 6, list(range(100, 261)), None, "tenant-7", 96),
    ("the salt keeps its blocks from others", 6, list(range(100, 261)), None, None, 160),
    ("with an adapter", 7, PLAIN, "L1", None, 0),
    ("adapter and salt", 8, PLAIN, "L1", "tenant-8", 0),
    ("the adapter's blocks, before it is loaded from elsewhere", 9, PLAIN, "L1", None, 96),
    ("reported in full", 10, PLAIN, None, None, 96),
    ("after the reset", 24, PLAIN, None, None, 0),
    ("after sleep", 25, PLAIN, None, None, 96),
    ("after sleep, the prompt of before", 25, list(range(3000, 3033)), None, None, 0),
    ("after pause with clear", 26, PLAIN, None, None, 96),
]


@pytest.mark.parametrize(
    ("what", "count", "tokens", "adapter", "salt", "cached"), ANSWERS, ids=[row[0] for row in ANSWERS]
)
def test_index_agrees_with_the_engines_responses(
    what: str, count: int, tokens: list[int], adapter: str | None, salt: str | None, cached: int
) -> None:
    reading = Reading("a-scenarios")
    reading.upto(count)
    assert reading.predicted(tokens, adapter, salt=salt) == cached, what


def test_fully_cached_prompt_stores_its_last_block_without_a_change() -> None:
    reading = Reading("a-scenarios")
    reading.upto(2)
    assert reading.upto(3) == []


def test_adapter_from_another_path_drops_the_old_blocks() -> None:
    reading = Reading("a-scenarios")
    before = reading.upto(9)
    reported = reading.upto(10)
    kinds = [
        (type(change), len(change.hashes))
        for change in reported
        if isinstance(change, changes.BlocksStored | changes.BlocksRemoved)
    ]
    assert kinds == [(changes.BlocksRemoved, 6), (changes.BlocksStored, 3)]
    salted = block_hashes(chain_root(MODEL, "L1"), PLAIN, SIZE, block_extras(3, SIZE, salt="tenant-8"))
    assert reading.predicted(PLAIN, "L1") == 96
    assert cached_depths(reading.truth, "i", salted)[StorageTier.GPU] == 0
    assert before


def test_blocks_of_a_running_prefill_appear_chunk_by_chunk() -> None:
    reading = Reading("a-scenarios")
    reading.upto(13)
    assert reading.predicted(list(range(200, 3200))) == 2048
    reading.upto(14)
    assert reading.predicted(list(range(200, 3200))) == 2976


def test_clear_makes_an_instance_complete_for_late_readers() -> None:
    reading = Reading("a-scenarios")
    reading.upto(23)
    assert not instance_state(reading.truth, "i").complete
    reading.upto(24)
    assert instance_state(reading.truth, "i").complete
    assert instance_state(reading.truth, "i").blocks == 1


def test_stored_minus_removed_blocks_are_cached_under_eviction_and_preemption() -> None:
    """40 blocks, 39 of them with content; the engine's own count at the time was 39."""
    reading = Reading("b-eviction-restart")
    reading.upto(117)
    blocks, naive = {}, [event for batch in reading.batches[:117] for event in batch.events]
    for event in naive:
        if not isinstance(event, ClearedEvent):
            for value in event.block_hashes:
                blocks[value] = blocks.get(value, 0) + (1 if isinstance(event, StoredEvent) else -1)
    state = instance_state(reading.truth, "i")
    assert sum(count for count in blocks.values() if count > 0) == 39
    assert [count for count in blocks.values() if count < 0] == [-1] * 4  # stored before the subscriber came
    assert state.blocks + state.orphans - _gone_orphans(reading) == 39


def _gone_orphans(reading: Reading) -> int:
    """Returns orphans that were removed while they waited: kept until they are linked or too
    old.
    """
    return reading.truth._instances["i"]._orphans.noted


def test_orphans_are_linked_when_their_parent_is_reported() -> None:
    reading = Reading("b-eviction-restart")
    reading.upto(117)
    assert instance_state(reading.truth, "i").orphans == 15
    reading.upto(118)  # the whole prompt is stored again, from its start
    state = instance_state(reading.truth, "i")
    assert (state.orphans, state.counts["linked"]) == (0, 15)


def test_eviction_takes_the_end_of_the_oldest_prompt() -> None:
    reading = Reading("b-eviction-restart")
    gone = [len(change.hashes) for change in reading.upto(4) if isinstance(change, changes.BlocksRemoved)]
    assert gone == []  # the first prompt is an orphan here: its start was not reported
    assert reading.predicted(list(range(1100, 1516))) == 384
    assert reading.predicted(list(range(2100, 2516))) == 384


def test_copies_of_a_last_block_are_counted() -> None:
    """The same 128 tokens three times: the last block has three copies, and two removals leave
    one.
    """
    reading = Reading("b-eviction-restart")
    reading.upto(6)
    assert reading.predicted(list(range(6000, 6129))) == 128
    reading.upto(8)
    assert reading.predicted(list(range(6000, 6129))) == 128
    reading.upto(13)
    assert reading.predicted(list(range(6000, 6129))) == 0


def test_restart_on_the_same_port_ends_the_epoch() -> None:
    """The recorded engine numbered its new process from 0; no block of the old one is credited."""
    truth, stream = BlockStore(), EventSequencer(replayable=False)
    truth.attach("i", MODEL, 0.0)
    recorded = payloads("b-eviction-restart")
    numbers = [*range(2, 122), 0, 1]
    for number, payload in zip(numbers, recorded, strict=True):
        outcomes = stream.on_live_frame(EventFrame(number, payload))
        apply_outcomes(truth, "i", outcomes, float(number))
        if number == 121:
            assert instance_state(truth, "i").blocks == 39
        if number == 0:
            assert [type(outcome) for outcome in outcomes] == [ProcessRestarted, StreamComplete, AcceptBatch]
    state = instance_state(truth, "i")
    assert (state.epoch, state.blocks, state.complete) == (2, 4, True)
    chain = block_hashes(chain_root(MODEL), list(range(100, 250)), SIZE)
    assert cached_depths(truth, "i", chain)[StorageTier.GPU] == 4


@pytest.mark.parametrize(("count", "images", "cached"), [
    (1, [("87009caddd4f46887236b01a254949e30fb2b040d4810d4d107870000fc2cd36", 3, 64)], 96),
    (1, [("cfb8b89458b60d900d4fd54be208d73c8be643a19cae92888a5ea83c7de4d4e6", 3, 64)], 0),
    (2, [("cfb8b89458b60d900d4fd54be208d73c8be643a19cae92888a5ea83c7de4d4e6", 3, 64)], 96),
    (4, [("cat-1", 3, 64)], 0),
    (5, [("cat-1", 3, 64)], 96),
])  # fmt: skip
def test_image_is_part_of_the_block_hash(count: int, images: list[tuple[str, int, int]], cached: int) -> None:
    reading = Reading("m-multimodal")
    first = next(event for event in reading.batches[0].events if isinstance(event, StoredEvent))
    reading.upto(count)
    assert reading.predicted([*first.token_ids, 7], images=images) == cached


def test_salted_image_has_blocks_of_its_own() -> None:
    reading = Reading("m-multimodal")
    first = next(event for event in reading.batches[5].events if isinstance(event, StoredEvent))
    salt = first.extra_keys[0][-1] if first.extra_keys and first.extra_keys[0] else None
    images = [("87009caddd4f46887236b01a254949e30fb2b040d4810d4d107870000fc2cd36", 3, 64)]
    reading.upto(6)
    assert reading.predicted([*first.token_ids, 7], images=images, salt=salt) == 96
    assert reading.predicted([*first.token_ids, 7], images=images, salt="other") == 0


NAMES = sorted(path.stem for path in RECORDINGS.glob("*.recording"))


class Playing:
    """A block store that reads a recording. Times are the engine's."""

    def __init__(self, name: str) -> None:
        self.whole: dict[str, Any] = msgspec.msgpack.decode((RECORDINGS / f"{name}.recording").read_bytes())
        self.truth = BlockStore()
        self.streams = []
        self.read = [0] * len(self.whole["ranks"])
        self.now = 0.0
        for rank, _ in enumerate(self.whole["ranks"]):
            self.truth.attach(str(rank), MODEL, 0.0)
            self.streams.append(EventSequencer(replayable=False))

    def upto(self, rank: int, count: int) -> None:
        """Reads the batches up to a number."""
        numbers, payloads = self.whole["ranks"][rank]
        for number, payload in zip(numbers[self.read[rank] : count], payloads[self.read[rank] : count], strict=True):
            self.now = msgspec.msgpack.decode(payload)[0]
            apply_outcomes(
                self.truth, str(rank), self.streams[rank].on_live_frame(EventFrame(number, payload)), self.now
            )
        self.read[rank] = count

    def predicted(self, rank: int, tokens: list[int], adapter: str | None, salt: str | None) -> int:
        chain = block_hashes(
            chain_root(MODEL, adapter), tokens, SIZE, block_extras(len(tokens) // SIZE, SIZE, salt=salt)
        )
        return cached_tokens(cached_depths(self.truth, str(rank), chain)[StorageTier.GPU], len(tokens), SIZE)


@pytest.mark.parametrize("name", NAMES)
def test_every_response_of_an_idle_engine_was_predicted(name: str) -> None:
    playing = Playing(name)
    asked = 0
    for what, rank, count, *more in playing.whole["happened"]:
        playing.upto(rank, count)
        if what == "asked":
            tokens, adapter, salt, cached = more
            assert playing.predicted(rank, tokens, adapter, salt) == cached, (
                asked,
                len(tokens),
                adapter,
                salt,
            )
            asked += 1
        elif what == "cleared":
            playing.truth.apply_at_once(str(rank), EngineSleep(is_asleep=True), playing.now)
    assert asked >= 10


def test_recordings_cover_the_required_cases() -> None:
    assert NAMES != []
