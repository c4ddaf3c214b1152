"""What the workers of one gateway have in flight, in memory that all of them read and each writes its own row of.

A row has a slot per instance: requests in flight, those without a first token, microseconds of prefill before them, tokens. Slots
are given out by the helper. A number is written whole (eight aligned bytes), so a reader never meets half of one; the four of a slot
may be of two moments, a microsecond apart. Only the owner writes a row, so nothing is ever lost or counted twice.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fairlead_gateway.routing.request import RouteRequest

FIELDS = 4
CELL_BYTES = 8
_MICROSECONDS = 1e6


class SharedRows:
    """``cells`` are signed 64-bit integers, ``slots_each`` × ``FIELDS`` of them a row; ``row`` is the owner's."""

    def __init__(self, cells: memoryview, slots_each: int, row: int) -> None:
        self._cells = cells
        self._row_cells = slots_each * FIELDS
        self._own = row * self._row_cells
        self._others: tuple[int, ...] = ()
        self._slots: Mapping[str, int] = {}

    def place(self, slots: Mapping[str, int]) -> None:
        """Where each instance has its slot; instances without one are counted by each worker alone."""
        self._slots = slots

    def read_rows(self, rows: Sequence[int]) -> None:
        """Whose rows count beside our own."""
        self._others = tuple([row * self._row_cells for row in rows])

    def write(self, instance: str, inflight: int, waiting: int, backlog_seconds: float, tokens: float) -> None:
        """Our own sums of one instance are these now."""
        slot = self._slots.get(instance)
        if slot is None:
            return
        at, cells = self._own + slot * FIELDS, self._cells
        cells[at] = inflight
        cells[at + 1] = waiting
        cells[at + 2] = int(backlog_seconds * _MICROSECONDS)
        cells[at + 3] = int(tokens)

    def others(self, instance: str) -> tuple[int, int, float, float] | None:
        """The siblings' sums of one instance; None when nothing of theirs is there."""
        slot = self._slots.get(instance)
        if slot is None:
            return None
        cells, offset = self._cells, slot * FIELDS
        inflight = waiting = backlog = tokens = 0
        for row in self._others:
            at = row + offset
            if cells[at]:
                inflight += cells[at]
                waiting += cells[at + 1]
                backlog += cells[at + 2]
                tokens += cells[at + 3]
        return (inflight, waiting, backlog / _MICROSECONDS, float(tokens)) if inflight else None


@dataclass(frozen=True, slots=True)
class Siblings:
    """The other workers of the same gateway: what they have in flight, how a dispatch is told (model, prompt, instance), how a
    death (fingerprint of a body, instance, since when it had it, time), and how that such a body was answered (fingerprint, time)."""

    rows: SharedRows
    sent: Callable[[str, RouteRequest, str], None]
    died: Callable[[bytes, str, float, float], None]
    cleared: Callable[[bytes, float], None]


def bytes_of(rows: int, slots_each: int) -> int:
    """How much memory so many rows take."""
    return rows * slots_each * FIELDS * CELL_BYTES


def clear(cells: memoryview, slots_each: int, row: int) -> None:
    """Zero the row of a worker that is no more."""
    size = slots_each * FIELDS
    cells.cast("B")[row * size * CELL_BYTES : (row + 1) * size * CELL_BYTES] = bytes(size * CELL_BYTES)


def idle(cells: memoryview, slots_each: int, rows: int, slot: int) -> bool:
    """Whether no row has anything in this slot."""
    return not any(cells[(row * slots_each + slot) * FIELDS] for row in range(rows))
