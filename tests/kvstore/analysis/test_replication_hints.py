"""Replication hints for hot prefixes, from shares, rates and holders."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead_kvstore.analysis.replication_hints import (
    HotPrefix,
    decode_replication_hints,
    encode_replication_hints,
    replication_hints,
)

HOTS = st.lists(
    st.builds(
        HotPrefix,
        st.integers(1, 2**64 - 1),
        st.floats(0.0, 1.0),
        st.floats(0.0, 1e4),
        st.integers(0, 1_000_000),
        st.integers(0, 64),
    ),
    max_size=40,
)


def test_prefix_of_half_the_prompts_needs_half_of_the_instances() -> None:
    (hint,) = replication_hints([HotPrefix(7, 0.5, 10.0, 2_000, 2)], ready=8, incomplete=0, max_hints=16)
    assert (hint.wanted, hint.holders, hint.prefix) == (4, 2, "0000000000000007")
    assert hint.worth == 10.0 * 2_000 * 0.5
    assert hint.reason == "50% of the prompts begin with it, the share of 4 of 8 instances; 2 have it cached"


def test_prefix_with_enough_holders_gets_no_hint() -> None:
    assert (
        replication_hints(
            [HotPrefix(7, 0.5, 10.0, 2_000, 4), HotPrefix(8, 0.24, 5.0, 100, 2)], ready=8, incomplete=0, max_hints=16
        )
        == []
    )


def test_wanted_holders_never_exceed_instances() -> None:
    (hint,) = replication_hints([HotPrefix(7, 1.0, 10.0, 2_000, 1)], ready=3, incomplete=1, max_hints=16)
    assert hint.wanted == 3
    assert hint.reason.endswith("1 have it cached, 1 are incomplete")
    assert replication_hints([HotPrefix(7, 1.0, 10.0, 2_000, 0)], ready=0, incomplete=0, max_hints=16) == []


def test_hints_are_ordered_by_worth_and_bounded() -> None:
    given_ = [HotPrefix(number, 0.9, 1.0, number, 1) for number in range(1, 30)]
    found = replication_hints(given_, ready=4, incomplete=0, max_hints=5)
    assert [hint.tokens for hint in found] == [29, 28, 27, 26, 25]


@given(HOTS, st.integers(0, 64), st.integers(0, 20))
def test_every_hint_lacks_holders_and_survives_encoding(hot: list[HotPrefix], ready: int, most: int) -> None:
    found = replication_hints(hot, ready, 0, most)
    assert len(found) <= most
    assert all(hint.holders < hint.wanted <= ready and hint.worth >= 0.0 for hint in found)
    assert [hint.worth for hint in found] == sorted((hint.worth for hint in found), reverse=True)
    back = decode_replication_hints(encode_replication_hints(found, 5.0))
    assert back is not None
    assert (back.hints, back.wall) == (found, 5.0)


@given(st.binary(max_size=100))
def test_damaged_hints_decode_to_none(data: bytes) -> None:
    for prefix in (b"", b"\x01", b"\x02"):
        found = decode_replication_hints(prefix + data)
        assert found is None or isinstance(found.hints, list)
    assert decode_replication_hints(None) is None
