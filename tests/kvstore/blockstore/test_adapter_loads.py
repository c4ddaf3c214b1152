"""Adapters that are loaded again under the same name from other sources."""

import msgspec
import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes, instance_blocks
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.errors import SnapshotError
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, StoredEvent
from fairlead_kvstore.events.types import StreamComplete, StreamResumed
from fairlead_testing.kvstore.block_store import (
    apply_batch,
    cached_depths,
    decode_events,
    instance_state,
    restore_snapshot,
    restored_table,
)
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine

MODEL = "default/tiny"
PROMPT = list(range(41))  # ten blocks of four, and one token
OTHER = list(range(500, 541))
AGAIN = "the adapter bot was loaded again"


class Loaded:
    """An engine with room for every block, and its index."""

    def __init__(self, limits: Limits | None = None, capacity: int = 1_000) -> None:
        self.engine = PrefixCacheEngine(capacity=capacity)
        self.truth = BlockStore(limits=limits or Limits())
        self.truth.attach("i", MODEL, 0.0)
        self.truth.apply_at_once("i", StreamComplete("replayed"), 0.0)

    def serve_prompt(self, tokens: list[int], adapter: str | None = "bot") -> list[Change]:
        """Serves a prompt and passes its events to the index."""
        self.engine.serve_prompt(tokens, adapter)
        frame = self.engine.publish()
        return [] if frame is None else apply_batch(self.truth, "i", decode_events(frame.payload), 1.0)

    def predicted(self, tokens: list[int] = PROMPT, adapter: str | None = "bot") -> int:
        return cached_depths(self.truth, "i", block_hashes(chain_root(MODEL, adapter), tokens, 4))[StorageTier.GPU]

    def load(self, source: str, *prompts: list[int]) -> None:
        """Loads the adapter and serves prompts with it."""
        self.engine.load("bot", source)
        for tokens in prompts:
            self.serve_prompt(tokens)

    def mark(self) -> tuple[bool, str]:
        """Returns whether the instance is complete, and why or why not."""
        state = instance_state(self.truth, "i")
        return state.complete, state.reason


def loaded_with(source: str, *prompts: list[int]) -> Loaded:
    """Returns an engine that has loaded the adapter and served prompts with it."""
    loaded = Loaded()
    loaded.load(source, *prompts)
    return loaded


def numbered_event(number: int | str | None, handle: int, name: str | None = "bot") -> EventBatch:
    """Returns a batch that stores a block of one token of an adapter's load."""
    return EventBatch(0.0, [StoredEvent([handle], None, [handle], 1, number, "GPU", name)])


def test_another_source_drops_the_old_blocks_at_its_first_event() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.serve_prompt(PROMPT, None)
    loaded.engine.load("bot", "b")
    reported = loaded.serve_prompt(OTHER)
    kinds = [changes.BlocksRemoved, changes.CompletenessChanged, changes.BlocksStored]
    assert [type(item) for item in reported] == kinds
    assert loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") == 0
    assert (loaded.predicted(OTHER), loaded.predicted(PROMPT, None)) == (10, 10)
    assert instance_state(loaded.truth, "i").blocks == 20


def test_same_source_keeps_the_old_blocks_when_a_handle_shows_it() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.load("a", [*PROMPT, *range(700, 710)])  # it continues from a block of the first load
    assert (loaded.predicted(), loaded.mark()[0]) == (10, True)
    loaded.load("a", OTHER)
    assert loaded.predicted() == 0, "a miss: nothing of the prompt was cached, so no handle shows the source"
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 10


def test_load_in_place_drops_the_old_blocks_when_one_of_them_is_stored_again() -> None:
    """vLLM keeps the number then."""
    loaded = loaded_with("a", PROMPT)
    number, _ = loaded.engine._numbers["bot"]
    loaded.engine._numbers["bot"] = (number, "b")
    loaded.serve_prompt(OTHER)
    assert loaded.mark()[0]
    loaded.serve_prompt(PROMPT[:9])
    assert loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") == 2
    assert (loaded.predicted(OTHER), loaded.mark()) == (0, (False, AGAIN))
    loaded.serve_prompt(PROMPT)
    assert loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") == 10


def test_first_source_that_returns_is_a_miss_and_the_instance_is_incomplete() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.load("b", OTHER)
    loaded.load("a", [*PROMPT, *range(700, 710)])
    assert (loaded.predicted(), loaded.engine.hit_blocks(PROMPT, "bot")) == (0, 10)
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 0
    assert loaded.mark() == (False, AGAIN)


def test_instance_is_incomplete_until_a_clear() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.load("b", OTHER)
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    assert loaded.mark() == (False, AGAIN)
    loaded.engine.clear()
    loaded.serve_prompt(OTHER)
    assert loaded.mark()[0]
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (0, 10)


def test_reload_without_blocks_of_the_name_leaves_the_instance_complete() -> None:
    loaded = loaded_with("a")
    loaded.serve_prompt(PROMPT, None)
    loaded.load("b", OTHER)
    loaded.engine.clear()
    loaded.load("a", PROMPT)
    assert (loaded.predicted(), loaded.mark()[0]) == (10, True)


def test_running_request_of_the_old_load_changes_nothing() -> None:
    loaded = loaded_with("a", PROMPT)
    old = dict(loaded.engine._numbers)
    loaded.load("b", OTHER)
    new, loaded.engine._numbers = loaded.engine._numbers, old
    assert loaded.serve_prompt([*PROMPT, *range(700, 710)]) == []
    loaded.engine._numbers = new
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (0, 10)


def test_running_request_of_an_old_load_with_a_text_changes_nothing() -> None:
    loaded = Loaded()
    for number, handle in (("x", 1), ("y", 2), ("x", 3)):
        apply_batch(loaded.truth, "i", numbered_event(number, handle), 1.0)
    hashes = [block_hashes(chain_root(MODEL, "bot"), [handle], 1)[0] for handle in (1, 2, 3)]
    assert [block_hash for block_hash, _ in loaded.truth.content("i")] == [hashes[1]]


def test_running_request_of_an_old_load_from_the_same_source_counts() -> None:
    loaded = loaded_with("a", PROMPT)
    old = dict(loaded.engine._numbers)
    loaded.load("a", [*PROMPT, *range(700, 710)])
    loaded.engine._numbers = old
    longer = [*PROMPT[:40], *range(800, 809)]
    loaded.serve_prompt(longer)
    assert (loaded.predicted(longer), loaded.mark()[0]) == (12, True)


def test_late_reader_of_several_loads_has_the_blocks_of_the_last() -> None:
    loaded = loaded_with("b", PROMPT)
    loaded.load("a", OTHER)
    third = list(range(600, 641))
    loaded.load("b", third)
    assert (loaded.predicted(), loaded.predicted(OTHER), loaded.predicted(third)) == (0, 0, 10)
    assert loaded.mark() == (False, AGAIN)


def test_engine_that_reports_ever_new_loads_fills_no_memory() -> None:
    loaded = Loaded(Limits(kv_adapters=3))
    for number in range(1_000):
        apply_batch(loaded.truth, "i", numbered_event(f"load {number}", number, f"bot-{number % 4}"), 1.0)
    apply_batch(loaded.truth, "i", numbered_event("x" * 5_000, 9_999, "bot-0"), 1.0)
    adapters = loaded.truth.take_snapshot("i", 0.0)[0].adapters
    assert list(adapters.loads.values()) == ["load 996", "load 997", "load 998"]
    assert len(adapters.earlier) == 128
    assert instance_state(loaded.truth, "i").blocks == 3


def test_engine_that_reloads_an_adapter_with_each_event_loses_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_blocks, "MAX_SCANNED_ROWS", 100)
    loaded = Loaded()
    loaded.serve_prompt(PROMPT, None)
    for number in range(8):
        loaded.engine.load("bot", f"source-{number}")
        loaded.serve_prompt([7 * number] * 5)
    assert instance_state(loaded.truth, "i").blocks == 11
    for number in range(8):
        loaded.engine.load("bot", f"source-{number + 8}")
        loaded.serve_prompt([7 * number] * 5)
    assert instance_state(loaded.truth, "i").blocks < 11
    assert not instance_state(loaded.truth, "i").complete


def test_engine_that_clears_a_tier_with_each_event_loses_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_blocks, "MAX_SCANNED_ROWS", 100)
    loaded = Loaded()
    loaded.serve_prompt(PROMPT, None)
    for now in (1.0, 100.0):
        apply_batch(loaded.truth, "i", EventBatch(0.0, [ClearedEvent("disk")] * 10), now)
        assert instance_state(loaded.truth, "i").blocks == 10
    apply_batch(loaded.truth, "i", EventBatch(0.0, [ClearedEvent("disk")] * 3), 100.0)
    assert instance_state(loaded.truth, "i").blocks == 0


@pytest.mark.parametrize(("number", "name"), [(7, None), (None, "bot")])
def test_adapters_without_names_or_numbers_are_not_credited(number: int | None, name: str | None) -> None:
    loaded = Loaded()
    apply_batch(loaded.truth, "i", numbered_event(number, 1, name), 1.0)
    assert instance_state(loaded.truth, "i").blocks == 0


def test_names_are_bounded() -> None:
    loaded = Loaded(Limits(kv_adapters=2))
    for name in ("bot", "second", "third"):
        loaded.engine.load(name, "a")
        loaded.serve_prompt(PROMPT, name)
    assert [loaded.predicted(PROMPT, name) for name in ("bot", "second", "third")] == [10, 10, 0]
    apply_batch(loaded.truth, "i", numbered_event(9, 1, "x\x1b[2J"), 1.0)
    assert instance_state(loaded.truth, "i").blocks == 20


def test_loads_are_part_of_the_snapshot() -> None:
    loaded = loaded_with("a", PROMPT)
    old = dict(loaded.engine._numbers)
    loaded.load("b", OTHER)
    snapshot, rows = loaded.truth.take_snapshot("i", 0.0)
    loaded.truth = BlockStore()
    loaded.truth.attach("i", MODEL, 2.0)
    restore_snapshot(loaded.truth, "i", snapshot, rows, 0.0, 2.0)
    loaded.truth.apply_at_once("i", StreamResumed(), 1.0)
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    assert loaded.mark() == (False, AGAIN)
    loaded.engine._numbers = old
    assert loaded.serve_prompt([*PROMPT, *range(700, 710)]) == []
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (0, 10)


@pytest.mark.parametrize(
    ("names", "tables", "problem"),
    [([], 1, ""), (["bot"], 1, "an adapter that has no name"), ([], 2, "2 tables")],
)
def test_snapshot_of_an_earlier_release_is_read_if_it_has_no_adapters(
    names: list[str], tables: int, problem: str
) -> None:
    loaded = loaded_with("a", *([PROMPT] if names else []))
    loaded.serve_prompt(OTHER, None)
    snapshot, rows = loaded.truth.take_snapshot("i", 0.0)
    fields = msgspec.to_builtins(snapshot)
    fields["adapters"] = {"names": names, "contents": [], "current": {}, "newest": {}, "places": [], "forgot": False}
    fields["tables"] = [{"rows": table.rows, "content": 0, "name": ""} for table in snapshot.tables] * tables
    del fields["is_reloaded"]
    earlier = msgspec.convert({**fields, "doubt": ""}, InstanceSnapshot)
    if problem:
        with pytest.raises(SnapshotError, match=problem):
            restored_table(earlier, rows, 0.0)
    else:
        assert len(restored_table(earlier, rows, 0.0)) == 10
