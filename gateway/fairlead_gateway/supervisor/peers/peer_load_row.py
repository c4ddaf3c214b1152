"""What the other gateways have in flight, in a row of the memory that workers read for a decision.

The helper writes it whenever it hears something; to a worker it is the row of one more sibling.
"""

from collections.abc import Mapping

from fairlead_gateway.routing.load.shared_memory import SharedLoadTable


class PeerLoadRow:
    """``row`` is its place in the memory."""

    def __init__(self, cells: memoryview, slots_each: int, row: int) -> None:
        self.row = row
        self._rows = SharedLoadTable(cells, slots_each, row)
        self._slots: Mapping[str, int] = {}
        self._written: set[str] = set()
        self._loads: Mapping[str, tuple[int, int, float, float]] = {}

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Where each instance has its slot from now on."""
        self._slots = slots
        self._rows.set_slots(slots)
        self.set_loads(self._loads)

    def set_loads(self, loads: Mapping[str, tuple[int, int, float, float]]) -> None:
        """All that they have in flight, by instance: requests, those without a first token, seconds before them, tokens."""
        self._loads = loads
        for gone in self._written - loads.keys():
            self._rows.write(gone, 0, 0, 0.0, 0.0)
        self._written = {instance for instance in loads if instance in self._slots}
        for instance in self._written:
            self._rows.write(instance, *loads[instance])
