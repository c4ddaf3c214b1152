"""Who should hold how much of a prompt: what this gateway sent where, what the index says, and who of several is asked.

Every ready instance is a ``Place`` with one bit for what it should hold by all that is known, and one for what the index says.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Final

from fairlead.fleet import Pull
from fairlead.profile import EngineProfile
from fairlead_gateway.routing.glimpses import Glimpses
from fairlead_gateway.routing.ledger import Tally
from fairlead_gateway.routing.prefix import BYTES_PER_TOKEN, PrefixChain, block_ends
from fairlead_gateway.routing.request import RouteRequest
from fairlead_kvstore.mirror import Matched, PrefixMirror

_BYTES_PER_TOKEN: Final = float(BYTES_PER_TOKEN)
_INDEXED: Final = "\0"
_ENDLESS: Final = 1 << 60
"""What the index told of an instance is held in the mirror under its id and this, without a capacity: engines tell what they
evict."""
Knows = Callable[[RouteRequest], Mapping[str, float] | None]
"""Somebody who knows better: prompt tokens of a request that are cached, by instance; None where he knows nothing."""


class Place:
    """A ready instance with what a decision asks about it. ``bit`` finds what it should hold by all that is known, ``indexed`` (0:
    the index says nothing of it) what it holds by the index."""

    __slots__ = ("bit", "id", "indexed", "kv_tokens", "profile", "pull", "tally")

    def __init__(
        self, id: str, profile: EngineProfile, tally: Tally, bit: int, indexed: int, pull: Pull | None
    ) -> None:
        self.pull = pull
        self.id = id
        self.profile = profile
        self.kv_tokens = profile.kv_tokens
        self.tally = tally
        self.bit = bit | indexed
        self.indexed = indexed


class Holdings:
    """The mirror of one model, and the places it is asked for. ``knows`` takes the mirror's place where it is given."""

    def __init__(self, blocks_most: int, knows: Knows | None = None) -> None:
        self._mirror = PrefixMirror(blocks_most)
        self._knows = knows
        self._by_bit: dict[int, Place] = {}
        self._by_id: dict[str, Place] = {}
        self._bits = 0
        self._asked: RouteRequest | None = None  # whose match is in ``_found``
        self._found = Matched()

    def __len__(self) -> int:
        return len(self._mirror)

    def keep_only(self, living: Sequence[str]) -> None:
        """Those that are neither ready nor draining have lost their cache."""
        self._mirror.keep_only({*living, *[item + _INDEXED for item in living]})

    def place(self, instance: str, profile: EngineProfile, tally: Tally, pull: Pull | None) -> Place:
        """A ready instance."""
        mirror = self._mirror
        return Place(instance, profile, tally, mirror.hold(instance), mirror.bit(instance + _INDEXED), pull)

    def ready(self, places: Mapping[str, Place]) -> None:
        """These are ready, and no others. Both bits of an instance lead to it."""
        found: dict[int, Place] = {}
        for place in places.values():
            found[place.bit ^ place.indexed] = place
            if place.indexed:
                found[place.indexed] = place
        self._by_bit = found
        self._by_id = dict(places)
        self._bits = sum(found)

    def bit(self, instance: str) -> int:
        """Of an instance that is not ready any more; 0 when nothing is known of it."""
        return self._mirror.bit(instance)

    def held_bytes(self, place: Place) -> int:
        """All that an instance should have in its cache, as prompt text."""
        return self._mirror.size(place.id)

    def forget_asked(self) -> None:
        """What was found is of another request, or of another moment."""
        self._asked = None

    def matched(self, request: RouteRequest) -> Matched:
        """What of the prompt each instance holds, in bytes."""
        if self._asked is not request:  # it is at the dispatch of what has just been decided
            tokens = None if self._knows is None else self._knows(request)
            if tokens is None:
                self._found = self._mirror.matched(request.chain.hashes, request.chain.ends)
            else:
                self._found = self._known(tokens)
            self._asked = request
        return self._found

    def _known(self, tokens: Mapping[str, float]) -> Matched:
        found = Matched()
        for instance, held in sorted(tokens.items(), key=_by_tokens):
            place = self._by_id.get(instance)
            if place is not None and held > 0.0:
                size = int(held * _BYTES_PER_TOKEN)
                if not found.reached or found.reached[-1] != size:
                    found.reached.append(size)
                    found.masks.append(0)
                found.masks[-1] |= place.bit
        return found

    def most(self, request: RouteRequest) -> int:
        """Bytes of the prompt that the instance which holds most of it holds."""
        found = self.matched(request)
        index = len(found.masks)
        while index:
            index -= 1
            if found.masks[index] & self._bits:
                return found.reached[index]
        return 0

    def holder(
        self, found: Matched, prompt: float, rate: float, places: list[Place] | None, glimpses: Glimpses
    ) -> Place | None:
        """The least busy of those that hold the longest prefix, among ``places`` or (None) all. ``rate`` is tokens of a byte."""
        usable = self._bits if places is None else sum([place.bit for place in places])
        longest = least = 0.0
        best: Place | None = None
        index = len(found.masks)
        while index:
            index -= 1
            mask = found.masks[index] & usable
            if not mask:
                continue
            tokens = min(prompt, found.reached[index] * rate)
            if tokens <= 0 or (best is not None and tokens != longest):
                break
            longest = tokens
            while mask:
                bit = mask & -mask
                mask ^= bit
                place = self._by_bit[bit]
                seconds = glimpses.rough(place.tally).backlog_seconds
                if best is None or seconds < least or (seconds == least and place.id < best.id):
                    best, least = place, seconds
        return best

    def hold(self, place: Place, chain: PrefixChain, capacity: int) -> None:
        """A prompt was sent there: its blocks count as held from now on. ``capacity`` is of the cache, in bytes of prompt text."""
        self._mirror.add(place.id, chain.hashes, chain.ends, capacity=capacity)

    def unhold(self, place: Place, chain: PrefixChain, size: int) -> None:
        """A prompt goes elsewhere before it began: what it would have added to the first ``size`` bytes is not held there."""
        for digest, end in zip(chain.hashes, chain.ends, strict=True):
            if end > size:
                self._mirror.drop(place.id, (digest,))
                return

    def occupy(self, place: Place, size: int, capacity: int) -> None:
        """What was generated occupies the engine's cache too and pushes older blocks out."""
        self._mirror.occupy(place.id, size, capacity=capacity)

    def corrected(
        self, place: Place, forget: str, gone: Sequence[Hashable], held: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance, as ``ModelRouter.corrected`` is told it."""
        instance, mirror, indexed = place.id, self._mirror, place.id + _INDEXED
        if forget:
            mirror.forget(indexed)
            if forget == "all":
                mirror.forget(instance)
        if gone and forget != "all":
            mirror.drop(indexed, gone)
            mirror.drop(instance, gone)
        for hashes in held:
            mirror.add(indexed, hashes, block_ends(len(hashes)), capacity=_ENDLESS)
        own, told = mirror.hold(instance), mirror.bit(indexed)
        if (own | told, told) != (place.bit, place.indexed):
            place.bit, place.indexed = own | told, told
            self.ready(self._by_id)


def _by_tokens(item: tuple[str, float]) -> tuple[float, str]:
    return item[1], item[0]
