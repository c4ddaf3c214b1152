"""The in-flight load of other gateways, in a row of the memory that workers read for a decision.

The supervisor writes it when a peer's message arrives. Workers read it like a sibling's row.
"""

from collections.abc import Mapping

from fairlead_gateway.routing.load.shared_memory import SharedLoadTable


class PeerLoadRow:
    """The row of all other gateways; `row` is its index in the shared load table."""

    def __init__(self, cells: memoryview, slots_each: int, row: int) -> None:
        self.row = row
        self._rows = SharedLoadTable(cells, slots_each, row)
        self._slots: Mapping[str, int] = {}
        self._written: set[str] = set()
        self._loads: Mapping[str, tuple[int, int, float, float, int]] = {}

    def set_slots(self, slots: Mapping[str, int]) -> None:
        """Sets the slot of each instance, and writes the loads there."""
        self._slots = slots
        self._rows.set_slots(slots)
        self.set_loads(self._loads)

    def set_loads(self, loads: Mapping[str, tuple[int, int, float, float, int]]) -> None:
        """Sets the total load of other gateways.

        loads: by instance: requests, those without a first token, seconds of prefill, tokens, and
        requests that wait in their gateways.
        """
        self._loads = loads
        for instance in self._written - loads.keys():
            self._rows.write(instance, 0, 0, 0.0, 0.0)
        self._written = {instance for instance in loads if instance in self._slots}
        for instance in self._written:
            self._rows.write(instance, *loads[instance])
