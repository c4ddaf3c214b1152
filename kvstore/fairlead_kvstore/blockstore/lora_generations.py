"""Generations of LoRA adapters: which of an instance's blocks belong to the adapter content that is
loaded now.

KV events name a LoRA adapter and number its load; the number is new at each load. In vLLM the hash
covers the *path* it was loaded from, which events do not contain. When ``support-bot`` is unloaded
and loaded again from another path, the old blocks stay resident without any event, and yet no
request hits them. When it is loaded from the first path again, the same old blocks serve requests
again, also without an event. An index by name leaves ghosts in the first case; one by number
forgets blocks in the second.

So each name has *contents*. A load number that is new starts a new content, unless it is shown to
be an old one:

- ``/v1/models`` reports the source of the adapter as ``root``, and an old content has the same
  source; or
- the engine continues from, or stores again, a handle of the old content. The handle covers the
  path, so equal handles are equal content. Engines that leave the path out of the hash do serve the
  old blocks, so this is correct for them.

Before the first event with a new number only ``/v1/models`` shows the change, so the indexer
queries it too. Its answer may already belong to a later load than the last number. It is therefore
confirmed for a number only in two cases:

- one more event with that number follows the answer; or
- the answers before and after the number's first event are equal, and the first differs from the
  source of the earlier load.

A late reader whose replay contains several loads learns the source of the last one only. The parked
blocks of the others may be what is loaded now, so the instance is incomplete (``doubt``) while they
exist.

The blocks of the content that is loaded count. Those of the others are *parked*: rows in a table of
their own with exact copies, so that they are right when they return. Parked tables are bounded in
number; the oldest is dropped.
"""

from collections.abc import Generator, Iterator
from typing import Final

from fairlead.names import MAX_NAME_BYTES
from fairlead_kvstore.blockstore.block_table import MAX_COPIES, TIER_SHIFT, BlockTable
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change
from fairlead_kvstore.blockstore.pending_runs import open_hashes
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS
from fairlead_kvstore.blockstore.types import AdapterSnapshot

LoadNumber = int | str
"""An engine's number of a load: vLLM counts, SGLang draws a text."""

_LOADS_PER_CONTENT: Final = 16
_MAX_NAMES_SHOWN: Final = 4
MAX_SCANNED_ROWS: Final = 8_388_608
"""The rows that an engine may have looked at or moved: half a minute of its own events."""
_ROWS_PER_STEP: Final = 256
_MOVED_ROW_BYTES: Final = 32
"""The cost of moving a row between tables, some 12 µs, in bytes."""
_SCANNED_ROWS_A_SECOND: Final = 1_048_576
_MAX_SOURCE_CHARACTERS: Final = 4_096  # a longer one than any path; it would be kept for each adapter


class LoraGenerations:
    """The LoRA adapters of one instance: names, load numbers, contents, and parked blocks.

    main: the table of the blocks that count.
    max_parked: the maximum number of parked contents.
    """

    def __init__(self, instance: str, main: BlockTable, max_parked: int) -> None:
        self._instance = instance
        self._main = main
        self._max_parked = max_parked
        self._names: dict[str, int] = {}
        self._content: dict[tuple[str, LoadNumber], int] = {}
        self._current: dict[str, int] = {}
        self._newest: dict[str, LoadNumber] = {}
        self._sources: dict[int, tuple[str, str]] = {}  # content → its name and source
        self._unconfirmed: dict[int, tuple[str, str]] = {}  # the same, not confirmed by an event yet
        self._reported: dict[str, str] = {}  # name → the source that was reported last
        self._expected: dict[str, tuple[int, str]] = {}  # name → newest content, source read before its first block
        self._ordinal = 0
        self._has_forgotten = False  # blocks of an earlier content were dropped; it may return
        self.parked: dict[int, tuple[str, BlockTable]] = {}
        self.scanned_rows = 0
        """Rows that were scanned lately. Above ``MAX_SCANNED_ROWS``, the blocks are dropped."""
        self._scanned_until = 0.0

    def on_batch(self, now: float) -> None:
        """Allows further scans of rows for the time since the last batch."""
        allowed = int(max(0.0, now - self._scanned_until) * _SCANNED_ROWS_A_SECOND)
        self.scanned_rows, self._scanned_until = max(0, self.scanned_rows - allowed), now

    def __iter__(self) -> Iterator[BlockTable]:
        return (blocks for _, blocks in self.parked.values())

    def on_cache_cleared(self, main: BlockTable) -> None:
        """Drops the parked blocks after a cache clear, and takes ``main`` as the main table."""
        self._main = main
        self._has_forgotten = False
        self.scanned_rows = 0
        self.parked.clear()

    def snapshot(self) -> AdapterSnapshot:
        """Returns the state without the rows of parked blocks."""
        return AdapterSnapshot(
            names=list(self._names),
            contents=[(name, number, content) for (name, number), content in self._content.items()],
            current=dict(self._current),
            newest=dict(self._newest),
            sources=[(content, *source) for content, source in self._sources.items()],
            unconfirmed=[(content, *source) for content, source in self._unconfirmed.items()],
            ordinal=self._ordinal,
            has_forgotten=self._has_forgotten,
        )

    def restore(self, snapshot: AdapterSnapshot, parked: dict[int, tuple[str, BlockTable]]) -> None:
        """Replaces the state by that of a snapshot. ``parked``: name and blocks of each parked
        content.
        """
        self._names = {name: index for index, name in enumerate(snapshot.names, 1)}
        self._content = {(name, number): content for name, number, content in snapshot.contents}
        self._current, self._newest = dict(snapshot.current), dict(snapshot.newest)
        self._sources = {content: (name, source) for content, name, source in snapshot.sources}
        self._unconfirmed = {content: (name, source) for content, name, source in snapshot.unconfirmed}
        self._ordinal, self._has_forgotten = snapshot.ordinal, snapshot.has_forgotten
        self.parked = parked

    def has_room_for(self, name: str, max_names: int) -> bool:
        """Returns whether this name is known, or fewer than ``max_names`` are and it is neither too
        long nor has characters that control a terminal.
        """
        return name in self._names or (
            len(self._names) < max_names and len(name) <= MAX_NAME_BYTES and name.isprintable()
        )

    def name_index(self, name: str) -> int:
        """Returns the value of the column ``adapters`` for a name; 0 is the base model."""
        return self._names.setdefault(name, len(self._names) + 1)

    def unsourced_names(self) -> list[str]:
        """Returns the names of the adapters whose current content has no known source."""
        sourced = self._sources.keys() | self._unconfirmed.keys()
        return [name for name, content in self._current.items() if content not in sourced]

    def doubt(self) -> str:
        """Returns why blocks of the loaded content may be parked and thus missed; empty when none
        are.
        """
        if self._has_forgotten:
            return "adapters were loaded more often than earlier loads are recorded"
        names = {
            name
            for content, (name, blocks) in self.parked.items()
            if len(blocks) and not self._is_other_generation(name, content)
        }
        listed = ", ".join(sorted(names)[:_MAX_NAMES_SHOWN])
        return f"the source of an earlier load of {listed} is unknown" if names else ""

    def _is_other_generation(self, name: str, content: int) -> bool:
        """Returns whether a parked content certainly is not the one that is loaded."""
        current = self._current.get(name)
        return content in self._sources and (current in self._sources or current in self._unconfirmed)

    def table_for(
        self, name: str, number: LoadNumber | None, handles: tuple[int, ...], out: list[Change]
    ) -> Generator[int, None, BlockTable]:
        """Returns the table for blocks of an adapter's load: the main table or a parked one.

        A new load number may park the blocks of the earlier load. Yields the cost in bytes of each
        step of that. No event may be applied between two steps.

        number: None if the engine does not number loads.
        handles: those of the parent and the first block.
        """
        if number is None:  # the engine does not number loads
            content = self._current.get(name)
            if content is None:
                self._current[name] = self._new_generation()
            elif content in self._unconfirmed:
                yield from self._confirm(name, content, out)
            return self._main
        content, newest = self._content.get((name, number)), self._newest.get(name)
        # Requests of an earlier load may still run: only a new or higher number is a new load.
        later = content is None
        if isinstance(number, int) and isinstance(newest, int):
            later = number > newest
        if later or newest is None:
            self._newest[name] = number
        if content is None:
            content = self._start_generation(name, number, handles)
        if content != self._current.setdefault(name, content) and later:
            yield from self._switch(name, content, out)
        if content != self._current[name]:
            is_current = yield from self._is_shown_current(name, number, content, handles, out)
            if not is_current:
                return self._park(name, content)
        content = self._current[name]
        if content in self._unconfirmed:
            yield from self._confirm(name, content, out)
        if self.parked:
            yield from self._relink(name, content, handles, out)
        return self._main

    def _is_shown_current(
        self, name: str, number: LoadNumber, content: int, handles: tuple[int, ...], out: list[Change]
    ) -> Generator[int, None, bool]:
        """Returns whether this event proves that a content is the current one, and then merges
        them.

        The event either confirms the reported source of the newest load, or continues from a block
        of the current content.
        """
        current = self._current[name]
        reported = self._unconfirmed.get(content)
        if reported is not None and number == self._newest.get(name) and reported == self._sources.get(current):
            yield from self._confirm(name, content, out)
        elif self._linked_generation(name, handles) == current:
            yield from self._merge_generations(name, content, current, out)
        return self._content.get((name, number)) == current

    def on_source_reported(self, name: str, source: str, out: list[Change]) -> Iterator[int]:
        """Records the source of the adapter served under ``name``, which may make another content
        current. It is ignored while no block of that name was reported, and if it is too long.

        Yields the cost in bytes of each step of that.
        """
        current = self._current.get(name)
        if current is None or len(source) > _MAX_SOURCE_CHARACTERS:
            return
        self._reported[name] = source
        if self._expected.pop(name, None) == (current, source) and current not in self._sources:
            self._unconfirmed[current] = (name, source)
            yield from self._confirm(name, current, out)
            return
        known, unconfirmed = self._sources.get(current), self._unconfirmed.get(current)
        if known is None and current not in self._content.values():
            known = unconfirmed  # it has no blocks yet, so the reported source still applies
        if known is not None and known[1] == source:
            return
        content = self._generation_from(name, source)
        if known is None and (unconfirmed is None or unconfirmed[1] == source):
            self._unconfirmed[current] = (name, source)
            if content is None:
                return
            # Blocks of the current number may be of an earlier load; the content is certain.
        else:
            self._forget_unconfirmed(name)
            if current not in self._content.values():
                self._unconfirmed.pop(current, None)  # no block is of that load, and none will be
            if content is None:
                content = self._new_generation()
                self._unconfirmed[content] = (name, source)
        yield from self._switch(name, content, out)

    def _forget_unconfirmed(self, name: str) -> None:
        """Drops unconfirmed sources, because a different source was reported since."""
        numbered = set(self._content.values())
        for content in [
            candidate for candidate, (other, _) in self._unconfirmed.items() if other == name and candidate in numbered
        ]:
            del self._unconfirmed[content]

    def _generation_from(self, name: str, source: str) -> int | None:
        return next((content for content, at in self._sources.items() if at == (name, source)), None)

    def _confirm(self, name: str, content: int, out: list[Change]) -> Iterator[int]:
        """Confirms a content's source, and merges the content of an earlier load from the same
        source.
        """
        _, source = self._unconfirmed.pop(content)
        old = self._generation_from(name, source)
        self._sources[content] = (name, source)
        if old is not None:
            yield from self._merge_generations(name, old, content, out)

    def find(self, handle: int) -> tuple[BlockTable, int]:
        """Returns the parked table with this handle, and its row; row 0 if there is none."""
        for _, blocks in self.parked.values():
            if row := blocks.by_handle.find(handle):
                return blocks, row
        return self._main, 0

    def _new_generation(self) -> int:
        self._ordinal += 1
        return self._ordinal

    def _start_generation(self, name: str, number: LoadNumber, handles: tuple[int, ...]) -> int:
        """Returns and records the content of a new load number.

        It is the current content if that has no number yet, else the one that has one of the
        handles, else a new one.
        """
        current = self._current.get(name)
        if current is not None and current not in self._content.values():
            content: int | None = current
            self._unconfirmed.pop(current, None)  # reported before its number was known: it may be of an earlier load
            if content not in self._sources and name in self._reported:
                self._expected[name] = (current, self._reported[name])
        else:
            content = self._linked_generation(name, handles)
        if content is None:
            content = self._new_generation()
        self._content[name, number] = content
        if len(self._content) > _LOADS_PER_CONTENT * self._max_parked:
            del self._content[next(iter(self._content))]
        return content

    def _linked_generation(self, name: str, handles: tuple[int, ...]) -> int | None:
        """Returns the content of this name that has one of the handles; None if there is none."""
        index = self.name_index(name)
        for handle in handles:
            row = self._main.by_handle.find(handle)
            if row and self._main.adapters[row] == index:
                return self._current.get(name)
            for content, (other, blocks) in self.parked.items():
                if other == name and blocks.by_handle.find(handle):
                    return content
        return None

    def _relink(self, name: str, content: int, handles: tuple[int, ...], out: list[Change]) -> Iterator[int]:
        """Merges parked contents that have one of the handles.

        A handle shows that the content is an old one. This happens when the first prompt after a
        reload had nothing cached.
        """
        for parked, (other, blocks) in list(self.parked.items()):
            if other == name and any(map(blocks.by_handle.find, handles)):
                yield from self._merge_generations(name, parked, content, out)

    def _park(self, name: str, content: int) -> BlockTable:
        known = self.parked.get(content)
        if known is None:
            known = self.parked[content] = (name, BlockTable())
            if len(self.parked) > self._max_parked:
                dropped = next(iter(self.parked))
                self._has_forgotten |= len(self.parked.pop(dropped)[1]) > 0
                self._sources.pop(dropped, None)
                self._unconfirmed.pop(dropped, None)
        return known[1]

    def _switch(self, name: str, content: int, out: list[Change]) -> Iterator[int]:
        """Makes another content current: parks the blocks of the earlier one and restores its
        own.
        """
        main, index = self._main, self.name_index(name)
        self.scanned_rows += len(main)
        before, self._current[name] = self._current[name], content
        blocks: BlockTable | None = None
        for start in range(1, len(main.counts), _ROWS_PER_STEP):
            moved = 0
            for row in range(start, min(start + _ROWS_PER_STEP, len(main.counts))):
                if not main.counts[row] or main.adapters[row] != index:
                    continue
                if blocks is None:
                    blocks = self._park(name, before)
                _merge(main, row, blocks)
                counts, first = main.counts[row], main.release(row)
                for tier in INSTANCE_TIERS:
                    shift = TIER_SHIFT[tier]
                    if counts >> shift & MAX_COPIES and not main.counts[first] >> shift & MAX_COPIES:
                        open_hashes(BlocksRemoved, self._instance, tier, out).append(main.block_hashes[row])
                moved += 1
            yield _step_cost(moved)
        yield from self._restore(content, out)

    def _merge_generations(self, name: str, old: int, new: int, out: list[Change]) -> Iterator[int]:
        """Merges two contents into ``new``, or into ``old`` when that one is current."""
        if self._current.get(name) == old:
            old, new = new, old
        for load, content in self._content.items():
            if content == old:
                self._content[load] = new
        self._unconfirmed.pop(old, None)
        source = self._sources.pop(old, None)
        if source is not None:
            self._sources.setdefault(new, source)
        if self._current.get(name) == new:
            yield from self._restore(old, out)
        elif old in self.parked:
            blocks = self.parked.pop(old)[1]
            into = self._park(name, new)
            self.scanned_rows += len(blocks)
            for start in range(1, len(blocks.counts), _ROWS_PER_STEP):
                rows = [row for row in range(start, start + _ROWS_PER_STEP) if row < len(blocks.counts)]
                used = [row for row in rows if blocks.counts[row]]
                for row in used:
                    _merge(blocks, row, into)
                yield _step_cost(len(used))

    def _restore(self, content: int, out: list[Change]) -> Iterator[int]:
        """Moves parked blocks back to the main table."""
        known = self.parked.pop(content, None)
        if known is None:
            return
        blocks, main = known[1], self._main
        self.scanned_rows += len(blocks)
        for start in range(1, len(blocks.counts), _ROWS_PER_STEP):
            moved = 0
            for row in range(start, min(start + _ROWS_PER_STEP, len(blocks.counts))):
                if not blocks.counts[row]:
                    continue
                before = main.copies(blocks.block_hashes[row])
                _merge(blocks, row, main)
                moved += 1
                after = main.copies(blocks.block_hashes[row])
                for tier in INSTANCE_TIERS:
                    shift = TIER_SHIFT[tier]
                    if after >> shift & MAX_COPIES and not before >> shift & MAX_COPIES:
                        open_hashes(BlocksStored, self._instance, tier, out).append(blocks.block_hashes[row])
            yield _step_cost(moved)


def _step_cost(moved: int) -> int:
    """Returns the cost in bytes of looking at ``_ROWS_PER_STEP`` rows and moving some of them."""
    return _ROWS_PER_STEP + moved * _MOVED_ROW_BYTES


def _merge(source: BlockTable, row: int, into: BlockTable) -> None:
    """Adds a row's copies to those of the same handle in another table."""
    handle, counts = source.handles[row], source.counts[row]
    known = into.by_handle.find(handle)
    if known:
        into.counts[known] = _sum_copies(into.counts[known], counts)
        into.ticks[known] = max(into.ticks[known], source.ticks[row])
    else:
        block_hash, parent = source.block_hashes[row], source.parents[row]
        into.add(handle, block_hash, parent, source.depths[row], source.adapters[row], counts, source.ticks[row])


def _sum_copies(left: int, right: int) -> int:
    found = 0
    for shift in TIER_SHIFT:
        found |= min(MAX_COPIES, (left >> shift & MAX_COPIES) + (right >> shift & MAX_COPIES)) << shift
    return found
