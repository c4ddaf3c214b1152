"""Tiers and groups of blocks, as connectors and hybrid models report them."""

import pytest

from fairlead.limits import Limits
from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, chain_root
from fairlead_kvstore.events.payloads import RemovedEvent, StoredEvent
from fairlead_testing.kvstore.block_store import (
    MODEL,
    TOKENS,
    SingleInstanceStore,
    change_summary,
    removed_event,
    stored_event,
)

# --- tiers --------------------------------------------------------------------------------------------------------------


def test_offloaded_blocks_take_the_block_hash_of_their_handle() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2, extra_keys=[["acme"], None, None]))
    index.apply(*[stored_event(number, number, medium="CPU", extra_keys=None) for number in range(3)])
    salted = block_hashes(chain_root(MODEL), TOKENS, 2, block_extras(6, 2, salt="acme"))
    assert index.depths() == (0, 0, 0, 0)
    index.apply(removed_event(2), removed_event(1))
    assert index.depths(salted) == (1, 3, 3, 3)
    assert change_summary(index.apply(removed_event(0, 1, 2, medium="CPU")))[0][0] == "BlocksRemoved"
    assert index.depths(salted) == (1, 1, 1, 1)


def test_offloaded_blocks_of_unknown_content_are_counted_not_credited() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(5, 5, base=9000))  # this engine names extra keys
    assert index.apply(stored_event(0, 1, medium="CPU", extra_keys=None)) == []
    assert (index.counts.unnamed, index.depths()) == (2, (0, 0, 0, 0))


def test_blocks_of_an_engine_without_extra_keys_are_credited() -> None:
    index = SingleInstanceStore()
    index.apply(
        StoredEvent([1], None, TOKENS[:2], 2, None, "GPU"), StoredEvent([2], 1, TOKENS[2:4], 2, None, "CPU_PINNED")
    )
    assert index.depths() == (1, 2, 2, 2)


def test_slower_tier_fills_the_gaps_of_the_faster_one() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 5), stored_event(2, 3, medium="CPU"), stored_event(4, 4, medium="DISK"))
    index.apply(removed_event(2, 3, 4, 5))
    assert index.depths() == (2, 4, 5, 5)


def test_shared_store_is_an_expiring_hint_for_all_members() -> None:
    index = SingleInstanceStore(Limits(kv_shared_seconds=100.0))
    index.store.attach("other", MODEL, 0.0)
    index.apply(stored_event(0, 2))
    told = index.apply(*[stored_event(number, number, medium="cpu", extra_keys=None) for number in range(3)])
    assert change_summary(told) == [("HintsAdded", [0, 1, 2])]
    index.apply(removed_event(0, 1, 2))
    assert index.depths() == index.depths(instance="other") == (0, 0, 0, 3)
    assert index.store.expire(index.now + 10) == []
    assert change_summary(index.store.expire(index.now + 100)) == [("HintsExpired", [0, 1, 2])]
    assert index.depths(instance="other") == (0, 0, 0, 0)


def test_shared_store_hint_is_not_repeated_early() -> None:
    index = SingleInstanceStore(Limits(kv_shared_seconds=100.0))
    index.apply(stored_event(0, 0))
    again = stored_event(0, 0, medium="cpu", extra_keys=None)
    kinds = [[name for name, _ in change_summary(index.apply(again, seconds=30.0))] for _ in range(4)]
    assert kinds == [["HintsAdded"], [], ["HintsAdded"], []]


def test_restart_keeps_hints_of_the_shared_store() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 2), stored_event(0, 0, medium="cpu", extra_keys=None))
    index.store.on_restarted("i", "the numbers went back", 9.0)
    assert index.depths() == (0, 0, 0, 1)
    index.store.detach("i", "gone")
    index.store.attach("i", MODEL, 10.0)
    assert index.depths() == (0, 0, 0, 0)


def test_hints_are_bounded_and_the_oldest_are_dropped() -> None:
    index = SingleInstanceStore(Limits(kv_shared_blocks=2))
    index.apply(stored_event(0, 2))
    told = index.apply(*[stored_event(number, number, medium="cpu", extra_keys=None) for number in range(3)])
    assert change_summary(told)[-1] == ("HintsExpired", [0])


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
    index = SingleInstanceStore()
    index.apply(StoredEvent([1], None, TOKENS[:2], 2, None, medium, locality=locality))
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
    assert (index.store.state("i").hybrid, index.counts.other_groups) == (True, 3)


def test_model_without_full_attention_is_not_credited() -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 3, kv_cache_spec_kind="sliding_window"))
    assert (index.depths()[0], index.store.state("i").hybrid) == (0, True)


@pytest.mark.parametrize("kind", [None, "unknown", "full_attention", "mla_attention", "sink_full_attention"])
def test_attention_kinds_that_count(kind: str | None) -> None:
    index = SingleInstanceStore()
    index.apply(stored_event(0, 1, kv_cache_spec_kind=kind))
    assert (index.depths()[0], index.store.state("i").hybrid) == (2, False)
