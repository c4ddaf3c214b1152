"""One model's index in byte space: what workers, who know prompts as bytes only, are told of what engines hold.

Three things come together here: the links, the mirror of what engines told, and what was just sent where. Out of them come
*corrections*: for an instance, chains of byte blocks that it holds, and byte blocks that it does not. A correction is made from
what is true at the moment of ``corrections``, not from the change that gave rise to it, so any order of events, links and
questions ends in the same place, and telling one twice does no harm.

    held     every link of the chain, from its start, leads to a block that the mirror finds at the instance
    not      the first link of a chain that does not, when absence means something: the block was told to be removed,
             or the slice is complete, so that everything that the instance holds was told
    neither  while a prompt with that block is on its way there: its blocks count as held, since the engine will have them
             (``research/routing.md``, fact 6), and are looked at again a moment after its end, when all was told

Blocks of stores that all instances share are hints for the whole model and no reason to prefer an instance; they are not told.
"""

import heapq
import math
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from fairlead.limits import Limits
from fairlead_kvstore.index.victims import Recent
from fairlead_kvstore.links.flying import Flying
from fairlead_kvstore.links.lesson import Lesson, counted, guessed
from fairlead_kvstore.links.table import LinkTable
from fairlead_kvstore.truth import identity
from fairlead_kvstore.truth.changes import Change, Cleared, Gone, Removed, Stored
from fairlead_kvstore.truth.tiers import Tier

_LIMITS: Final = Limits()
BLOCK_SIZES: Final = (16, 32, 64, 128, 256, 1, 2, 4, 8, 48, 96, 112, 144, 192, 272, 400, 512, 528, 544, 784, 1024, 1056)
"""Tokens of a block, the usual ones first; the odd ones are those of hybrid models. Which one it is, a prompt that is held tells."""


class Standing(msgspec.Struct, frozen=True):
    """Whether all of an instance is known, and if not, why."""

    complete: bool
    reason: str


class KnownLike(Protocol):
    """As ``index.mirror.Known``."""

    @property
    def complete(self) -> bool: ...
    @property
    def reason(self) -> str: ...
    @property
    def since(self) -> float: ...


class Mirror(Protocol):
    """What is asked of ``index.mirror.IndexMirror``."""

    def holders(self, own: int) -> dict[str, tuple[Tier, ...]]:
        """Who holds one block, and where."""
        ...

    def standing(self, instance: str) -> KnownLike | None:
        """How sure it is what this instance holds."""
        ...

    def instances(self) -> tuple[str, ...]:
        """All that something was told of."""
        ...

    def sets(self) -> Iterator[tuple[Mapping[str, tuple[Tier, ...]], int]]:
        """Every different set of holders, with how many blocks are held by just these."""
        ...

    def alone(self, hashes: Iterable[int]) -> dict[str, int]:
        """Of these blocks, how many are held by just one instance, by that instance."""
        ...


class Forget(StrEnum):
    """What of an instance a correction begins with."""

    NOTHING = ""
    TOLD = "told"
    ALL = "all"


class Correction(msgspec.Struct, array_like=True):
    """For one instance: first ``forget`` what corrections told, or all; then ``gone`` (byte blocks, 64-bit, native order), then
    ``held``, chains of byte blocks from the prompt's start."""

    instance: str
    forget: Forget
    gone: bytes
    held: list[bytes]


class _Flight:
    """A prompt that was sent to an instance: its byte blocks, how many of it are under way, when it is looked at again."""

    __slots__ = ("aloft", "count", "due", "hashes")

    def __init__(self, hashes: Sequence[int]) -> None:
        self.hashes = hashes
        self.aloft = False
        self.count = 0
        self.due = 0.0


class _Place:
    """What is to be told of one instance, and what is on its way there."""

    __slots__ = ("doubted", "flying", "forget", "removed", "taken", "told")

    def __init__(self) -> None:
        self.taken: OrderedDict[int, float] = OrderedDict()  # told to be removed, and when we heard of it
        self.told: set[int] = set()  # byte blocks whose own hash was stored there
        self.removed: set[int] = set()
        self.doubted: set[int] = set()  # linked anew, or no longer on their way
        self.forget = Forget.NOTHING
        self.flying = Flying()

    def waits(self) -> bool:
        return bool(self.told or self.removed or self.doubted or self.forget)


class Bridge:
    """``model_key`` and ``secret`` are those of the own hashes. Times are monotonic seconds."""

    def __init__(self, model_key: str, mirror: Mirror, *, secret: bytes, limits: Limits = _LIMITS) -> None:
        self.mirror = mirror
        self.table = LinkTable(most=limits.link_blocks, most_owns=limits.link_own_blocks)
        self.recent = Recent(most=limits.index_recent_blocks, seconds=limits.index_recent_seconds)
        self._latest = float("-inf")
        self.block_size: int | None = None
        self._key = model_key
        self._secret = secret
        self._limits = limits
        self._places: dict[str, _Place] = {}
        self._flights: dict[tuple[str, int], _Flight] = {}
        self._due: list[tuple[float, str, int]] = []
        self._distrusted: set[str] = set()

    # --- what gateways do -----------------------------------------------------------------------------------------------

    def sent(self, instance: str, tail: int, hashes: Sequence[int], now: float, *, ends_told: bool) -> bool:
        """A prompt was sent there; whether a part of it is not linked. ``ends_told``: ``ended`` will say when it is over."""
        self.table.touch(hashes)
        self._latest = now
        key = (instance, tail)
        flight = self._flights.get(key)
        if flight is None:
            if len(self._flights) >= self._limits.link_flights:
                self._land(next(iter(self._flights)))
            flight = self._flights[key] = _Flight(hashes)
        if not flight.aloft:
            flight.aloft = True
            self._place(instance).flying.take_off(flight.hashes)
        limits = self._limits
        if ends_told:
            flight.count += 1
            self._look_at(key, flight, now + limits.link_flight_seconds)
        else:
            self._look_at(key, flight, max(flight.due, now + limits.link_provisional_seconds))
        linked = self.table.linked(hashes)
        if linked:
            self.recent.add(self.table.owns_of(hashes[linked - 1]), now)
        return linked < len(hashes)

    def ended(self, instance: str, tail: int, now: float) -> None:
        """One of those is over; what the engine then told of it comes within a moment."""
        key = (instance, tail)
        flight = self._flights.get(key)
        if flight is not None and flight.count:
            flight.count -= 1
            if not flight.count:
                self._come_down(instance, flight)
                self._look_at(key, flight, now + self._limits.link_settled_seconds)

    def learn(
        self,
        hashes: Sequence[int],
        ends: Sequence[int],
        tokens: Sequence[int],
        *,
        size: int,
        salt: str | None = None,
        adapter: str | None = None,
        reaches: Sequence[int] | None = None,
        doubted: bool = False,
    ) -> int | None:
        """A prompt's byte blocks and its tokens; how many whole blocks these are, None when no engine's block size is known yet.

        Equal tokens under another cache salt or another LoRA adapter are other blocks: both are those that the engine computes with.
        ``doubted``: the tokens are no engine's word. Then nothing is linked (None) until an engine holds the last of the blocks,
        which the chain makes a proof of all of them.
        """
        root = identity.root(self._key, adapter, secret=self._secret)
        block_size = self._size_of(root, tokens, salt)
        if block_size is None:
            return None
        owns = _owns(root, tokens, block_size, salt)
        if doubted and owns and not self.mirror.holders(owns[-1]):
            return None
        self.recent.add(owns, self._latest)  # a prompt is learned a moment after it was sent
        self.link(
            guessed(hashes, ends, owns, size=size, tokens=len(tokens), block_size=block_size)
            if reaches is None
            else counted(hashes, owns, reaches, block_size=block_size)
        )
        return len(owns)

    def link(self, lesson: Lesson) -> None:
        """The same from own hashes, of a prompt that nobody here need have sent."""
        if self.block_size is None:
            self.block_size = lesson.block_size
        changed = self.table.learn(lesson)
        if changed:
            for instance in self.mirror.instances():
                self._place(instance).doubted.update(changed)

    def forget_links(self) -> None:
        """What was learned is wrong: begin anew."""
        self.table.clear()
        self.recent.clear()
        for instance in self.mirror.instances():
            place = self._place(instance)
            place.forget = place.forget or Forget.TOLD

    # --- what engines tell ----------------------------------------------------------------------------------------------

    def changed(self, changes: Iterable[Change]) -> None:
        """The mirror has just taken these over."""
        behind = self.table.behind
        for change in changes:
            if isinstance(change, Stored | Removed):
                if change.tier is Tier.REMOTE:
                    continue
                place = self._place(change.instance)
                into = place.told if isinstance(change, Stored) else place.removed
                for own in change.hashes:
                    found = behind(own)
                    if found:
                        into.update(found)
            elif isinstance(change, Cleared | Gone):
                place = self._place(change.instance)
                place.forget = Forget.ALL
                place.told.clear()
                place.removed.clear()
                place.doubted.clear()

    def reloaded(self, mirror: Mirror) -> None:
        """Another mirror, or the same with another content: everything is told anew."""
        self.mirror = mirror
        self._tell_anew({*self._places, *mirror.instances()})

    def tell_all(self) -> None:
        """A worker knows nothing yet."""
        self.reloaded(self.mirror)

    def taken_since(self, instance: str, hashes: Iterable[int], since: float) -> bool:
        """Whether the instance was heard to lose any of these byte blocks at or after that moment, though it may hold them again."""
        place = self._places.get(instance)
        return place is not None and any(place.taken.get(digest, -math.inf) >= since for digest in hashes)

    # --- trust ----------------------------------------------------------------------------------------------------------

    def distrust(self, instance: str) -> None:
        """What is told of this instance does not hold: nothing of it counts until ``trust``."""
        self._distrusted.add(instance)
        place = self._place(instance)
        place.forget = place.forget or Forget.TOLD

    def trust(self, instance: str) -> None:
        """It counts again, as it is now."""
        if instance in self._distrusted:
            self._distrusted.discard(instance)
            self._tell_anew({instance})

    def keep_only(self, instances: Iterable[str]) -> None:
        """Instances that have left the fleet are forgotten."""
        kept = set(instances)
        for gone in self._places.keys() - kept:
            del self._places[gone]
        self._distrusted &= kept
        for key in [key for key in self._flights if key[0] not in kept]:
            del self._flights[key]

    # --- corrections ----------------------------------------------------------------------------------------------------

    def corrections(self, now: float) -> list[Correction]:
        """What is to be told now; the rest, where that is much, the next time."""
        self._look_again(now)
        found: list[Correction] = []
        room = self._limits.link_corrections
        for instance, place in self._places.items():
            if room <= 0:
                break
            if place.waits():
                told, doubted = place.told, place.doubted
                place.told, place.doubted = _rest(told, room), _rest(doubted, room)
                room -= len(told) + len(doubted)
                self._note_taken(place, now)
                correction = self._correct(instance, place, told, doubted)
                if correction is not None:
                    found.append(correction)
        return found

    def _correct(self, instance: str, place: _Place, told: set[int], doubted: set[int]) -> Correction | None:
        table, flying = self.table, place.flying
        removed, place.removed = place.removed, set()
        forget, place.forget = place.forget, Forget.NOTHING
        if instance in self._distrusted:
            place.told, place.doubted = set(), set()
            return Correction(instance, forget, b"", []) if forget else None
        known = self.mirror.standing(instance)
        complete = known is not None and known.complete
        held: list[bytes] = []
        gone: dict[int, None] = {}
        covered: set[int] = set()
        links = [(link.index, digest) for digest in told | doubted if (link := table.get(digest)) is not None]
        for _, digest in sorted(links, reverse=True):
            if digest in covered:
                continue
            chain = table.chain(digest)
            covered.update(chain)
            depth = self._held(chain, instance)
            if depth:
                held.append(array("Q", chain[:depth]).tobytes())
            missing = self._missing(chain, depth)
            if missing is not None and missing not in flying and (complete or missing in removed):
                gone[missing] = None
        for digest in removed:
            link = table.get(digest)
            if link is not None and digest not in flying and instance not in self.mirror.holders(link.own):
                gone[digest] = None
        if not (forget or gone or held):
            return None
        return Correction(instance, forget, array("Q", gone).tobytes(), held)

    def _note_taken(self, place: _Place, now: float) -> None:
        taken = place.taken
        for digest in place.removed:
            taken[digest] = now
            taken.move_to_end(digest)
        while len(taken) > self._limits.link_taken_blocks:
            taken.popitem(last=False)

    def _held(self, chain: Sequence[int], instance: str) -> int:
        """How many of these byte blocks, from the start, the instance holds; those that reach no token block count with the next."""
        held = last = 0
        for index, digest in enumerate(chain):
            link = self.table.get(digest)
            if link is None:
                break
            if link.depth != last:
                if instance not in self.mirror.holders(link.own):
                    break
                last = link.depth
            if link.depth:
                held = index + 1
        return held

    def _missing(self, chain: Sequence[int], depth: int) -> int | None:
        """The first byte block behind those that are held, of which anything is known."""
        for digest in chain[depth:]:
            link = self.table.get(digest)
            if link is not None and link.depth:
                return digest
        return None

    # --- inside ---------------------------------------------------------------------------------------------------------

    def _place(self, instance: str) -> _Place:
        place = self._places.get(instance)
        if place is None:
            place = self._places[instance] = _Place()
        return place

    def _tell_anew(self, instances: set[str]) -> None:
        """Forget what was told of these, and tell what they hold."""
        for instance in instances:
            place = self._place(instance)
            place.forget = place.forget or Forget.TOLD
        for digest, link in self.table.items():
            if link.depth:
                for instance in self.mirror.holders(link.own):
                    if instance in instances:
                        self._place(instance).told.add(digest)

    def _look_at(self, key: tuple[str, int], flight: _Flight, due: float) -> None:
        flight.due = due
        heapq.heappush(self._due, (due, *key))

    def _look_again(self, now: float) -> None:
        """Prompts whose time on the way is over: what of them the engine did not tell of, it does not hold."""
        while self._due and self._due[0][0] <= now:
            due, instance, tail = heapq.heappop(self._due)
            flight = self._flights.get((instance, tail))
            if flight is not None and flight.due == due:
                self._land((instance, tail))

    def _land(self, key: tuple[str, int]) -> None:
        flight = self._flights.pop(key)
        self._come_down(key[0], flight)
        self._place(key[0]).doubted.update(flight.hashes)

    def _come_down(self, instance: str, flight: _Flight) -> None:
        if flight.aloft:
            flight.aloft = False
            self._place(instance).flying.land(flight.hashes)

    def _size_of(self, root: int, tokens: Sequence[int], salt: str | None) -> int | None:
        """The block size with which the prompt's first block is one that some engine holds; else the one known before."""
        sizes = BLOCK_SIZES if self.block_size is None else (self.block_size, *BLOCK_SIZES)
        for size in sizes:
            if len(tokens) >= size and self.mirror.holders(_owns(root, tokens[:size], size, salt)[0]):
                self.block_size = size
                break
        return self.block_size


def _owns(root: int, tokens: Sequence[int], block_size: int, salt: str | None) -> list[int]:
    extras = identity.block_extras(len(tokens) // block_size, block_size, salt=salt) if salt is not None else None
    return identity.own_hashes(root, tokens, block_size, extras)


def _rest(digests: set[int], room: int) -> set[int]:
    """Leave so many in the set, and return what was taken out of it."""
    rest: set[int] = set()
    while len(digests) > max(1, room):
        rest.add(digests.pop())
    return rest
