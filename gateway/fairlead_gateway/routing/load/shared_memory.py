"""A table in shared memory of what the workers of one gateway have in flight.

Each worker writes its own row and reads all. A row has a slot per instance, with five numbers:
requests in flight, those without a first token, microseconds of prefill, tokens, and requests that
wait in the process. The supervisor assigns the slots.

A number is eight aligned bytes, so a reader never sees half of one. The numbers of a slot may
differ in age by a microsecond. Only the owner writes a row, so no update is lost.
"""

from collections.abc import Mapping, Sequence

FIELDS_PER_SLOT = 5
CELL_BYTES = 8
_MICROSECONDS = 1e6


class SharedLoadTable:
    """One worker's access to the table.

    - cells: signed 64-bit integers.
    - row: index of the row that this worker writes.
    """

    def __init__(self, cells: memoryview, slots_per_row: int, row: int) -> None:
        self._cells = cells
        self._row_cells = slots_per_row * FIELDS_PER_SLOT
        self._own_offset = row * self._row_cells
        self._other_offsets: tuple[int, ...] = ()
        self._slots: Mapping[str, int] = {}

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Sets the slot of each instance. Workers do not share their load on an instance without a
        slot.
        """
        self._slots = slots

    def set_active_rows(self, rows: Sequence[int]) -> None:
        self._other_offsets = tuple([row * self._row_cells for row in rows])

    def write(
        self, instance: str, inflight: int, waiting: int, backlog_seconds: float, tokens: float, queued: int = 0
    ) -> None:
        """Writes this worker's load on one instance to its row; nothing if the instance has no
        slot.
        """
        slot = self._slots.get(instance)
        if slot is None:
            return
        cell, cells = self._own_offset + slot * FIELDS_PER_SLOT, self._cells
        cells[cell] = inflight
        cells[cell + 1] = waiting
        cells[cell + 2] = int(backlog_seconds * _MICROSECONDS)
        cells[cell + 3] = int(tokens)
        cells[cell + 4] = queued

    def sum_other_rows(self, instance: str) -> tuple[int, int, float, float, int] | None:
        """Returns the sums of the other rows for an instance; None if nothing is in flight there.

        The parts are: requests, those without a first token, seconds of prefill, tokens, and
        requests that wait in the processes.
        """
        slot = self._slots.get(instance)
        if slot is None:
            return None
        cells, offset = self._cells, slot * FIELDS_PER_SLOT
        inflight = waiting = backlog = tokens = queued = 0
        for row in self._other_offsets:
            cell = row + offset
            if cells[cell]:
                inflight += cells[cell]
                waiting += cells[cell + 1]
                backlog += cells[cell + 2]
                tokens += cells[cell + 3]
                queued += cells[cell + 4]
        return (inflight, waiting, backlog / _MICROSECONDS, float(tokens), queued) if inflight else None


def table_bytes(rows: int, slots_per_row: int) -> int:
    """Returns the size of the table in bytes."""
    return rows * slots_per_row * FIELDS_PER_SLOT * CELL_BYTES


def clear_row(cells: memoryview, slots_per_row: int, row: int) -> None:
    size = slots_per_row * FIELDS_PER_SLOT
    cells.cast("B")[row * size * CELL_BYTES : (row + 1) * size * CELL_BYTES] = bytes(size * CELL_BYTES)


def is_slot_idle(cells: memoryview, slots_per_row: int, rows: int, slot: int) -> bool:
    """Returns True if no worker has requests in flight in this slot."""
    return not any(cells[(row * slots_per_row + slot) * FIELDS_PER_SLOT] for row in range(rows))
