"""The block pool: keys, references, eviction order and events."""

from fairlead_sim.engine.block_pool import BlockEvicted, BlockPool, BlocksStored, CacheCleared, block_keys


def stored(*keys: int) -> BlocksStored:
    return BlocksStored(keys=keys, parent=None, tokens=None, block_tokens=4)


def fill(pool: BlockPool, *keys: int) -> list[int]:
    blocks = [block for _ in keys if (block := pool.allocate()) is not None]
    pool.register(blocks, keys, stored(*keys))
    return blocks


def test_only_full_blocks_have_keys() -> None:
    assert [len(block_keys(range(count), 16)) for count in (0, 15, 16, 31, 32)] == [0, 0, 1, 1, 2]


def test_a_longer_prompt_has_the_keys_of_the_shorter_one_first() -> None:
    assert block_keys(range(100), 16)[:3] == block_keys(range(48), 16)


def test_a_change_changes_its_block_and_all_behind() -> None:
    changed = [*range(20), 7, *range(21, 64)]
    before, after = block_keys(range(64), 16), block_keys(changed, 16)
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, False, False]


def test_salt_and_adapter_make_disjoint_keys() -> None:
    kinds = [{}, {"salt": "a"}, {"adapter": "a"}, {"salt": ""}, {"salt": "b", "adapter": "a"}, {"adapter": "ab"}]
    chains = [block_keys(range(64), 16, **kind) for kind in kinds]
    assert len({key for chain in chains for key in chain}) == 4 * len(kinds)


def test_the_block_unused_longest_goes_first_and_tails_before_heads() -> None:
    pool = BlockPool(6, 4)
    old, new = fill(pool, 1, 2, 3), fill(pool, 11, 12, 13)
    pool.release(old)
    pool.release(new)
    for _ in range(4):
        pool.allocate()
    assert [event.key for event in pool.drain_events() if isinstance(event, BlockEvicted)] == [3, 2, 1, 13]


def test_a_hit_makes_a_block_young_again() -> None:
    pool = BlockPool(2, 4)
    first, second = fill(pool, 1), fill(pool, 2)
    pool.release(first)
    pool.release(second)
    pool.acquire(first)
    pool.release(first)
    pool.allocate()
    assert pool.match([1], 1)
    assert not pool.match([2], 1)


def test_empty_blocks_are_taken_before_any_kept_one() -> None:
    pool = BlockPool(3, 4)
    pool.release(fill(pool, 1, 2))
    pool.allocate()
    assert pool.match([1, 2], 2)


def test_held_blocks_are_never_taken() -> None:
    pool = BlockPool(2, 4)
    fill(pool, 1, 2)
    assert pool.allocate() is None


def test_a_match_stops_at_the_first_gap_and_at_its_limit() -> None:
    pool = BlockPool(4, 4)
    fill(pool, 1, 2, 4)
    assert len(pool.match([1, 2, 3, 4], 4)) == 2
    assert len(pool.match([1, 2, 3, 4], 1)) == 1


def test_a_second_copy_is_announced_and_removed_by_itself() -> None:
    pool = BlockPool(2, 4)
    first, second = fill(pool, 1), fill(pool, 1)
    assert pool.resident == 2
    pool.release(first)
    pool.allocate()
    assert pool.match([1], 1) == second
    pool.release(second)
    pool.allocate()
    assert not pool.match([1], 1)
    assert pool.drain_events() == [stored(1), stored(1), BlockEvicted(1), BlockEvicted(1)]


def test_the_younger_copy_may_go_first() -> None:
    pool = BlockPool(2, 4)
    first, second = fill(pool, 1), fill(pool, 1)
    pool.release(second)
    pool.allocate()
    assert pool.match([1], 1) == first


def test_clearing_needs_every_block_let_go() -> None:
    pool = BlockPool(2, 4)
    blocks = fill(pool, 1)
    assert not pool.clear()
    pool.release(blocks)
    assert pool.clear()
    assert pool.allocatable == 2
    assert pool.resident == 0
    assert pool.drain_events()[-1] == CacheCleared()
