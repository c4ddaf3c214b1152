"""The recently used blocks of a gateway."""

from fairlead_gateway.prefix_map.translator import RecentBlocks


def test_block_counts_as_used_for_one_to_two_periods() -> None:
    recent = RecentBlocks(max_blocks=100, seconds=10.0)
    recent.add([1], 0.0)
    recent.add([2], 9.0)
    assert recent.blocks(9.9) == {1, 2}
    recent.add([3], 12.0)  # a new generation: those of the last one still count
    assert recent.blocks(18.9) == {1, 2, 3}
    assert recent.blocks(22.5) == {3}
    assert recent.blocks(60.0) == set()


def test_used_blocks_are_bounded_and_drop_the_older_half() -> None:
    recent = RecentBlocks(max_blocks=20, seconds=1_000.0)
    for number in range(100):
        recent.add([number], float(number) / 100)
    blocks = recent.blocks(1.0)
    assert len(blocks) <= 21
    assert {95, 96, 97, 98, 99} <= blocks
