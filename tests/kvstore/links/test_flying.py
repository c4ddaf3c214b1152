"""What is on its way to an instance."""

from fairlead_kvstore.links.flying import Flying


def test_a_block_is_on_its_way_until_the_last_prompt_with_it_is_answered() -> None:
    flying = Flying()
    flying.take_off([1, 2, 3])
    flying.take_off([1, 2, 4])
    flying.land([1, 2, 3])
    assert [block in flying for block in (1, 2, 3, 4)] == [True, True, False, True]
    flying.land([1, 2, 4])
    assert len(flying) == 0


def test_what_never_took_off_lands_without_harm() -> None:
    flying = Flying()
    flying.land([7])
    flying.take_off([7])
    assert 7 in flying
