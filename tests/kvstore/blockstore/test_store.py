"""The block store: what events of engines do to blocks, in every tier and attention group."""

import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.block_table import time_of
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, shared_store_id
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import EngineSleep
from fairlead_kvstore.events.payloads import ClearedEvent, EventBatch, RemovedEvent, StoredEvent
from fairlead_kvstore.events.types import BatchesLost, ProcessRestarted, StreamComplete, StreamResumed, StreamSuspended
from fairlead_testing.kvstore.block_store import (
    BLOCK_HASHES,
    MODEL,
    TOKENS,
    SingleInstanceStore,
    apply_batch,
    block_extras,
    change_summary,
    instance_state,
    removed_event,
    restore_snapshot,
    store_with,
    stored_event,
)

SHARED = shared_store_id(MODEL)


def test_cold_prompt_is_stored_extended_and_removed() -> None:
    index = SingleInstanceStore()
    assert change_summary(index.apply(stored_event(0, 2))) == [("BlocksStored", [0, 1, 2])]
    assert change_summary(index.apply(stored_event(3, 4))) == [("BlocksStored", [3, 4])]
    assert index.depths() == (5, 5, 5, 5)
    assert change_summary(index.apply(removed_event(4), removed_event(3))) == [("BlocksRemoved", [4, 3])]
    assert index.depths() == (3, 3, 3, 3)


def test_successive_blocks_of_one_tier_are_one_change_and_keep_their_order() -> None:
    index = SingleInstanceStore()
    reported = index.apply(stored_event(0, 1), stored_event(2, 3), removed_event(3), stored_event(3, 3))
    summary = [("BlocksStored", [0, 1, 2, 3]), ("BlocksRemoved", [3]), ("BlocksStored", [3])]
    assert change_summary(reported) == summary
    reported = index.apply(stored_event(0, 0, medium="CPU"), stored_event(4, 4))
    assert change_summary(reported) == [("BlocksStored", [0]), ("BlocksStored", [4])]


def test_block_with_two_copies_goes_with_its_second_removal() -> None:
    index = store_with(stored_event(0, 2))
    assert index.apply(stored_event(2, 2)) == []
    assert index.apply(removed_event(2)) == []
    assert index.depths()[0] == 3
    assert change_summary(index.apply(removed_event(2))) == [("BlocksRemoved", [2])]


def test_repeated_store_reports_only_new_blocks() -> None:
    index = store_with(stored_event(0, 4), removed_event(4), removed_event(1))
    assert change_summary(index.apply(stored_event(0, 5))) == [("BlocksStored", [1, 4, 5])]


def test_removal_of_unknown_blocks_changes_nothing() -> None:
    index = SingleInstanceStore()
    assert index.apply(removed_event(1, 2), removed_event(3, medium="CPU")) == []
    index.apply(stored_event(0, 0))
    assert index.apply(removed_event(0, medium="CPU")) == []
    assert index.depths()[0] == 1


def test_copies_beyond_the_counter_are_dropped_early_never_late() -> None:
    index = store_with(*[stored_event(0, 0) for _ in range(300)])
    assert index.apply(*[removed_event(0) for _ in range(254)]) == []
    assert change_summary(index.apply(removed_event(0))) == [("BlocksRemoved", [0])]
    assert index.apply(*[removed_event(0) for _ in range(45)]) == []


def test_byte_and_signed_hashes_are_valid_handles() -> None:
    index = store_with(
        StoredEvent([b"\x01" * 32, -5], None, TOKENS[:4], 2), StoredEvent([2**64 - 1], -5, TOKENS[4:6], 2)
    )
    assert index.depths()[0] == 3
    index.apply(RemovedEvent([2**64 - 5]))  # the same 64 bits
    assert index.depths()[0] == 1


def test_parent_zero_is_the_start_of_a_chain() -> None:
    index = store_with(StoredEvent([7], 0, TOKENS[:2], 2))
    assert index.depths()[0] == 1


# --- whose block it is --------------------------------------------------------------------------------------------------


def test_salts_and_adapters_have_blocks_of_their_own() -> None:
    index = store_with(stored_event(0, 2))
    index.apply(stored_event(0, 2, base=2000, extra_keys=[["acme"], None, None]))
    index.apply(stored_event(0, 2, base=3000, lora_name="bot", lora_id=1, extra_keys=[["bot"], ["bot"], ["bot"]]))
    index.apply(
        stored_event(0, 2, base=4000, lora_name="bot", lora_id=1, extra_keys=[["bot", "acme"], ["bot"], ["bot"]])
    )
    salted = block_hashes(chain_root(MODEL), TOKENS, 2, block_extras(6, 2, salt="acme"))
    bots = block_hashes(chain_root(MODEL, "bot"), TOKENS, 2)
    both = block_hashes(chain_root(MODEL, "bot"), TOKENS, 2, block_extras(6, 2, salt="acme"))
    assert len({*BLOCK_HASHES, *salted, *bots, *both}) == 24
    assert [index.depths(own)[0] for own in (BLOCK_HASHES, salted, bots, both)] == [3, 3, 3, 3]
    index.apply(removed_event(0, 1, 2, base=4000))
    assert [index.depths(own)[0] for own in (BLOCK_HASHES, salted, bots, both)] == [3, 3, 3, 0]


def test_salt_equal_to_the_adapter_name_is_still_a_salt() -> None:
    index = store_with(stored_event(0, 0, lora_name="bot", lora_id=1, extra_keys=[["bot", "bot"]]))
    assert index.depths(block_hashes(chain_root(MODEL, "bot"), TOKENS, 2, block_extras(6, 2, salt="bot")))[0] == 1
    assert index.depths(block_hashes(chain_root(MODEL, "bot"), TOKENS, 2))[0] == 0


def test_models_and_instances_are_separate_and_the_secret_is_hashed() -> None:
    index = SingleInstanceStore()
    index.store.attach("other", "default/large", 0.0)
    index.apply(stored_event(0, 1))
    index.apply(stored_event(0, 1), instance="other")
    assert index.depths(instance="other")[0] == 0
    assert index.depths(block_hashes(chain_root("default/large"), TOKENS, 2), "other")[0] == 2
    assert chain_root(MODEL, secret=b"s") != chain_root(MODEL) != chain_root(MODEL, "")


def test_two_ranks_of_one_engine_are_two_instances() -> None:
    index = SingleInstanceStore()
    index.store.attach("pod/8000/1", MODEL, 0.0)
    index.apply(stored_event(0, 3))
    index.apply(stored_event(0, 1), instance="pod/8000/1")
    assert (index.depths()[0], index.depths(instance="pod/8000/1")[0]) == (4, 2)
    index.apply(removed_event(3))
    assert (index.depths()[0], index.depths(instance="pod/8000/1")[0]) == (3, 2)


def test_block_with_two_handles_is_removed_with_the_second_or_earlier() -> None:
    """An engine that does not report salts has two handles for blocks that look alike."""
    index = store_with(stored_event(0, 1, extra_keys=None))
    assert index.apply(stored_event(0, 1, base=2000, extra_keys=None)) == []
    assert index.apply(removed_event(1, base=2000)) == []
    assert change_summary(index.apply(stored_event(1, 1, base=2000, medium="CPU"))) == [("BlocksStored", [1])]
    assert change_summary(index.apply(removed_event(1))) == [("BlocksRemoved", [1])]
    assert change_summary(index.apply(removed_event(1, base=2000, medium="CPU"))) == [("BlocksRemoved", [1])]
    assert index.depths() == (1, 1, 1, 1)
    assert change_summary(index.apply(stored_event(1, 1))) == [("BlocksStored", [1])]


# --- blocks without a parent --------------------------------------------------------------------------------------------


def test_block_with_very_many_handles_is_searched_once_and_leaves_no_ghost() -> None:
    index = SingleInstanceStore(Limits(kv_blocks_per_instance=10_000))
    names = range(1, 20_001)
    reported = index.apply(*(StoredEvent([name], None, TOKENS[:2], 2) for name in names))
    assert change_summary(reported)[0] == ("BlocksStored", [0])
    assert index.store.block_count <= 10_000
    blocks = index.store._instances["i"].blocks
    assert len(blocks.by_block_hash) <= 1, "one search finds it"
    index.apply(StoredEvent([20_001], None, TOKENS[:2], 2, medium="CPU"))
    removed = index.apply(RemovedEvent(list(reversed(names))), RemovedEvent([20_001], "CPU"))
    assert {type(change) for change in removed} == {changes.BlocksRemoved}
    assert (index.store.block_count, index.depths()) == (0, (0, 0, 0, 0))


def test_orphans_wait_for_all_ancestors() -> None:
    index = SingleInstanceStore()
    assert index.apply(stored_event(4, 5)) == index.apply(stored_event(2, 3)) == []
    assert (instance_state(index.store, "i").orphans, index.depths()[0]) == (4, 0)
    reported = index.apply(stored_event(0, 1))
    assert change_summary(reported) == [("BlocksStored", [0, 1, 2, 3, 4, 5])]
    assert (instance_state(index.store, "i").orphans, index.counts["linked"], index.depths()[0]) == (0, 4, 6)


def test_orphan_removed_while_waiting_is_not_added() -> None:
    index = store_with(stored_event(2, 4), stored_event(2, 2), removed_event(4, 2))
    index.apply(removed_event(4))
    index.apply(stored_event(0, 1))
    assert index.depths()[0] == 4  # block 2 was there twice


def test_orphans_are_bounded_and_the_oldest_are_dropped() -> None:
    index = store_with(
        stored_event(4, 5), stored_event(2, 3), stored_event(1, 1), limits=Limits(kv_orphans_per_instance=4)
    )
    assert instance_state(index.store, "i").orphans == 3
    index.apply(stored_event(0, 0))
    assert index.depths()[0] == 4


def test_orphans_are_bounded_in_bytes() -> None:
    index = store_with(
        stored_event(4, 5),
        stored_event(2, 3),
        stored_event(1, 1, extra_keys=[["x" * 12]]),
        limits=Limits(kv_orphans_bytes=40),
    )
    assert instance_state(index.store, "i").orphans == 3


def test_full_report_of_a_hit_links_orphans_of_a_late_reader() -> None:
    index = store_with(stored_event(3, 3), stored_event(0, 2))
    assert index.depths()[0] == 4


# --- clears and restarts ------------------------------------------------------------------------------------------------


def test_clear_drops_all_tiers() -> None:
    index = store_with(stored_event(0, 2), stored_event(0, 1, medium="CPU"))
    reported = index.apply(ClearedEvent())
    assert [type(change) for change in reported] == [changes.InstanceCleared, changes.CompletenessChanged]
    assert (instance_state(index.store, "i").complete, index.depths()) == (True, (0, 0, 0, 0))


def test_clear_of_a_named_tier_clears_only_that() -> None:
    index = store_with(stored_event(0, 2), stored_event(0, 1, medium="CPU"))
    summary = change_summary(index.apply(ClearedEvent("CPU")))
    assert [(kind, sorted(blocks)) for kind, blocks in summary] == [("BlocksRemoved", [0, 1])]
    assert index.depths() == (3, 3, 3, 3)


def test_sleeping_engine_has_no_blocks_whatever_arrives_late() -> None:
    index = store_with(stored_event(0, 2))
    reported = index.store.apply_at_once("i", EngineSleep(is_asleep=True), index.now)
    assert [type(change) for change in reported] == [changes.InstanceCleared, changes.CompletenessChanged]
    assert index.apply(stored_event(3, 5), stored_event(0, 0), removed_event(0), ClearedEvent("CPU")) == []
    index.store.apply_at_once("i", StreamComplete("the first batch that the engine published"), index.now)
    state = instance_state(index.store, "i")
    assert (state.complete, state.blocks, state.orphans) == (False, 0, 0)
    assert "fell asleep" in state.reason


def test_engine_that_woke_up_is_complete_with_its_own_clear() -> None:
    index = store_with(stored_event(0, 2))
    index.store.apply_at_once("i", EngineSleep(is_asleep=True), index.now)
    index.apply(stored_event(3, 3), seconds=600.0)
    assert index.store.apply_at_once("i", EngineSleep(is_asleep=False), index.now) == []
    assert (instance_state(index.store, "i").complete, index.depths()[0]) == (False, 0)
    index.apply(ClearedEvent(), stored_event(0, 1))
    assert (instance_state(index.store, "i").complete, index.depths()[0]) == (True, 2)


def test_engine_that_clears_before_it_is_known_to_be_awake_keeps_its_new_blocks() -> None:
    index = store_with(stored_event(0, 2))
    index.store.apply_at_once("i", EngineSleep(is_asleep=True), index.now)
    index.apply(stored_event(3, 3), ClearedEvent(), stored_event(0, 1))
    assert index.store.apply_at_once("i", EngineSleep(is_asleep=False), index.now) == []
    index.apply(stored_event(2, 2))
    assert (instance_state(index.store, "i").complete, index.depths()[0]) == (True, 3)


def test_engine_that_wakes_up_without_a_report_of_the_clear_is_incomplete() -> None:
    """Measured with a sleeping vLLM: it confirmed the clear, reported none, and found 96 earlier
    tokens in its cache.
    """
    index = SingleInstanceStore()
    index.store.apply_at_once("i", StreamComplete("the first batch that the engine published"), 0.0)
    index.apply(stored_event(0, 2))
    index.store.apply_at_once("i", EngineSleep(is_asleep=True), index.now)
    index.store.apply_at_once("i", EngineSleep(is_asleep=False), index.now)
    index.apply(stored_event(3, 5), seconds=600.0)
    state = instance_state(index.store, "i")
    assert (state.complete, state.blocks, state.orphans) == (False, 0, 3)
    index.apply(ClearedEvent(), stored_event(0, 1))
    assert instance_state(index.store, "i").complete


def test_restart_begins_an_epoch_without_old_handles() -> None:
    index = store_with(stored_event(0, 2))
    reported = index.store.apply_at_once("i", ProcessRestarted("the numbers went back"), 5.0)
    assert [type(change) for change in reported] == [changes.InstanceCleared, changes.CompletenessChanged]
    assert instance_state(index.store, "i").epoch == 2
    assert index.apply(removed_event(0)) == []
    index.apply(stored_event(3, 3))
    assert (index.depths()[0], instance_state(index.store, "i").orphans) == (0, 1)


def test_lost_batches_drop_all_blocks() -> None:
    index = SingleInstanceStore()
    index.store.apply_at_once("i", StreamComplete("the first batch that the engine published"), 0.0)
    index.apply(stored_event(0, 2))
    index.store.apply_at_once("i", BatchesLost(4, 9, "the replay starts later than requested"), 7.0)
    state = instance_state(index.store, "i")
    assert (state.complete, state.since, state.blocks) == (False, 7.0, 0)
    assert "4 to 9" in state.reason


def test_suspended_instance_is_incomplete_until_resumed() -> None:
    index = SingleInstanceStore()
    index.store.apply_at_once("i", StreamComplete("the first batch that the engine published"), 0.0)
    index.apply(stored_event(0, 2))
    index.store.apply_at_once("i", StreamSuspended("disconnected"), 5.0)
    state = instance_state(index.store, "i")
    assert (state.complete, state.reason, state.blocks) == (False, "disconnected", 3)
    index.store.apply_at_once("i", StreamResumed(), index.now)
    state = instance_state(index.store, "i")
    assert (state.complete, state.since, index.depths()[0]) == (True, 0.0, 3)


def test_clear_while_suspended_counts_after_resume() -> None:
    index = store_with(stored_event(0, 2))
    index.store.apply_at_once("i", StreamSuspended("disconnected"), 5.0)
    index.store.apply_at_once("i", EngineSleep(is_asleep=True), 5.5)
    index.apply(ClearedEvent())
    assert (instance_state(index.store, "i").complete, index.depths()[0]) == (False, 0)
    index.store.apply_at_once("i", StreamResumed(), index.now)
    assert instance_state(index.store, "i").complete


# --- ages and memory ----------------------------------------------------------------------------------------------------


def test_ages_follow_stores_and_uses() -> None:
    index = store_with(stored_event(0, 1), seconds=0.0)
    index.apply(stored_event(2, 2), seconds=48.0)
    blocks = index.store._instances["i"].blocks

    def stored_at(block: int) -> float:
        return time_of(blocks.ticks[blocks.by_block_hash.find(BLOCK_HASHES[block])])

    assert [stored_at(block) for block in range(3)] == [48.0, 48.0, 48.0]
    index.apply(stored_event(0, 0, base=5000, extra_keys=[["other"]]), seconds=48.0)
    assert stored_at(0) == 48.0
    index.store.model(MODEL).touch("i", BLOCK_HASHES[:2], 96.0)
    assert [stored_at(block) for block in range(3)] == [96.0, 96.0, 48.0]


def test_evicted_age_is_learned_from_removals() -> None:
    index = store_with(stored_event(0, 5), seconds=0.0)
    assert instance_state(index.store, "i").evicted_age_seconds is None
    index.apply(removed_event(5), seconds=64.0)
    assert instance_state(index.store, "i").evicted_age_seconds == 64.0
    index.apply(removed_event(4), seconds=32.0)
    assert instance_state(index.store, "i").evicted_age_seconds == pytest.approx(64.0 + 32.0 * 0.05)


def test_sleep_does_not_affect_the_next_process() -> None:
    index = SingleInstanceStore()
    index.store.apply_at_once("i", EngineSleep(is_asleep=True), index.now)
    index.store.apply_at_once("i", ProcessRestarted("the numbers went back"), index.now)
    index.store.apply_at_once("i", StreamComplete("the first batch that the engine published"), index.now)
    assert index.apply(stored_event(0, 0), seconds=0.1) != []


def test_instance_above_its_bound_evicts_oldest_ends_and_is_incomplete() -> None:
    index = SingleInstanceStore(Limits(kv_blocks_per_instance=6))
    index.store.apply_at_once("i", StreamComplete("the first batch that the engine published"), 0.0)
    index.apply(stored_event(0, 5), seconds=0.0)
    index.store.model(MODEL).touch("i", BLOCK_HASHES[:3], 50.0)
    reported = index.apply(stored_event(0, 0, base=5000, extra_keys=[["other"]]), seconds=60.0)
    assert ("BlocksRemoved", [5]) in change_summary(reported)
    state = instance_state(index.store, "i")
    assert (state.complete, state.counts["dropped"], state.blocks, index.depths()[0]) == (False, 1, 6, 5)
    assert index.store.block_count == 6
    index.apply(ClearedEvent())
    assert instance_state(index.store, "i").complete


def test_total_bound_evicts_from_the_largest_instance() -> None:
    index = SingleInstanceStore(Limits(kv_blocks=8))
    index.store.attach("other", MODEL, 0.0)
    index.apply(stored_event(0, 5))
    index.apply(stored_event(0, 1), instance="other")
    index.apply(stored_event(2, 2), instance="other")
    assert (index.depths()[0], index.depths(instance="other")[0], index.store.block_count) == (5, 3, 8)


def test_one_namespace_cannot_push_out_the_blocks_of_others() -> None:
    index = store_with(stored_event(0, 5), limits=Limits(kv_blocks=16))
    for model in ("x", "y"):
        for number in range(8):
            name = f"{model}{number}"
            index.store.attach(name, f"flood/{model}", 0.0)
            index.apply(stored_event(0, 2), instance=name)
    states = [instance_state(index.store, name) for name in ("i", "x0", "y7")]
    assert (index.depths()[0], states[0].counts["dropped"]) == (6, 0)
    assert index.store.block_count == 16
    sums = [sum(instance_state(index.store, f"{model}{number}").blocks for number in range(8)) for model in ("x", "y")]
    assert (sum(sums), min(sums)) in ((10, 4), (10, 5)), "models of one namespace share what it has"


def test_namespace_with_most_blocks_gives_way_to_a_lowered_bound() -> None:
    index = store_with(stored_event(0, 2))
    index.store.attach("x", "flood/x", 0.0)
    index.apply(stored_event(0, 5), instance="x")
    assert index.store.full_at is None
    index.store.set_max_blocks(6, 5.0)
    assert (index.depths()[0], index.store.block_count, index.store.max_blocks) == (3, 6, 6)
    assert list(index.store.take_evictions()) == ["flood/x"]
    assert index.store.full_at == 5.0
    index.store.set_max_blocks(2 * Limits().kv_blocks, 6.0)
    assert index.store.max_blocks == Limits().kv_blocks


def test_changes_of_another_model_that_gives_way_are_reported_under_it() -> None:
    index = store_with(stored_event(0, 5), limits=Limits(kv_blocks=8))
    index.store.attach("other", "team/other", 0.0)
    reported = index.apply(stored_event(0, 2), instance="other")
    assert {getattr(change, "instance", None) for change in reported} == {"other"}
    evicted = index.store.take_evictions()
    assert {key: change_summary(reported)[0] for key, reported in evicted.items()} == {MODEL: ("BlocksRemoved", [5])}
    assert index.store.take_evictions() == {}


def test_detached_instance_leaves_nothing() -> None:
    index = store_with(stored_event(0, 5))
    assert index.store.detach("i", "its pod is gone") == [
        changes.InstanceCleared("i", 1, "its pod is gone"),
        changes.InstanceDetached("i"),
    ]
    assert (index.store.block_count, index.store.bytes) == (0, 0)
    with pytest.raises(KeyError):
        instance_state(index.store, "i")


def test_offloaded_blocks_take_the_block_hash_of_their_handle() -> None:
    index = store_with(stored_event(0, 2, extra_keys=[["acme"], None, None]))
    index.apply(*[stored_event(number, number, medium="CPU", extra_keys=None) for number in range(3)])
    salted = block_hashes(chain_root(MODEL), TOKENS, 2, block_extras(6, 2, salt="acme"))
    assert index.depths() == (0, 0, 0, 0)
    index.apply(removed_event(2), removed_event(1))
    assert index.depths(salted) == (1, 3, 3, 3)
    assert change_summary(index.apply(removed_event(0, 1, 2, medium="CPU")))[0][0] == "BlocksRemoved"
    assert index.depths(salted) == (1, 1, 1, 1)


def test_offloaded_blocks_of_unknown_content_are_not_credited() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(5, 5, base=9000))  # this engine names extra keys
    assert index.apply(stored_event(0, 1, medium="CPU", extra_keys=None)) == []
    assert (index.store.block_count, index.depths()) == (0, (0, 0, 0, 0))


def test_blocks_of_an_engine_without_extra_keys_are_credited() -> None:
    index = SingleInstanceStore()
    index.apply(
        StoredEvent([1], None, TOKENS[:2], 2, None, "GPU"), StoredEvent([2], 1, TOKENS[2:4], 2, None, "CPU_PINNED")
    )
    assert index.depths() == (1, 2, 2, 2)


def test_slower_tier_fills_the_gaps_of_the_faster_one() -> None:
    index = store_with(stored_event(0, 5), stored_event(2, 3, medium="CPU"), stored_event(4, 4, medium="DISK"))
    index.apply(removed_event(2, 3, 4, 5))
    assert index.depths() == (2, 4, 5, 5)


def test_shared_store_is_a_place_that_all_instances_reach_and_its_blocks_expire() -> None:
    index = SingleInstanceStore(Limits(kv_shared_seconds=100.0))
    index.store.attach("other", MODEL, 0.0)
    index.apply(stored_event(0, 2))
    reported = index.apply(*[stored_event(number, number, medium="cpu", extra_keys=None) for number in range(3)])
    assert reported == [changes.BlocksStored(SHARED, StorageTier.GPU, BLOCK_HASHES[:3])]
    index.apply(removed_event(0, 1, 2))
    assert index.depths() == index.depths(instance="other") == (0, 0, 0, 3)
    assert index.store.block_count == 3
    model = index.store.model(MODEL)
    assert (model.instances(), model.tiers(SHARED, BLOCK_HASHES[2]), model.tiers(SHARED, 7)) == (["i", "other"], 1, 0)
    assert not index.store.expire(index.now + 10)
    assert index.store.take_evictions() == {}
    assert not index.store.expire(index.now + 112)
    (expired,) = index.store.take_evictions()[MODEL]
    assert isinstance(expired, changes.BlocksRemoved)
    assert (expired.instance, set(expired.hashes)) == (SHARED, {*BLOCK_HASHES[:3]})
    assert (index.depths(instance="other"), index.store.block_count) == ((0, 0, 0, 0), 0)
    assert not model.tiers(SHARED, BLOCK_HASHES[2])


def test_write_to_a_shared_store_is_not_repeated_early_and_counts_for_its_expiry() -> None:
    index = store_with(stored_event(0, 0), limits=Limits(kv_shared_seconds=100.0))
    again = stored_event(0, 0, medium="cpu", extra_keys=None)
    kinds = [[name for name, _ in change_summary(index.apply(again, seconds=30.0))] for _ in range(4)]
    assert kinds == [["BlocksStored"], [], ["BlocksStored"], []]
    assert not index.store.expire(index.now + 30.0)
    assert index.depths() == (1, 1, 1, 1)
    index.apply(removed_event(0))
    assert index.depths() == (0, 0, 0, 1)
    assert not index.store.expire(index.now + 130.0)
    assert index.depths() == (0, 0, 0, 0)


def test_restored_shared_store_expires_from_the_writes_in_short_steps() -> None:
    index = SingleInstanceStore()
    many = list(range(20_000))
    index.apply(StoredEvent(many, None, many, 1, None, "cpu"))
    kept, rows = index.store.take_snapshot(SHARED, 0.0)
    later = SingleInstanceStore()
    assert restore_snapshot(later.store, SHARED, kept, rows, 0.0, 1.0) == []
    assert later.store.block_count == 20_000
    left = []
    while later.store.expire(index.now + Limits().kv_shared_seconds + 16.0):
        left.append(later.store.block_count)
    assert (later.store.block_count, len(left)) == (0, 2)
    assert sum(len(change.hashes) for change in later.store.take_evictions()[MODEL]) == 20_000  # type: ignore[union-attr]


def test_restart_keeps_the_blocks_of_the_shared_store() -> None:
    index = store_with(stored_event(0, 2), stored_event(0, 0, medium="cpu", extra_keys=None))
    index.store.apply_at_once("i", ProcessRestarted("the numbers went back"), 9.0)
    assert index.depths() == (0, 0, 0, 1)
    index.store.detach("i", "gone")
    index.store.attach("i", MODEL, 10.0)
    assert index.depths() == (0, 0, 0, 0)


def test_shared_store_is_bounded_and_its_oldest_blocks_are_dropped() -> None:
    index = SingleInstanceStore(Limits(kv_blocks_per_instance=2))
    for number in range(3):
        reported = index.apply(
            StoredEvent([number], None, TOKENS[2 * number : 2 * number + 2], 2, None, "cpu"), seconds=20.0
        )
    removed = [change for change in reported if isinstance(change, changes.BlocksRemoved)]
    assert [(change.instance, change.hashes) for change in removed] == [(SHARED, [BLOCK_HASHES[0]])]


@pytest.mark.parametrize(("medium", "locality", "expected"), [
    ("GPU", None, (1, 1, 1, 1)),
    (None, None, (1, 1, 1, 1)),
    ("CPU", None, (0, 1, 1, 1)),
    ("CPU_PINNED", None, (0, 1, 1, 1)),
    ("disk", None, (0, 0, 1, 1)),
    ("cpu", None, (0, 0, 0, 1)),
    ("STORAGE", None, (0, 0, 0, 1)),
    ("a new medium", None, (0, 0, 0, 1)),
    ("CPU", "REMOTE", (0, 0, 0, 1)),
    ("CPU", "LOCAL", (0, 1, 1, 1)),
])  # fmt: skip
def test_media_map_to_tiers(medium: str | None, locality: str | None, expected: tuple[int, ...]) -> None:
    index = store_with(StoredEvent([1], None, TOKENS[:2], 2, None, medium, locality=locality))
    assert index.depths() == expected


# --- hybrid models ------------------------------------------------------------------------------------------------------


def test_only_the_full_attention_group_counts() -> None:
    index = SingleInstanceStore()
    window = {"group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": 128}
    index.apply(stored_event(0, 3, **window), stored_event(0, 3, kv_cache_spec_kind="full_attention"))
    assert index.depths()[0] == 4
    index.apply(RemovedEvent([1003], "GPU", 1), RemovedEvent([1002], "GPU", 1))
    assert index.depths()[0] == 4
    index.apply(RemovedEvent([1003], "GPU", 0))
    assert index.depths()[0] == 3
    assert instance_state(index.store, "i").hybrid


def test_model_without_full_attention_is_not_credited() -> None:
    index = store_with(stored_event(0, 3, kv_cache_spec_kind="sliding_window"))
    assert (index.depths()[0], instance_state(index.store, "i").hybrid) == (0, True)


@pytest.mark.parametrize("kind", [None, "unknown", "full_attention", "mla_attention", "sink_full_attention"])
def test_attention_kinds_that_count(kind: str | None) -> None:
    index = store_with(stored_event(0, 1, kv_cache_spec_kind=kind))
    assert (index.depths()[0], instance_state(index.store, "i").hybrid) == (2, False)


# --- the blocks of a model -----------------------------------------------------------------------------------------------


def stores_of(*chains: tuple[str, int, int, float]) -> BlockStore:
    """Returns a store with prompts: instance, first token, blocks, and when it was stored."""
    store = BlockStore()
    for name in "ab":
        store.attach(name, "default/tiny", 0.0)
    store.attach("other", "default/other", 0.0)
    for number, (name, first, blocks, seconds) in enumerate(chains):
        hashes = [number * 100_000 + at for at in range(1, blocks + 1)]
        event = StoredEvent(hashes, None, list(range(first, first + blocks)), 1)
        apply_batch(store, name, EventBatch(0.0, [event]), seconds)
    return store


def test_unique_blocks_are_those_that_no_other_instance_of_the_model_has() -> None:
    store = stores_of(("a", 0, 10, 0.0), ("a", 50, 4, 900.0), ("b", 0, 6, 0.0), ("other", 50, 4, 0.0))
    model = store.model("default/tiny")
    assert model.instances() == ["a", "b"]
    assert model.count_unique("a", 600.0, 1_000) == (14, 8, 4)
    assert model.count_unique("b", 0.0, 1_000) == (6, 0, 0)
    chain = list(store._instances["a"].blocks.block_hashes[1:])
    model.touch("a", chain[:10], 2_000.0)
    assert model.count_unique("a", 1_900.0, 1_000) == (14, 8, 4), "of the touched ones, six are not unique"
    model.touch("unknown", chain, 3_000.0)
    apply_batch(store, "b", EventBatch(0.0, [ClearedEvent()]), 0.0)
    assert model.count_unique("a", 1_900.0, 1_000) == (14, 14, 10)
    assert model.count_unique("b", 0.0, 1_000) == (0, 0, 0)


def test_unique_blocks_of_a_large_table_are_estimated_from_a_part() -> None:
    store = stores_of(("a", 0, 20_000, 0.0), ("b", 0, 5_000, 900.0))
    model = store.model("default/tiny")
    blocks, unique, used = model.count_unique("a", 600.0, 2_000)
    assert (blocks, used) == (20_000, 0)
    assert abs(unique - 15_000) < 300
    assert model.count_unique("b", 600.0, 2_000)[1:] == (0, 0)


def test_tiers_are_bits_and_a_chain_is_touched_to_its_last_block_in_the_gpu() -> None:
    index = store_with(stored_event(0, 5), seconds=0.0)
    model = index.store.model("default/tiny")
    index.apply(stored_event(2, 3, medium="CPU"), seconds=0.0)
    index.apply(removed_event(3, 4, 5), seconds=0.0)
    assert [model.tiers("i", own) for own in BLOCK_HASHES[:6]] == [1, 1, 3, 2, 0, 0]
    model.touch("i", BLOCK_HASHES[:6], 320.0)
    blocks = index.store._instances["i"].blocks
    assert [time_of(blocks.ticks[blocks.by_block_hash.find(own)]) for own in BLOCK_HASHES[:4]] == [320.0] * 3 + [0.0]
