"""The homes: two, different, stable when members come and go, unpredictable without the secret."""

from collections import Counter
from random import Random

from fairlead_gateway.routing.ring import Homes

MEMBERS = {f"pod-{n}": 1.0 for n in range(8)}
DRAW = Random(7)
KEYS = [DRAW.getrandbits(64) for _ in range(20_000)]


def test_every_key_has_two_different_homes() -> None:
    homes = Homes(MEMBERS, secret=b"s")
    assert all(len(set(homes.pair(key))) == 2 for key in KEYS)


def test_one_member_is_its_only_home_and_none_has_no_home() -> None:
    assert Homes({"a": 1.0}, secret=b"s").pair(1) == ("a",)
    assert Homes({}, secret=b"s").pair(1) == ()


def test_one_member_more_or_less_moves_at_most_two_ninths_of_the_pairs() -> None:
    eight, nine = Homes(MEMBERS, secret=b"s"), Homes({**MEMBERS, "pod-8": 1.0}, secret=b"s")
    moved = sum(eight.pair(key) != nine.pair(key) for key in KEYS) / len(KEYS)
    assert 0.15 < moved <= 2 / 9 + 0.02


def test_a_key_that_moves_moves_to_the_new_member_only() -> None:
    eight, nine = Homes(MEMBERS, secret=b"s"), Homes({**MEMBERS, "pod-8": 1.0}, secret=b"s")
    for key in KEYS[:5_000]:
        before, after = eight.pair(key), nine.pair(key)
        assert after == before or "pod-8" in after


def test_homes_spread_evenly() -> None:
    homes = Homes(MEMBERS, secret=b"s")
    seen = Counter(home for key in KEYS for home in homes.pair(key))
    mean = sum(seen.values()) / len(seen)
    assert max(seen.values()) < 1.4 * mean


def test_weight_is_a_share_of_the_keys() -> None:
    homes = Homes({"big": 3.0, "a": 1.0, "b": 1.0, "c": 1.0}, secret=b"s")
    first = Counter(homes.pair(key)[0] for key in KEYS)
    assert 0.4 < first["big"] / len(KEYS) < 0.6


def test_the_pair_of_another_secret_is_unrelated() -> None:
    ours, theirs = Homes(MEMBERS, secret=b"s"), Homes(MEMBERS, secret=b"t")
    same = sum(ours.pair(key) == theirs.pair(key) for key in KEYS) / len(KEYS)
    assert same < 0.05


def test_an_excluded_member_is_nobodys_home() -> None:
    homes = Homes(MEMBERS, secret=b"s")
    gone = frozenset({"pod-3"})
    assert all("pod-3" not in homes.pair(key, other_than=gone) for key in KEYS[:1_000])
