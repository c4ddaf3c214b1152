"""The model of the truth, one thing that real engines do at a time."""

import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore import changes
from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, chain_root
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.events.payloads import ClearedEvent, RemovedEvent, StoredEvent
from fairlead_testing.kvstore.block_store import (
    BLOCK_HASHES,
    MODEL,
    TOKENS,
    SingleInstanceStore,
    change_summary,
    removed_event,
    stored_event,
)

# --- what is stored and removed -----------------------------------------------------------------------------------------


def test_a_cold_prompt_its_extension_and_its_end() -> None:
    index = SingleInstanceStore()
    assert change_summary(index.apply(stored_event(0, 2))) == [("BlocksStored", [0, 1, 2])]
    assert change_summary(index.apply(stored_event(3, 4))) == [("BlocksStored", [3, 4])]
    assert index.depths() == (5, 5, 5, 5)
    assert change_summary(index.apply(removed_event(4), removed_event(3))) == [("BlocksRemoved", [4, 3])]
    assert index.depths() == (3, 3, 3, 3)


def test_a_change_says_what_its_blocks_go_on_from() -> None:
    index = SingleInstanceStore()
    first = index.apply(stored_event(0, 1))
    second = index.apply(stored_event(2, 3))
    assert [one.parent for one in [*first, *second] if isinstance(one, changes.BlocksStored)] == [
        chain_root(MODEL),
        BLOCK_HASHES[1],
    ]


def test_a_block_that_is_there_twice_goes_with_its_second_removal() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2))
    assert index.apply(stored_event(2, 2)) == []
    assert index.apply(removed_event(2)) == []
    assert index.depths()[0] == 3
    assert change_summary(index.apply(removed_event(2))) == [("BlocksRemoved", [2])]


def test_a_store_in_the_middle_of_what_is_known_tells_only_what_is_new() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 4), removed_event(4), removed_event(1))
    assert change_summary(index.apply(stored_event(0, 5))) == [("BlocksStored", [1]), ("BlocksStored", [4, 5])]


def test_removing_what_nobody_knows_is_counted_and_no_error() -> None:
    index = SingleInstanceStore()
    assert index.apply(removed_event(1, 2), removed_event(3, medium="CPU")) == []
    assert index.counts.unknown == 3
    index.apply(stored_event(0, 0))
    index.apply(removed_event(0, medium="CPU"))
    assert index.counts.unknown == 4
    assert index.depths()[0] == 1


def test_more_copies_than_can_be_counted_are_forgotten_too_early_never_too_late() -> None:
    index = SingleInstanceStore()
    index.apply(*[stored_event(0, 0) for _ in range(300)])
    assert index.counts.saturated == 45
    index.apply(*[removed_event(0) for _ in range(300)])
    assert (index.depths()[0], index.counts.unknown) == (0, 45)


def test_hashes_as_bytes_and_signed_numbers_are_handles_like_any_other() -> None:
    index = SingleInstanceStore()
    index.apply(StoredEvent([b"\x01" * 32, -5], None, TOKENS[:4], 2), StoredEvent([2**64 - 1], -5, TOKENS[4:6], 2))
    assert index.depths()[0] == 3
    index.apply(RemovedEvent([2**64 - 5]))  # the same 64 bits
    assert index.depths()[0] == 1


def test_a_parent_of_nought_is_the_start() -> None:
    index = SingleInstanceStore()
    index.apply(StoredEvent([7], 0, TOKENS[:2], 2))
    assert index.depths()[0] == 1


# --- whose block it is --------------------------------------------------------------------------------------------------


def test_a_salt_and_an_adapter_have_blocks_of_their_own() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2))
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


def test_a_salt_that_is_called_like_the_adapter_is_still_a_salt() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 0, lora_name="bot", lora_id=1, extra_keys=[["bot", "bot"]]))
    assert index.depths(block_hashes(chain_root(MODEL, "bot"), TOKENS, 2, block_extras(6, 2, salt="bot")))[0] == 1
    assert index.depths(block_hashes(chain_root(MODEL, "bot"), TOKENS, 2))[0] == 0


def test_models_and_instances_are_apart_and_the_secret_is_part_of_every_name() -> None:
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


def test_two_hashes_for_one_content_are_gone_with_the_second() -> None:
    """An engine that does not announce salts has two names for what looks alike."""
    index = SingleInstanceStore()
    index.apply(stored_event(0, 1, extra_keys=None))
    assert index.apply(stored_event(0, 1, base=2000, extra_keys=None)) == []
    assert index.apply(removed_event(1)) == []
    assert change_summary(index.apply(removed_event(1, base=2000))) == [("BlocksRemoved", [1])]


# --- blocks without a parent --------------------------------------------------------------------------------------------


def test_orphans_wait_for_their_parent_and_for_its() -> None:
    index = SingleInstanceStore()
    assert index.apply(stored_event(4, 5)) == index.apply(stored_event(2, 3)) == []
    assert (index.store.state("i").orphans, index.depths()[0]) == (4, 0)
    told = index.apply(stored_event(0, 1))
    assert change_summary(told) == [("BlocksStored", [0, 1]), ("BlocksStored", [2, 3]), ("BlocksStored", [4, 5])]
    assert (index.store.state("i").orphans, index.counts.linked, index.depths()[0]) == (0, 4, 6)


def test_an_orphan_that_was_removed_while_it_waited_is_not_there_afterwards() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(2, 4), stored_event(2, 2), removed_event(4, 2))
    assert index.counts.unknown == 0
    index.apply(removed_event(4))
    assert index.counts.unknown == 1
    index.apply(stored_event(0, 1))
    assert index.depths()[0] == 4  # block 2 was there twice


def test_orphans_are_bounded_and_the_oldest_go() -> None:
    index = SingleInstanceStore(Limits(kv_orphans_per_instance=4))
    index.apply(stored_event(4, 5), stored_event(2, 3), stored_event(1, 1))
    assert index.store.state("i").orphans == 3
    index.apply(stored_event(0, 0))
    assert index.depths()[0] == 4


def test_orphans_are_bounded_in_bytes() -> None:
    index = SingleInstanceStore(Limits(kv_orphans_bytes=40))
    index.apply(stored_event(4, 5), stored_event(2, 3), stored_event(1, 1, extra_keys=[["x" * 12]]))
    assert index.store.state("i").orphans == 3


def test_a_full_report_of_a_hit_tells_a_late_reader_all() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(3, 3), stored_event(0, 2))
    assert index.depths()[0] == 4


# --- clears and restarts ------------------------------------------------------------------------------------------------


def test_a_clear_drops_all_tiers_and_the_others_are_vague_until_something_of_them_is_seen() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2), stored_event(0, 1, medium="CPU"))
    told = index.apply(ClearedEvent())
    assert [type(one) for one in told] == [changes.InstanceCleared, changes.CompletenessChanged]
    state = index.store.state("i")
    assert (state.complete, state.vague, index.depths()) == (True, (StorageTier.CPU,), (0, 0, 0, 0))
    index.apply(stored_event(0, 0), stored_event(0, 0, medium="CPU"))
    assert index.store.state("i").vague == ()


def test_an_engine_that_names_the_tier_clears_only_that() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2), stored_event(0, 1, medium="CPU"))
    told = change_summary(index.apply(ClearedEvent("CPU")))
    assert [(kind, sorted(blocks)) for kind, blocks in told] == [("BlocksRemoved", [0, 1])]
    assert index.depths() == (3, 3, 3, 3)


def test_our_own_clear_counts_at_once_and_what_was_under_way_does_not() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2))
    told = index.store.on_cleared_by_fairlead("i", index.now)
    assert change_summary(told)[0] == ("InstanceCleared", [])
    assert index.apply(stored_event(3, 5), stored_event(0, 0), seconds=0.5) == []
    assert index.counts.before_clear == 2
    told = index.apply(stored_event(3, 3), ClearedEvent(), stored_event(0, 1), seconds=600.0)
    assert index.depths()[0] == 2
    assert index.apply(stored_event(2, 2)) != []


def test_our_own_clear_that_the_engine_did_not_make_after_all_is_waited_for_two_seconds() -> None:
    index = SingleInstanceStore()
    index.store.on_cleared_by_fairlead("i", index.now)
    assert index.apply(stored_event(0, 0), seconds=1.9) == []
    assert index.store.state("i").complete
    assert index.apply(stored_event(0, 1), seconds=0.2) != []


def test_an_engine_that_never_tells_of_our_own_clear_may_still_hold_what_it_had() -> None:
    """Seen of a vLLM that was put to sleep: it said yes, told of nothing, and found 96 tokens of before in its cache."""
    index = SingleInstanceStore()
    index.store.on_complete("i", "the first batch that the engine published", 0.0)
    index.apply(stored_event(0, 2))
    index.store.on_cleared_by_fairlead("i", index.now)
    index.apply(stored_event(3, 5), seconds=600.0)
    state = index.store.state("i")
    assert (state.complete, state.blocks) == (False, 0)
    assert "never reported" in state.reason
    index.apply(ClearedEvent(), stored_event(0, 1))
    assert index.store.state("i").complete


def test_an_engine_that_was_quicker_than_our_answer_is_not_waited_for() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2))
    index.apply(ClearedEvent())
    index.store.on_cleared_by_fairlead("i", index.now + 0.1)
    index.apply(stored_event(0, 1), seconds=0.2)
    assert index.depths()[0] == 2


def test_a_restart_begins_an_epoch_in_which_old_handles_mean_nothing() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2))
    told = index.store.on_restarted("i", "the numbers went back", 5.0)
    assert [type(one) for one in told] == [changes.InstanceCleared, changes.CompletenessChanged]
    assert index.store.state("i").epoch == 2
    index.apply(removed_event(0))
    assert index.counts.unknown == 1
    index.apply(stored_event(3, 3))
    assert (index.depths()[0], index.store.state("i").orphans) == (0, 1)


def test_what_was_lost_takes_what_was_held_with_it() -> None:
    index = SingleInstanceStore()
    index.store.on_complete("i", "the first batch that the engine published", 0.0)
    index.apply(stored_event(0, 2))
    index.store.on_lost("i", "the replay starts later than requested (4 to 9)", 7.0)
    state = index.store.state("i")
    assert (state.complete, state.since, state.blocks) == (False, 7.0, 0)
    assert "4 to 9" in state.reason


def test_a_stream_that_broke_off_is_not_trusted_until_it_goes_on() -> None:
    index = SingleInstanceStore()
    index.store.on_complete("i", "the first batch that the engine published", 0.0)
    index.apply(stored_event(0, 2))
    index.store.on_suspended("i", "disconnected", 5.0)
    state = index.store.state("i")
    assert (state.complete, state.reason, state.blocks) == (False, "disconnected", 3)
    index.store.on_resumed("i")
    state = index.store.state("i")
    assert (state.complete, state.since, index.depths()[0]) == (True, 0.0, 3)


def test_a_clear_while_the_stream_is_broken_off_counts_when_it_goes_on() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2))
    index.store.on_suspended("i", "disconnected", 5.0)
    index.store.on_cleared_by_fairlead("i", 5.5)
    assert (index.store.state("i").complete, index.depths()[0]) == (False, 0)
    index.store.on_resumed("i")
    assert index.store.state("i").complete


# --- ages and memory ----------------------------------------------------------------------------------------------------


def test_ages_follow_what_was_stored_and_used() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 1), seconds=0.0)
    index.apply(stored_event(2, 2), seconds=48.0)
    assert [index.store.age_seconds("i", own, 48.0) for own in BLOCK_HASHES[:4]] == [0.0, 0.0, 0.0, None]
    index.apply(stored_event(0, 0, base=5000, extra_keys=[["other"]]), seconds=48.0)
    assert index.store.age_seconds("i", BLOCK_HASHES[0], 96.0) == 48.0
    index.store.touch("i", BLOCK_HASHES[:2], 96.0)
    assert [index.store.age_seconds("i", own, 96.0) for own in BLOCK_HASHES[:3]] == [0.0, 0.0, 48.0]


def test_how_long_an_engine_keeps_what_is_not_used_is_learned_from_what_it_evicts() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 5), seconds=0.0)
    assert index.store.state("i").evicted_age_seconds is None
    index.apply(removed_event(5), seconds=64.0)
    assert index.store.state("i").evicted_age_seconds == 64.0
    index.apply(removed_event(4), seconds=32.0)
    assert index.store.state("i").evicted_age_seconds == pytest.approx(64.0 + 32.0 * 0.05)


def test_our_own_clear_of_a_process_that_is_gone_says_nothing_of_the_next() -> None:
    index = SingleInstanceStore()
    index.store.on_cleared_by_fairlead("i", index.now)
    index.store.on_complete("i", "the first batch that the engine published", index.now)
    assert index.apply(stored_event(0, 0), seconds=0.1) != []


def test_beyond_its_bound_an_instance_forgets_what_is_oldest_ends_first_and_says_so() -> None:
    index = SingleInstanceStore(Limits(kv_blocks_per_instance=6))
    index.store.on_complete("i", "the first batch that the engine published", 0.0)
    index.apply(stored_event(0, 5), seconds=0.0)
    index.store.touch("i", BLOCK_HASHES[:3], 50.0)
    told = index.apply(stored_event(0, 0, base=5000, extra_keys=[["other"]]), seconds=60.0)
    assert ("BlocksRemoved", [5]) in change_summary(told)
    state = index.store.state("i")
    assert (state.complete, state.counts.dropped, state.blocks, index.depths()[0]) == (False, 1, 6, 5)
    assert index.store.block_count == 6
    index.apply(ClearedEvent())
    assert index.store.state("i").complete


def test_beyond_the_bound_of_all_the_one_that_holds_most_forgets() -> None:
    index = SingleInstanceStore(Limits(kv_blocks=8))
    index.store.attach("other", MODEL, 0.0)
    index.apply(stored_event(0, 5))
    index.apply(stored_event(0, 1), instance="other")
    index.apply(stored_event(2, 2), instance="other")
    assert (index.depths()[0], index.depths(instance="other")[0], index.store.block_count) == (5, 3, 8)


def test_an_instance_that_is_gone_leaves_nothing() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 5))
    assert index.store.detach("i", "its pod is gone") == [
        changes.InstanceCleared("i", 1, "its pod is gone"),
        changes.InstanceDetached("i"),
    ]
    assert (index.store.block_count, index.store.bytes, "i" in index.store) == (0, 0, False)
    with pytest.raises(KeyError):
        index.store.state("i")
