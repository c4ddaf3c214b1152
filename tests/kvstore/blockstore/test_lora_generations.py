"""Adapters that are loaded again under the same name from other sources."""

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.decoder import decode_events
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

    def ask(self, tokens: list[int], adapter: str | None = "bot") -> list[Change]:
        """Serves a prompt and passes its events to the index."""
        self.engine.serve_prompt(tokens, adapter)
        frame = self.engine.publish()
        return [] if frame is None else self.truth.apply("i", decode_events(frame.payload), 1.0)

    def predicted(self, tokens: list[int] = PROMPT, adapter: str | None = "bot") -> int:
        return self.truth.cached_depths("i", block_hashes(chain_root(MODEL, adapter), tokens, 4))[StorageTier.GPU]

    def told(self, place: str) -> list[Change]:
        """Reports the source of the adapter, which counts with the next event."""
        changes_now = self.truth.on_adapter_source("i", "bot", place, 1.0)
        self.more += 10
        return [*changes_now, *self.ask(list(range(self.more, self.more + 4)))]


def test_another_source_parks_the_old_blocks_at_its_first_event() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.engine.load("bot", "b")
    told = one.ask(OTHER)
    assert [type(item) for item in told] == [changes.BlocksRemoved, changes.BlocksStored]
    assert one.predicted() == one.engine.hit_blocks(PROMPT, "bot") == 0
    assert one.truth.state("i").blocks == 20


def test_reported_source_parks_blocks_without_an_event() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    assert one.truth.unsourced_adapters("i") == ["bot"]
    one.told("a")
    assert one.truth.unsourced_adapters("i") == []
    one.engine.load("bot", "b")
    assert [type(item) for item in one.truth.on_adapter_source("i", "bot", "b", 1.0)] == [changes.BlocksRemoved]
    assert one.predicted() == 0
    one.engine.load("bot", "a")
    assert one.truth.on_adapter_source("i", "bot", "a", 1.0) != []
    assert one.predicted() == one.engine.hit_blocks(PROMPT, "bot") == 10


def test_source_read_after_the_next_load_is_not_taken_for_the_earlier_one() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.engine.load("bot", "b")
    one.truth.on_adapter_source("i", "bot", "b", 1.0)  # the last number that was seen is the first load's
    one.ask(OTHER)
    one.told("b")
    assert (one.predicted(), one.predicted(OTHER)) == (0, 10)


def test_same_source_restores_old_blocks_when_a_handle_shows_it() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.engine.load("bot", "b")
    one.ask(OTHER)
    one.engine.load("bot", "a")
    assert one.engine.hit_blocks(PROMPT, "bot") == 10
    one.ask([*PROMPT, *range(700, 710)])  # goes on from a block of the first load
    assert one.predicted() == 10
    assert one.predicted(OTHER) == one.engine.hit_blocks(OTHER, "bot") == 0


def test_same_source_restores_old_blocks_after_a_cold_prompt() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.engine.load("bot", "a")
    one.ask(OTHER)
    assert one.predicted() == 0  # a miss that nobody could know of
    one.ask([*PROMPT, *range(700, 710)])
    assert (one.predicted(), one.predicted(OTHER)) == (10, 10)


def test_same_source_restores_old_blocks_when_reported() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "a")
    one.ask(OTHER)
    assert one.truth.unsourced_adapters("i") == ["bot"]
    assert one.truth.on_adapter_source("i", "bot", "a", 1.0) != []
    assert (one.predicted(), one.predicted(OTHER)) == (10, 0), "two loads may have come since a was told first"
    assert not one.truth.state("i").complete
    one.told("a")
    assert (one.predicted(), one.predicted(OTHER)) == (10, 10)


def test_source_of_the_earlier_load_is_not_taken_for_the_next() -> None:
    """Two reloads between two readings of the source; only the first of them has a block."""
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "b")
    one.ask(OTHER)
    one.engine.load("bot", "a")
    one.truth.on_adapter_source("i", "bot", "a", 1.0)
    assert (one.predicted(), one.engine.hit_blocks(PROMPT, "bot")) == (10, 10)
    assert one.predicted(OTHER) == one.engine.hit_blocks(OTHER, "bot") == 0


def test_source_is_known_if_read_before_and_after_the_first_block() -> None:
    """As on a real engine: two prompts after the load, a reading between them, and no event before
    the next load.
    """
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "b")
    one.truth.on_adapter_source("i", "bot", "b", 1.0)
    one.ask(OTHER)
    one.truth.on_adapter_source("i", "bot", "b", 1.0)
    one.engine.load("bot", "a")
    one.truth.on_adapter_source("i", "bot", "a", 1.0)
    assert (one.predicted(), one.predicted(OTHER)) == (10, 0)
    one.engine.load("bot", "b")
    one.truth.on_adapter_source("i", "bot", "b", 1.0)
    assert one.predicted(OTHER) == one.engine.hit_blocks(OTHER, "bot") == 10


def test_source_read_after_the_first_block_needs_one_more_event() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "b")
    one.ask(OTHER)
    one.truth.on_adapter_source("i", "bot", "b", 1.0)
    one.engine.load("bot", "a")
    one.truth.on_adapter_source("i", "bot", "a", 1.0)
    one.engine.load("bot", "b")
    one.truth.on_adapter_source("i", "bot", "b", 1.0)
    assert one.predicted(OTHER) == 0  # a miss: nobody can tell that it was not loaded from a third place
    assert one.predicted() == 0


def test_reported_source_counts_before_any_block_of_the_new_load() -> None:
    """As on a real engine: the last but one load has a fully cached prompt, which stores
    nothing.
    """
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "b")
    one.told("b")
    one.ask(OTHER)
    one.told("b")
    one.engine.load("bot", "a")
    one.truth.on_adapter_source("i", "bot", "a", 1.0)
    one.ask(THIRD)
    one.truth.on_adapter_source("i", "bot", "a", 1.0)
    assert one.predicted() == one.engine.hit_blocks(PROMPT, "bot") == 10
    assert one.predicted(OTHER) == one.engine.hit_blocks(OTHER, "bot") == 0
    one.engine.load("bot", "b")
    one.truth.on_adapter_source("i", "bot", "b", 1.0)
    assert one.predicted(THIRD) == one.engine.hit_blocks(THIRD, "bot") == 0
    assert one.predicted(OTHER) == one.engine.hit_blocks(OTHER, "bot") == 10
    one.engine.load("bot", "a")
    one.told("a")
    one.told("a")
    assert one.predicted() == 10
    assert one.predicted(OTHER) == 0
    assert one.predicted(THIRD) <= one.engine.hit_blocks(THIRD, "bot")


def test_blocks_of_a_new_number_wait_until_they_confirm_the_reported_source() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "a")
    one.ask(OTHER)
    one.truth.on_adapter_source("i", "bot", "a", 1.0)
    one.ask([*PROMPT, *range(700, 710)])  # the first load's blocks: it is the same content
    assert (one.predicted(), one.predicted(OTHER)) == (10, 10)


def test_blocks_evicted_while_parked_are_not_restored() -> None:
    one = Loaded(capacity=24)
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.load("bot", "b")
    one.ask(OTHER)
    one.told("b")
    one.ask(list(range(900, 928)), None)  # pushes out the end of the first prompt
    one.engine.load("bot", "a")
    one.told("a")
    one.told("a")
    assert 0 < one.predicted() == one.engine.hit_blocks(PROMPT, "bot") < 10


def test_running_request_of_the_old_load_changes_nothing() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    old = dict(one.engine._numbers)
    one.engine.load("bot", "b")
    one.ask(OTHER)
    new, one.engine._numbers = one.engine._numbers, old
    assert one.ask([*PROMPT, *range(700, 710)]) == []
    one.engine._numbers = new
    assert (one.predicted(), one.predicted(OTHER)) == (0, 10)


def test_adapters_without_names_are_not_credited() -> None:
    one = Loaded()
    from fairlead_kvstore.events.decoder import EventBatch
    from fairlead_kvstore.events.payloads import StoredEvent

    one.truth.apply("i", EventBatch(0.0, [StoredEvent([1], None, [1, 2, 3, 4], 4, 7, "GPU")]), 1.0)
    assert one.truth.state("i").blocks == 1
    assert one.predicted([1, 2, 3, 4], None) == one.predicted([1, 2, 3, 4], "bot") == 0


def test_names_and_parked_contents_are_bounded() -> None:
    one = Loaded(Limits(kv_adapters=2, kv_adapter_versions=2))
    for name in ("bot", "second", "third"):
        one.engine.load(name, "a")
        one.ask(PROMPT, name)
    assert [one.predicted(PROMPT, name) for name in ("bot", "second", "third")] == [10, 10, 0]
    assert one.truth.state("i").counts.unnamed == 10
    for number in range(40):
        one.engine.load("bot", f"place {number}")
        one.ask([5_000 + number * 10 + index for index in range(8)])
    assert one.truth.state("i").blocks <= 10 + 2 + 2 * 10


def test_clear_drops_blocks_and_keeps_loaded_adapters() -> None:
    one = Loaded()
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.told("a")
    one.engine.clear()
    one.ask(OTHER)
    assert one.truth.unsourced_adapters("i") == []
    assert (one.predicted(), one.predicted(OTHER)) == (0, 10)


def test_late_reader_reports_unknown_source_of_an_earlier_load() -> None:
    """Loaded from b, from a and from b again; the first two sources cannot be learned any more."""
    one = Loaded()
    one.truth.on_stream_complete("i", "replayed", 1.0)
    one.engine.load("bot", "b")
    one.ask(PROMPT)
    assert one.truth.state("i").complete
    one.engine.load("bot", "a")
    one.ask(OTHER)
    one.engine.load("bot", "b")
    one.ask(THIRD)
    one.told("b")
    assert (one.predicted(), one.engine.hit_blocks(PROMPT, "bot")) == (0, 10)
    state = one.truth.state("i")
    assert (state.complete, state.reason) == (False, "the source of an earlier load of bot is unknown")
    marked = one.ask([*PROMPT[:40], *range(900, 909)])  # it goes on from the first load's last block
    assert one.predicted() == 10
    assert not one.truth.state("i").complete, "the load from elsewhere may be of the same place, too"
    assert not any(isinstance(change, changes.CompletenessChanged) for change in marked)


def test_doubt_ends_when_the_parked_blocks_are_gone() -> None:
    one = Loaded(capacity=20)
    one.truth.on_stream_complete("i", "replayed", 1.0)
    one.engine.load("bot", "b")
    one.ask(PROMPT)
    one.engine.load("bot", "a")
    one.ask(OTHER)
    one.told("a")
    assert not one.truth.state("i").complete
    one.ask(THIRD)
    assert one.truth.state("i").complete
    assert one.predicted(THIRD) == one.engine.hit_blocks(THIRD, "bot") == 10


def test_no_doubt_remains_when_all_sources_are_known() -> None:
    one = Loaded()
    one.truth.on_stream_complete("i", "replayed", 1.0)
    for place, tokens in (("a", PROMPT), ("b", OTHER), ("a", THIRD)):
        one.engine.load("bot", place)
        one.ask(tokens)
        one.told(place)
        assert one.truth.state("i").complete
    one.engine.load("bot", "c")
    assert [type(item) for item in one.ask([1, 2, 3, 4])][-1] is changes.CompletenessChanged
    assert not one.truth.state("i").complete, "until it is told, it may be of any of those places"
    one.told("c")
    assert one.truth.state("i").complete


def test_dropped_loads_are_a_doubt_until_a_clear() -> None:
    one = Loaded(Limits(kv_adapter_versions=2))
    one.truth.on_stream_complete("i", "replayed", 1.0)
    for number in range(4):
        one.engine.load("bot", f"place {number}")
        one.ask([5_000 + number * 10 + index for index in range(8)])
        one.told(f"place {number}")
    assert one.truth.state("i").reason == "adapters were loaded more often than earlier loads are recorded"
    one.engine.clear()
    one.ask(OTHER)
    assert one.truth.state("i").complete


def test_doubt_is_part_of_the_snapshot() -> None:
    one = Loaded()
    one.truth.on_stream_complete("i", "replayed", 1.0)
    one.engine.load("bot", "a")
    one.ask(PROMPT)
    one.engine.load("bot", "b")
    one.ask(OTHER)
    kept, rows = one.truth.take_snapshot("i", 0.0)
    assert kept.completeness()[0] is False
    another = BlockStore()
    another.attach("i", MODEL, 2.0)
    another.restore_snapshot("i", kept, rows, 0.0, 2.0)
    another.on_stream_resumed("i")
    assert not another.state("i").complete
    assert another.state("i").reason == one.truth.state("i").reason
