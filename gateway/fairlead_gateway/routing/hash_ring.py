"""Two independent consistent-hash rings: every key gets two homes, and a member's coming or going moves few of them.

Each ring places every member at ``weight`` × 96 points computed from the installation's secret, the ring's number
and the member's id; a key's home is the first point at or after its hash. When both rings name the same member, the
second home is the next other member on its ring. So each of n members is a home of 2/n of the pairs, and one that comes
or goes changes just those: 2/9 from eight to nine on average over secrets, 0.20 to 0.26 for one, as its points fell.
Source: DualMap (arXiv 2602.06502) uses two rings of different hash
functions; ours are one keyed function with two keys, so that nobody outside can compute homes, and every worker and
replica with the same secret computes the same ones.
"""

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from typing import Final

import xxhash

POINTS_PER_MEMBER: Final = 96
_MAX_CACHED_PAIRS: Final = 4_096
"""So many keys' homes are remembered: the next turn of a conversation asks for the same ones."""
_NOBODY: frozenset[str] = frozenset()


class HashRing:
    """One ring over ``weights`` (member id → capacity weight > 0); immutable, rebuilt when members change."""

    def __init__(self, weights: Mapping[str, float], *, key: bytes) -> None:
        placed: list[tuple[int, str]] = []
        for member, weight in sorted(weights.items()):
            for point in range(max(1, round(POINTS_PER_MEMBER * weight))):
                digest = xxhash.xxh3_64_intdigest(key + member.encode() + b"#" + str(point).encode())
                placed.append((digest, member))
        placed.sort()
        self._points = [digest for digest, _ in placed]
        self._members = [member for _, member in placed]

    def home(self, digest: int, *, excluded: frozenset[str] = _NOBODY) -> str | None:
        """The first member at or after ``digest`` that is not in ``other_than``; None when there is none."""
        count = len(self._points)
        start = bisect_left(self._points, digest)
        if not excluded and count:
            return self._members[start if start < count else 0]
        for offset in range(count):
            member = self._members[(start + offset) % count]
            if member not in excluded:
                return member
        return None


class HomeRings:
    """Both rings. ``pair`` is a pure function of the secret, the members with their weights, and the key."""

    def __init__(self, weights: Mapping[str, float], *, secret: bytes) -> None:
        self._first = HashRing(weights, key=secret + b"|ring-1|")
        self._second = HashRing(weights, key=secret + b"|ring-2|")
        self._secret = secret
        self._cached_pairs: dict[Hashable, tuple[str, ...]] = {}

    def pair(self, key: Hashable, *, excluded: frozenset[str] = _NOBODY) -> tuple[str, ...]:
        """The homes of ``key``, a 64-bit number: two different members, one when only one is left, none when none is."""
        if excluded:
            return self._compute_pair(key, excluded)
        homes = self._cached_pairs.get(key)
        if homes is None:
            homes = self._compute_pair(key, excluded)
            if len(self._cached_pairs) >= _MAX_CACHED_PAIRS:
                self._cached_pairs.clear()
            self._cached_pairs[key] = homes
        return homes

    def _compute_pair(self, key: Hashable, excluded: frozenset[str]) -> tuple[str, ...]:
        assert isinstance(key, int)
        raw = key.to_bytes(8, "big") + self._secret
        first = self._first.home(xxhash.xxh3_64_intdigest(raw, 1), excluded=excluded)
        if first is None:
            return ()
        second_digest = xxhash.xxh3_64_intdigest(raw, 2)
        second = self._second.home(second_digest, excluded=excluded)
        if second == first:
            second = self._second.home(second_digest, excluded=excluded | {first})
        return (first,) if second is None else (first, second)
