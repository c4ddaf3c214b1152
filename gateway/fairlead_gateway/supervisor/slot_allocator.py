"""Which slot of the shared rows belongs to which instance. One that has left keeps it until nothing of it is in flight anywhere.

A slot is given to another instance a minute after its last one left the fleet, and only when no worker's row has anything in it:
by then every worker has the new fleet, or has been silent for so long that its load is not known anyway.
"""

from collections.abc import Callable

from fairlead.fleet.model import Fleet

_RETIRED_SECONDS = 60.0


class SlotAllocator:
    """At most ``most`` slots; ``idle`` says whether all rows are empty at one."""

    def __init__(self, count: int, is_idle: Callable[[int], bool]) -> None:
        self._is_idle = is_idle
        self._free = list(range(count - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._left_at: dict[str, float] = {}

    def assign(self, fleet: Fleet, now: float) -> dict[str, int]:
        """The slots for this fleet, those of instances that left not long ago included."""
        present = {one.id for instances in fleet.instances.values() for one in instances}
        for item in self._slots:
            if item in present:
                self._left_at.pop(item, None)
            else:
                self._left_at.setdefault(item, now)
        for item, since in list(self._left_at.items()):
            if now - since >= _RETIRED_SECONDS and self._is_idle(self._slots[item]):
                self._free.append(self._slots.pop(item))
                del self._left_at[item]
        for instances in fleet.instances.values():
            for one in instances:
                if one.id not in self._slots and self._free:
                    self._slots[one.id] = self._free.pop()
        return dict(self._slots)
