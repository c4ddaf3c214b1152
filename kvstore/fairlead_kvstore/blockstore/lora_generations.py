"""Which of an instance's blocks belong to the adapter that is loaded *now* under a name.

Events name a LoRA adapter and number it; the number is new at each load. vLLM hashes the *path* it was loaded from, which events
do not tell. So when ``support-bot`` is unloaded and loaded again from elsewhere, the old blocks stay resident, without any
event, and yet no request will ever hit them; and when it comes back from the first place, the same old blocks serve again,
again without an event. An index by name credits the first as ghosts; one by number forgets the second.

So each name has *contents*. A number that has not been seen is a new content, unless it is shown to be an old one:

- somebody told where what is served under the name comes from (``/v1/models`` shows it as ``root``), and an old content came from
  there, too; or
- the engine goes on from, or stores again, a handle of the old content. The handle holds the path, so equal handles are equal
  content. (Engines that leave the path out of the hash do serve the old blocks; then this is what is true of them.)

Before the first event with a new number only ``/v1/models`` knows of the change, so whoever reads events asks for it, too. Its
answer may already be about a later load than the number that was seen last, so it is believed of a number only when one more
event with that number comes after it, or when the answers before and after the number's first event are the same and the first of
them told of another place than what was loaded before.

Who joins late and is replayed several loads learns where the last one is from, and of those before nobody can tell it any more.
What is parked of them may be what is loaded now, so as long as it is there the slice is not complete (``doubt``).

The blocks of the content that is loaded count. Those of the others are *parked*: rows in a table of their own, in which copies
and removals are counted on, so that they are exact when they return. Parked tables are bounded by number; the oldest is
forgotten.
"""

from collections.abc import Iterator
from typing import Final

from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, BlockTable
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS
from fairlead_kvstore.blockstore.types import AdapterSnapshot

LoadNumber = int | str
"""How an engine numbers a load: vLLM counts, SGLang draws a text."""

_LOADS_PER_CONTENT: Final = 16
_MAX_NAMES_SHOWN: Final = 4


class LoraGenerations:
    """The names, numbers and contents of one slice; the main table holds the blocks that count."""

    __slots__ = (
        "_content",
        "_current",
        "_forgot",
        "_hoped",
        "_instance",
        "_main",
        "_maybe",
        "_most",
        "_names",
        "_newest",
        "_ordinal",
        "_place",
        "_told",
        "parked",
    )

    def __init__(self, instance: str, main: BlockTable, most: int) -> None:
        self._instance = instance
        self._main = main
        self._most = most
        self._names: dict[str, int] = {}
        self._content: dict[tuple[str, LoadNumber], int] = {}
        self._current: dict[str, int] = {}
        self._newest: dict[str, LoadNumber] = {}
        self._place: dict[int, tuple[str, str]] = {}  # content → its name and where it was loaded from
        self._maybe: dict[int, tuple[str, str]] = {}  # the same, to be confirmed by one more event
        self._told: dict[str, str] = {}  # name → the place that was read last
        self._hoped: dict[
            str, tuple[int, str]
        ] = {}  # name → its newest content, and what was read before its first block
        self._ordinal = 0
        self._forgot = False  # blocks of an earlier content, which may come back
        self.parked: dict[int, tuple[str, BlockTable]] = {}

    def __iter__(self) -> Iterator[BlockTable]:
        return (blocks for _, blocks in self.parked.values())

    def on_cache_cleared(self, main: BlockTable) -> None:
        """The cache was cleared: no block is left, but what is loaded stays loaded."""
        self._main = main
        self._forgot = False
        self.parked.clear()

    def snapshot(self) -> AdapterSnapshot:
        """All but the rows."""
        return AdapterSnapshot(
            names=list(self._names),
            contents=[(name, number, content) for (name, number), content in self._content.items()],
            current=dict(self._current),
            newest=dict(self._newest),
            places=[(content, *there) for content, there in self._place.items()],
            maybe=[(content, *there) for content, there in self._maybe.items()],
            ordinal=self._ordinal,
            forgot=self._forgot,
        )

    def restore(self, kept: AdapterSnapshot, parked: dict[int, tuple[str, BlockTable]]) -> None:
        """Go on from what was kept."""
        self._names = {name: index for index, name in enumerate(kept.names, 1)}
        self._content = {(name, number): content for name, number, content in kept.contents}
        self._current, self._newest = dict(kept.current), dict(kept.newest)
        self._place = {content: (name, place) for content, name, place in kept.places}
        self._maybe = {content: (name, place) for content, name, place in kept.maybe}
        self._ordinal, self._forgot = kept.ordinal, kept.forgot
        self.parked = parked

    def has_room_for(self, name: str, most: int) -> bool:
        """Whether this name has a place; a new one gets it while there are fewer than ``most``."""
        return name in self._names or len(self._names) < most

    def name_index(self, name: str) -> int:
        """The value of the column ``adapters`` for a name; 0 is the base model."""
        return self._names.setdefault(name, len(self._names) + 1)

    def unsourced_names(self) -> list[str]:
        """Names whose content came from nobody told where."""
        told = self._place.keys() | self._maybe.keys()
        return [name for name, content in self._current.items() if content not in told]

    def doubt(self) -> str:
        """Why blocks may be missed: nobody can tell whether some that are parked are of what is loaded now. Empty: none are."""
        if self._forgot:
            return "adapters were loaded more often than earlier loads are kept"
        names = {
            name
            for content, (name, blocks) in self.parked.items()
            if len(blocks) and not self._is_other_generation(name, content)
        }
        listed = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN])
        return f"nobody told where an earlier load of {listed} is from" if names else ""

    def _is_other_generation(self, name: str, content: int) -> bool:
        """Whether a parked content certainly is not the one that is loaded."""
        current = self._current.get(name)
        return content in self._place and (current in self._place or current in self._maybe)

    def table_for(
        self, name: str, number: LoadNumber | None, handles: tuple[int, ...], out: list[Change]
    ) -> BlockTable:
        """Where blocks of this load belong: the main table or a parked one. ``handles`` are the parent and the first block."""
        if number is None:  # an engine that does not number loads
            content = self._current.get(name)
            if content is None:
                self._current[name] = self._new_generation()
            elif content in self._maybe:
                self._confirm(name, content, out)
            return self._main
        content, newest = self._content.get((name, number)), self._newest.get(name)
        # Requests of an earlier load may still be running: only what was not seen before, or counts on, is what is loaded now.
        later = content is None
        if isinstance(number, int) and isinstance(newest, int):
            later = number > newest
        if later or newest is None:
            self._newest[name] = number
        if content is None:
            content = self._start_generation(name, number, handles)
        if content != self._current.setdefault(name, content) and later:
            self._switch(name, content, out)
        if content != self._current[name] and not self._is_shown_current(name, number, content, handles, out):
            return self._park(name, content)
        content = self._current[name]
        if content in self._maybe:
            self._confirm(name, content, out)
        if self.parked:
            self._relink(name, content, handles, out)
        return self._main

    def _is_shown_current(
        self, name: str, number: LoadNumber, content: int, handles: tuple[int, ...], out: list[Change]
    ) -> bool:
        """Whether this event shows that a content that is not the current one is, and makes them one.

        Either what was told of the newest load is confirmed by it, or it goes on from a block of the current one.
        """
        current = self._current[name]
        told = self._maybe.get(content)
        if told is not None and number == self._newest.get(name) and told == self._place.get(current):
            self._confirm(name, content, out)
        elif self._linked_generation(name, handles) == current:
            self._merge_generations(name, content, current, out)
        return self._content.get((name, number)) == current

    def on_source_reported(self, name: str, place: str, out: list[Change]) -> None:
        """What is served under ``name`` now was loaded from ``place``; of no interest before blocks of the name were seen."""
        current = self._current.get(name)
        if current is None:
            return
        self._told[name] = place
        if self._hoped.pop(name, None) == (current, place) and current not in self._place:
            self._maybe[current] = (name, place)
            self._confirm(name, current, out)
            return
        known, maybe = self._place.get(current), self._maybe.get(current)
        if known is None and current not in self._content.values():
            known = maybe  # no block of it was seen yet, so it is what was read before
        if known is not None and known[1] == place:
            return
        content = self._generation_from(name, place)
        if known is None and (maybe is None or maybe[1] == place):
            self._maybe[current] = (name, place)
            if content is None:
                return
            # Blocks of the current number may be an earlier load's; those that were loaded from there before certainly count.
        else:
            self._forget_unconfirmed(name)
            if content is None:
                content = self._new_generation()
                self._maybe[content] = (name, place)
        self._switch(name, content, out)

    def _forget_unconfirmed(self, name: str) -> None:
        """Another place was told, so an event that comes now shows no more that the one before was its load's."""
        seen = set(self._content.values())
        for content in [one for one, (other, _) in self._maybe.items() if other == name and one in seen]:
            del self._maybe[content]

    def _generation_from(self, name: str, place: str) -> int | None:
        return next((content for content, at in self._place.items() if at == (name, place)), None)

    def _confirm(self, name: str, content: int, out: list[Change]) -> None:
        """The content was loaded from where somebody told; blocks of an earlier load from there are of it."""
        _, place = self._maybe.pop(content)
        old = self._generation_from(name, place)
        self._place[content] = (name, place)
        if old is not None:
            self._merge_generations(name, old, content, out)

    def find(self, handle: int) -> tuple[BlockTable, int]:
        """The parked row of a handle; row 0 where there is none."""
        for _, blocks in self.parked.values():
            if row := blocks.by_handle.find(handle):
                return blocks, row
        return self._main, 0

    def _new_generation(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _start_generation(self, name: str, number: LoadNumber, handles: tuple[int, ...]) -> int:
        """A load that was not seen before: the current content if that waits for its number, an old one, or a new one."""
        current = self._current.get(name)
        if current is not None and current not in self._content.values():
            content: int | None = current
            self._maybe.pop(current, None)  # told before its number was known: it may be about an earlier load
            if content not in self._place and name in self._told:
                self._hoped[name] = (current, self._told[name])
        else:
            content = self._linked_generation(name, handles)
        if content is None:
            content = self._new_generation()
        self._content[name, number] = content
        if len(self._content) > _LOADS_PER_CONTENT * self._most:
            del self._content[next(iter(self._content))]
        return content

    def _linked_generation(self, name: str, handles: tuple[int, ...]) -> int | None:
        """The content of this name that one of the handles is of."""
        index = self.name_index(name)
        for handle in handles:
            row = self._main.by_handle.find(handle)
            if row and self._main.adapters[row] == index:
                return self._current.get(name)
            for content, (other, blocks) in self.parked.items():
                if other == name and blocks.by_handle.find(handle):
                    return content
        return None

    def _relink(self, name: str, content: int, handles: tuple[int, ...], out: list[Change]) -> None:
        """A cold prompt came first after a reload; now a handle shows that the content is an old one."""
        for parked, (other, blocks) in list(self.parked.items()):
            if other == name and any(blocks.by_handle.find(handle) for handle in handles):
                self._merge_generations(name, parked, content, out)

    def _park(self, name: str, content: int) -> BlockTable:
        known = self.parked.get(content)
        if known is None:
            known = self.parked[content] = (name, BlockTable())
            if len(self.parked) > self._most:
                gone = next(iter(self.parked))
                self._forgot |= len(self.parked.pop(gone)[1]) > 0
                self._place.pop(gone, None)
                self._maybe.pop(gone, None)
        return known[1]

    def _switch(self, name: str, content: int, out: list[Change]) -> None:
        """Another content is loaded now: the blocks of the one before are parked, its own return."""
        main, index = self._main, self.name_index(name)
        rows = [row for row in main.by_handle if main.adapters[row] == index]
        if rows:
            blocks = self._park(name, self._current[name])
            for row in rows:
                for tier in INSTANCE_TIERS:
                    if main.counts[row] >> TIER_SHIFT[tier] & MAX_COPIES and not main.is_in_twin(row, TIER_SHIFT[tier]):
                        _append_removed(self._instance, tier, main.owns[row], out)
                _move(main, row, blocks)
        self._current[name] = content
        self._restore(content, out)

    def _merge_generations(self, name: str, old: int, new: int, out: list[Change]) -> None:
        """Two contents are one; it keeps the number ``new``, unless ``old`` is the one that is loaded."""
        if self._current.get(name) == old:
            old, new = new, old
        for load, content in self._content.items():
            if content == old:
                self._content[load] = new
        self._maybe.pop(old, None)
        place = self._place.pop(old, None)
        if place is not None:
            self._place.setdefault(new, place)
        if self._current.get(name) == new:
            self._restore(old, out)
        elif old in self.parked:
            blocks = self.parked.pop(old)[1]
            into = self._park(name, new)
            for row in list(blocks.by_handle):
                _merge(blocks, row, into)

    def _restore(self, content: int, out: list[Change]) -> None:
        """Parked blocks count again."""
        known = self.parked.pop(content, None)
        if known is None:
            return
        blocks, main = known[1], self._main
        for row in sorted(blocks.by_handle, key=blocks.depths.__getitem__):
            before = main.copies(blocks.owns[row])
            _merge(blocks, row, main)
            for tier in INSTANCE_TIERS:
                shift = TIER_SHIFT[tier]
                if blocks.counts[row] >> shift & MAX_COPIES and not before >> shift & MAX_COPIES:
                    out.append(BlocksStored(self._instance, tier, blocks.parents[row], [blocks.owns[row]]))


def _append_removed(instance: str, tier: int, own: int, out: list[Change]) -> None:
    last = out[-1] if out else None
    if isinstance(last, BlocksRemoved) and last.tier == tier and last.instance == instance:
        last.hashes.append(own)
    else:
        out.append(BlocksRemoved(instance, INSTANCE_TIERS[tier], [own]))


def _move(source: BlockTable, row: int, into: BlockTable) -> None:
    _merge(source, row, into)
    source.release(row)


def _merge(source: BlockTable, row: int, into: BlockTable) -> None:
    """A row's copies are added to those of the same handle in another table."""
    handle, counts = source.handles[row], source.counts[row]
    there = into.by_handle.find(handle)
    if there:
        into.counts[there] = _sum_copies(into.counts[there], counts)
        into.ticks[there] = max(into.ticks[there], source.ticks[row])
    else:
        own, parent = source.owns[row], source.parents[row]
        into.add(handle, own, parent, source.depths[row], source.adapters[row], counts, source.ticks[row])


def _sum_copies(left: int, right: int) -> int:
    found = 0
    for shift in TIER_SHIFT:
        found |= min(MAX_COPIES, (left >> shift & MAX_COPIES) + (right >> shift & MAX_COPIES)) << shift
    return found
