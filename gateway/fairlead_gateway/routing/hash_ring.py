"""Consistent hashing with two rings: the two homes of a prefix.

Each ring places every member at `weight` × 96 points. They are computed from the installation's
secret, the number of the ring and the member's id. The home of a key is the first point at or after
its hash. If both rings name the same member, the second home is the next other member on its ring.

Each of n members is a home of 2/n of the pairs. A member that comes or goes changes just those: 2/9
from eight to nine on average, 0.20 to 0.26 for a single secret.

Source: DualMap (arXiv 2602.06502) uses two rings of different hash functions. Changed: one keyed
function with two keys. So clients cannot compute homes, and all workers and replicas with the same
secret compute the same ones.
"""

from bisect import bisect_left
from collections.abc import Hashable, Mapping
from typing import Final

import xxhash

from fairlead_gateway.routing.request import NO_INSTANCES

POINTS_PER_MEMBER: Final = 96
_MAX_CACHED_PAIRS: Final = 4_096
"""So many pairs are cached: the next turn of a conversation needs the same one."""


class HashRing:
    """One consistent-hash ring over `weights` (member id → weight > 0). Immutable."""

    def __init__(self, weights: Mapping[str, float], *, key: bytes) -> None:
        placed: list[tuple[int, str]] = []
        for member, weight in sorted(weights.items()):
            for point in range(max(1, round(POINTS_PER_MEMBER * weight))):
                digest = xxhash.xxh3_64_intdigest(key + member.encode() + b"#" + str(point).encode())
                placed.append((digest, member))
        placed.sort()
        self._points = [digest for digest, _ in placed]
        self._members = [member for _, member in placed]

    def home(self, digest: int, *, excluded: frozenset[str] = NO_INSTANCES) -> str | None:
        """Returns the first member at or after `digest` that is not excluded; None if there is
        none.
        """
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
    """The two rings that give each key its homes.

    `pair` is a pure function of secret, weighted members and key.
    """

    def __init__(self, weights: Mapping[str, float], *, secret: bytes) -> None:
        self._first = HashRing(weights, key=secret + b"|ring-1|")
        self._second = HashRing(weights, key=secret + b"|ring-2|")
        self._secret = secret
        self._has_one_member = len(weights) == 1
        self._cached_pairs: dict[Hashable, tuple[str, ...]] = {}

    def pair(self, key: Hashable, *, excluded: frozenset[str] = NO_INSTANCES) -> tuple[str, ...]:
        """Returns the homes of a 64-bit key: two different members, or as many as there are."""
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
        if self._has_one_member:
            return (first,)
        second_digest = xxhash.xxh3_64_intdigest(raw, 2)
        second = self._second.home(second_digest, excluded=excluded)
        if second == first:
            second = self._second.home(second_digest, excluded=excluded | {first})
        return (first,) if second is None else (first, second)
