"""Adapters that are loaded again under the same name from other sources."""

import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes, instance_blocks
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.decoder import decode_events
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch
from fairlead_kvstore.events.types import StreamComplete, StreamResumed
from fairlead_testing.kvstore.block_store import apply_batch, cached_depths, report_adapter_source, restore_snapshot
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine

MODEL = "default/tiny"
PROMPT = list(range(41))  # ten blocks of four, and one token
OTHER = list(range(500, 541))
THIRD = list(range(600, 641))


class Loaded:
    """An engine with room for every block, and its index."""

    def __init__(self, limits: Limits | None = None, capacity: int = 1_000) -> None:
        self.engine = PrefixCacheEngine(capacity=capacity)
        self.truth = BlockStore(limits=limits or Limits())
        self.truth.attach("i", MODEL, 0.0)
        self.more = 50_000

    def serve_prompt(self, tokens: list[int], adapter: str | None = "bot") -> list[Change]:
        """Serves a prompt and passes its events to the index."""
        self.engine.serve_prompt(tokens, adapter)
        frame = self.engine.publish()
        return [] if frame is None else apply_batch(self.truth, "i", decode_events(frame.payload), 1.0)

    def predicted(self, tokens: list[int] = PROMPT, adapter: str | None = "bot") -> int:
        return cached_depths(self.truth, "i", block_hashes(chain_root(MODEL, adapter), tokens, 4))[StorageTier.GPU]

    def load(self, source: str, *prompts: list[int], reported: bool = False) -> None:
        """Loads the adapter and serves prompts with it. reported: the source is reported then."""
        self.engine.load("bot", source)
        for tokens in prompts:
            self.serve_prompt(tokens)
        if reported:
            self.report_source(source)

    def read_source(self, source: str) -> list[Change]:
        """Reports the source of the adapter without a further event."""
        return report_adapter_source(self.truth, "i", "bot", source, 1.0)

    def report_source(self, source: str) -> list[Change]:
        """Reports the source of the adapter, which counts with the next event."""
        changes_now = self.read_source(source)
        self.more += 10
        return [*changes_now, *self.serve_prompt(list(range(self.more, self.more + 4)))]


def loaded_with(source: str, *prompts: list[int], reported: bool = False, capacity: int = 1_000) -> Loaded:
    """Returns an engine that has loaded the adapter and served prompts with it."""
    loaded = Loaded(capacity=capacity)
    loaded.load(source, *prompts, reported=reported)
    return loaded


def test_another_source_parks_the_old_blocks_at_its_first_event() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.engine.load("bot", "b")
    reported = loaded.serve_prompt(OTHER)
    assert [type(item) for item in reported] == [changes.BlocksRemoved, changes.BlocksStored]
    assert loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") == 0
    assert loaded.truth.state("i").blocks == 20


def test_reported_source_parks_blocks_without_an_event() -> None:
    loaded = loaded_with("a", PROMPT)
    assert loaded.truth.unsourced_adapters("i") == ["bot"]
    loaded.report_source("a")
    assert loaded.truth.unsourced_adapters("i") == []
    loaded.engine.load("bot", "b")
    assert [type(item) for item in loaded.read_source("b")] == [changes.BlocksRemoved]
    assert loaded.predicted() == 0
    loaded.engine.load("bot", "a")
    assert loaded.read_source("a") != []
    assert loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") == 10


def test_engine_that_reports_ever_new_sources_fills_no_memory() -> None:
    loaded = loaded_with("a", PROMPT)
    for number in range(100):
        loaded.read_source(f"source-{number}")
    snapshot, _ = loaded.truth.take_snapshot("i", 0.0)
    assert len(snapshot.adapters.unconfirmed) + len(snapshot.adapters.sources) <= 2
    loaded.read_source("x" * 5_000)
    assert loaded.truth.take_snapshot("i", 0.0)[0].adapters == snapshot.adapters


def test_engine_that_reloads_an_adapter_with_each_event_loses_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_blocks, "MAX_SCANNED_ROWS", 100)
    loaded = Loaded()
    loaded.serve_prompt(PROMPT, None)
    for number in range(8):
        loaded.engine.load("bot", f"source-{number}")
        loaded.serve_prompt([7 * number] * 5)
    assert loaded.truth.state("i").blocks == 18
    for number in range(8):
        loaded.engine.load("bot", f"source-{number + 8}")
        loaded.serve_prompt([7 * number] * 5)
    assert loaded.truth.state("i").blocks < 18
    assert not loaded.truth.state("i").complete


def test_engine_that_clears_a_tier_with_each_event_loses_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_blocks, "MAX_SCANNED_ROWS", 100)
    loaded = Loaded()
    loaded.serve_prompt(PROMPT, None)
    for now in (1.0, 100.0):
        apply_batch(loaded.truth, "i", EventBatch(0.0, [ClearedEvent("disk")] * 10), now)
        assert loaded.truth.state("i").blocks == 10
    apply_batch(loaded.truth, "i", EventBatch(0.0, [ClearedEvent("disk")] * 3), 100.0)
    assert loaded.truth.state("i").blocks == 0


def test_source_read_after_the_next_load_is_not_taken_for_the_earlier_one() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.engine.load("bot", "b")
    loaded.read_source("b")  # the last number that was seen is the first load's
    loaded.serve_prompt(OTHER)
    loaded.report_source("b")
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (0, 10)


def test_same_source_restores_old_blocks_when_a_handle_shows_it() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.load("b", OTHER)
    loaded.engine.load("bot", "a")
    assert loaded.engine.hit_blocks(PROMPT, "bot") == 10
    loaded.serve_prompt([*PROMPT, *range(700, 710)])  # goes on from a block of the first load
    assert loaded.predicted() == 10
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 0


def test_same_source_restores_old_blocks_after_a_cold_prompt() -> None:
    loaded = loaded_with("a", PROMPT)
    loaded.load("a", OTHER)
    assert loaded.predicted() == 0  # an unavoidable miss
    loaded.serve_prompt([*PROMPT, *range(700, 710)])
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (10, 10)


def test_same_source_restores_old_blocks_when_reported() -> None:
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.load("a", OTHER)
    assert loaded.truth.unsourced_adapters("i") == ["bot"]
    assert loaded.read_source("a") != []
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (10, 0), "two loads may have come since a was told first"
    assert not loaded.truth.state("i").complete
    loaded.report_source("a")
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (10, 10)


def test_source_of_the_earlier_load_is_not_taken_for_the_next() -> None:
    """Two reloads between two readings of the source; only the first of them has a block."""
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.load("b", OTHER)
    loaded.engine.load("bot", "a")
    loaded.read_source("a")
    assert (loaded.predicted(), loaded.engine.hit_blocks(PROMPT, "bot")) == (10, 10)
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 0


def test_source_is_known_if_read_before_and_after_the_first_block() -> None:
    """As on a real loaded: two prompts after the load, a reading between them, and no event before
    the next load.
    """
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.engine.load("bot", "b")
    loaded.read_source("b")
    loaded.serve_prompt(OTHER)
    loaded.read_source("b")
    loaded.engine.load("bot", "a")
    loaded.read_source("a")
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (10, 0)
    loaded.engine.load("bot", "b")
    loaded.read_source("b")
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 10


def test_source_read_after_the_first_block_needs_one_more_event() -> None:
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.load("b", OTHER)
    loaded.read_source("b")
    loaded.engine.load("bot", "a")
    loaded.read_source("a")
    loaded.engine.load("bot", "b")
    loaded.read_source("b")
    assert loaded.predicted(OTHER) == 0  # a miss: it may be from a third source
    assert loaded.predicted() == 0


def test_reported_source_counts_before_any_block_of_the_new_load() -> None:
    """As on a real loaded: the last but loaded load has a fully cached prompt, which stores
    nothing.
    """
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.engine.load("bot", "b")
    loaded.report_source("b")
    loaded.serve_prompt(OTHER)
    loaded.report_source("b")
    loaded.engine.load("bot", "a")
    loaded.read_source("a")
    loaded.serve_prompt(THIRD)
    loaded.read_source("a")
    assert loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") == 10
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 0
    loaded.engine.load("bot", "b")
    loaded.read_source("b")
    assert loaded.predicted(THIRD) == loaded.engine.hit_blocks(THIRD, "bot") == 0
    assert loaded.predicted(OTHER) == loaded.engine.hit_blocks(OTHER, "bot") == 10
    loaded.engine.load("bot", "a")
    loaded.report_source("a")
    loaded.report_source("a")
    assert loaded.predicted() == 10
    assert loaded.predicted(OTHER) == 0
    assert loaded.predicted(THIRD) <= loaded.engine.hit_blocks(THIRD, "bot")


def test_blocks_of_a_new_number_wait_until_they_confirm_the_reported_source() -> None:
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.load("a", OTHER)
    loaded.read_source("a")
    loaded.serve_prompt([*PROMPT, *range(700, 710)])  # the first load's blocks: it is the same content
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (10, 10)


def test_blocks_evicted_while_parked_are_not_restored() -> None:
    loaded = loaded_with("a", PROMPT, reported=True, capacity=24)
    loaded.load("b", OTHER, reported=True)
    loaded.serve_prompt(list(range(900, 928)), None)  # pushes out the end of the first prompt
    loaded.engine.load("bot", "a")
    loaded.report_source("a")
    loaded.report_source("a")
    assert 0 < loaded.predicted() == loaded.engine.hit_blocks(PROMPT, "bot") < 10


def test_running_request_of_the_old_load_changes_nothing() -> None:
    loaded = loaded_with("a", PROMPT)
    old = dict(loaded.engine._numbers)
    loaded.load("b", OTHER)
    new, loaded.engine._numbers = loaded.engine._numbers, old
    assert loaded.serve_prompt([*PROMPT, *range(700, 710)]) == []
    loaded.engine._numbers = new
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (0, 10)


def test_adapters_without_names_are_not_credited() -> None:
    loaded = Loaded()
    from fairlead_kvstore.events.decoder import EventBatch
    from fairlead_kvstore.events.payloads import StoredEvent

    apply_batch(loaded.truth, "i", EventBatch(0.0, [StoredEvent([1], None, [1, 2, 3, 4], 4, 7, "GPU")]), 1.0)
    assert loaded.truth.state("i").blocks == 1
    assert loaded.predicted([1, 2, 3, 4], None) == loaded.predicted([1, 2, 3, 4], "bot") == 0


def test_names_and_parked_contents_are_bounded() -> None:
    loaded = Loaded(Limits(kv_adapters=2, kv_adapter_versions=2))
    for name in ("bot", "second", "third"):
        loaded.engine.load(name, "a")
        loaded.serve_prompt(PROMPT, name)
    assert [loaded.predicted(PROMPT, name) for name in ("bot", "second", "third")] == [10, 10, 0]
    for number in range(40):
        loaded.engine.load("bot", f"place {number}")
        loaded.serve_prompt([5_000 + number * 10 + index for index in range(8)])
    assert loaded.truth.state("i").blocks <= 10 + 2 + 2 * 10


def test_clear_drops_blocks_and_keeps_loaded_adapters() -> None:
    loaded = loaded_with("a", PROMPT, reported=True)
    loaded.engine.clear()
    loaded.serve_prompt(OTHER)
    assert loaded.truth.unsourced_adapters("i") == []
    assert (loaded.predicted(), loaded.predicted(OTHER)) == (0, 10)


def test_late_reader_reports_unknown_source_of_an_earlier_load() -> None:
    """Loaded from b, from a and from b again; the first two sources cannot be learned any more."""
    loaded = Loaded()
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    loaded.load("b", PROMPT)
    assert loaded.truth.state("i").complete
    loaded.load("a", OTHER)
    loaded.load("b", THIRD, reported=True)
    assert (loaded.predicted(), loaded.engine.hit_blocks(PROMPT, "bot")) == (0, 10)
    state = loaded.truth.state("i")
    assert (state.complete, state.reason) == (False, "the source of an earlier load of bot is unknown")
    marked = loaded.serve_prompt([*PROMPT[:40], *range(900, 909)])  # it goes on from the first load's last block
    assert loaded.predicted() == 10
    assert not loaded.truth.state("i").complete, "the load from elsewhere may be of the same place, too"
    assert not any(isinstance(change, changes.CompletenessChanged) for change in marked)


def test_doubt_ends_when_the_parked_blocks_are_gone() -> None:
    loaded = Loaded(capacity=20)
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    loaded.load("b", PROMPT)
    loaded.load("a", OTHER, reported=True)
    assert not loaded.truth.state("i").complete
    loaded.serve_prompt(THIRD)
    assert loaded.truth.state("i").complete
    assert loaded.predicted(THIRD) == loaded.engine.hit_blocks(THIRD, "bot") == 10


def test_no_doubt_remains_when_all_sources_are_known() -> None:
    loaded = Loaded()
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    for place, tokens in (("a", PROMPT), ("b", OTHER), ("a", THIRD)):
        loaded.engine.load("bot", place)
        loaded.serve_prompt(tokens)
        loaded.report_source(place)
        assert loaded.truth.state("i").complete
    loaded.engine.load("bot", "c")
    assert [type(item) for item in loaded.serve_prompt([1, 2, 3, 4])][-1] is changes.CompletenessChanged
    assert not loaded.truth.state("i").complete, "until it is told, it may be of any of those places"
    loaded.report_source("c")
    assert loaded.truth.state("i").complete


def test_dropped_loads_are_a_doubt_until_a_clear() -> None:
    loaded = Loaded(Limits(kv_adapter_versions=2))
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    for number in range(4):
        loaded.engine.load("bot", f"place {number}")
        loaded.serve_prompt([5_000 + number * 10 + index for index in range(8)])
        loaded.report_source(f"place {number}")
    assert loaded.truth.state("i").reason == "adapters were loaded more often than earlier loads are recorded"
    loaded.engine.clear()
    loaded.serve_prompt(OTHER)
    assert loaded.truth.state("i").complete


def test_doubt_is_part_of_the_snapshot() -> None:
    loaded = Loaded()
    loaded.truth.apply_at_once("i", StreamComplete("replayed"), 1.0)
    loaded.load("a", PROMPT)
    loaded.load("b", OTHER)
    kept, rows = loaded.truth.take_snapshot("i", 0.0)
    assert kept.completeness()[0] is False
    another = BlockStore()
    another.attach("i", MODEL, 2.0)
    restore_snapshot(another, "i", kept, rows, 0.0, 2.0)
    another.apply_at_once("i", StreamResumed("the same process continues"), 1.0)
    assert not another.state("i").complete
    assert another.state("i").reason == loaded.truth.state("i").reason
