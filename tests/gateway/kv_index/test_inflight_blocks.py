"""Blocks that are in flight to an instance."""

from fairlead_gateway.kv_index.translator import InflightBlocks


def test_a_block_is_on_its_way_until_the_last_prompt_with_it_is_answered() -> None:
    flying = InflightBlocks()
    flying.add([1, 2, 3])
    flying.add([1, 2, 4])
    flying.remove([1, 2, 3])
    assert [block in flying for block in (1, 2, 3, 4)] == [True, True, False, True]
    flying.remove([1, 2, 4])
    assert not any(block in flying for block in (1, 2, 3, 4))


def test_what_never_took_off_lands_without_harm() -> None:
    flying = InflightBlocks()
    flying.remove([7])
    flying.add([7])
    assert 7 in flying
