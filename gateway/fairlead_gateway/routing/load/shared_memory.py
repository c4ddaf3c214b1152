"""What the workers of one gateway have in flight, in memory that all of them read and each writes its own row of.

A row has a slot per instance: requests in flight, those without a first token, microseconds of prefill before them, tokens. Slots
are given out by the helper. A number is written whole (eight aligned bytes), so a reader never meets half of one; the four of a slot
may be of two moments, a microsecond apart. Only the owner writes a row, so nothing is ever lost or counted twice.
"""

from collections.abc import Mapping, Sequence

FIELDS_PER_SLOT = 4
CELL_BYTES = 8
_MICROSECONDS = 1e6


class SharedLoadTable:
    """``cells`` are signed 64-bit integers, ``slots_each`` × ``FIELDS`` of them a row; ``row`` is the owner's."""

    def __init__(self, cells: memoryview, slots_per_row: int, row: int) -> None:
        self._cells = cells
        self._row_cells = slots_per_row * FIELDS_PER_SLOT
        self._own_offset = row * self._row_cells
        self._other_offsets: tuple[int, ...] = ()
        self._slots: Mapping[str, int] = {}

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Where each instance has its slot; instances without one are counted by each worker alone."""
        self._slots = slots

    def set_active_rows(self, rows: Sequence[int]) -> None:
        """Whose rows count beside our own."""
        self._other_offsets = tuple([row * self._row_cells for row in rows])

    def write(self, instance: str, inflight: int, waiting: int, backlog_seconds: float, tokens: float) -> None:
        """Our own sums of one instance are these now."""
        slot = self._slots.get(instance)
        if slot is None:
            return
        cell, cells = self._own_offset + slot * FIELDS_PER_SLOT, self._cells
        cells[cell] = inflight
        cells[cell + 1] = waiting
        cells[cell + 2] = int(backlog_seconds * _MICROSECONDS)
        cells[cell + 3] = int(tokens)

    def sum_other_rows(self, instance: str) -> tuple[int, int, float, float] | None:
        """The siblings' sums of one instance; None when nothing of theirs is there."""
        slot = self._slots.get(instance)
        if slot is None:
            return None
        cells, offset = self._cells, slot * FIELDS_PER_SLOT
        inflight = waiting = backlog = tokens = 0
        for row in self._other_offsets:
            cell = row + offset
            if cells[cell]:
                inflight += cells[cell]
                waiting += cells[cell + 1]
                backlog += cells[cell + 2]
                tokens += cells[cell + 3]
        return (inflight, waiting, backlog / _MICROSECONDS, float(tokens)) if inflight else None


def table_bytes(rows: int, slots_per_row: int) -> int:
    """How much memory so many rows take."""
    return rows * slots_per_row * FIELDS_PER_SLOT * CELL_BYTES


def clear_row(cells: memoryview, slots_per_row: int, row: int) -> None:
    """Zero the row of a worker that is no more."""
    size = slots_per_row * FIELDS_PER_SLOT
    cells.cast("B")[row * size * CELL_BYTES : (row + 1) * size * CELL_BYTES] = bytes(size * CELL_BYTES)


def is_slot_idle(cells: memoryview, slots_per_row: int, rows: int, slot: int) -> bool:
    """Whether no row has anything in this slot."""
    return not any(cells[(row * slots_per_row + slot) * FIELDS_PER_SLOT] for row in range(rows))
