"""The homes: two, different, stable when members change, unpredictable without the secret."""

import math
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from fairlead_gateway.routing.hash_ring import POINTS_PER_MEMBER, HomeRings

MEMBERS = {f"pod-{n}": 1.0 for n in range(8)}
DRAW = Random(7)
KEYS = [DRAW.getrandbits(64) for _ in range(20_000)]


def test_every_key_has_two_different_homes() -> None:
    homes = HomeRings(MEMBERS, secret=b"s")
    assert all(len(set(homes.pair(key))) == 2 for key in KEYS)


def test_one_member_is_its_only_home_and_none_has_no_home() -> None:
    assert HomeRings({"a": 1.0}, secret=b"s").pair(1) == ("a",)
    assert HomeRings({}, secret=b"s").pair(1) == ()


SECRETS = [f"secret {number}".encode() for number in range(24)]


def moved(rings: HomeRings, other: HomeRings, keys: Sequence[int]) -> float:
    return sum(rings.pair(key) != other.pair(key) for key in keys) / len(keys)


@pytest.mark.parametrize("members", [4, 8, 16])
def test_one_member_more_or_less_changes_its_share_of_the_pairs(members: int) -> None:
    """The share is 2/n of n members, the best for two balanced homes.

    It holds on average over secrets, and for each secret as its 96 points fall.
    """
    few, many = {f"pod-{n}": 1.0 for n in range(members)}, {f"pod-{n}": 1.0 for n in range(members + 1)}
    seen = [moved(HomeRings(few, secret=each), HomeRings(many, secret=each), KEYS[:4_000]) for each in SECRETS]
    share = 2 / (members + 1)
    assert sum(seen) / len(seen) <= 1.03 * share
    assert (
        max(seen) <= (1 + 4 / math.sqrt(2 * POINTS_PER_MEMBER)) * share
    )  # four times what the draw of points makes of it


def test_a_key_that_moves_moves_to_the_new_member_only() -> None:
    eight, nine = HomeRings(MEMBERS, secret=b"s"), HomeRings({**MEMBERS, "pod-8": 1.0}, secret=b"s")
    for key in KEYS[:5_000]:
        before, after = eight.pair(key), nine.pair(key)
        assert after == before or "pod-8" in after


def test_homes_spread_evenly() -> None:
    homes = HomeRings(MEMBERS, secret=b"s")
    seen = Counter(home for key in KEYS for home in homes.pair(key))
    mean = sum(seen.values()) / len(seen)
    assert max(seen.values()) < 1.4 * mean


def test_weight_is_a_share_of_the_keys() -> None:
    homes = HomeRings({"big": 3.0, "a": 1.0, "b": 1.0, "c": 1.0}, secret=b"s")
    assert 0.4 < Counter(homes.pair(key)[0] for key in KEYS)["big"] / len(KEYS) < 0.6


def test_the_pair_of_another_secret_is_unrelated() -> None:
    ours, theirs = HomeRings(MEMBERS, secret=b"s"), HomeRings(MEMBERS, secret=b"t")
    assert sum(ours.pair(key) == theirs.pair(key) for key in KEYS) / len(KEYS) < 0.05


def test_an_excluded_member_is_no_home() -> None:
    homes = HomeRings(MEMBERS, secret=b"s")
    gone = frozenset({"pod-3"})
    assert all("pod-3" not in homes.pair(key, excluded=gone) for key in KEYS[:1_000])
