"""Assigns each instance its slot in the rows of the shared load table.

An instance that left the fleet keeps its slot for at least a minute, and until the slot is zero in
every worker's row.

Why: by then every worker has the new fleet, or has been unresponsive for so long that its load is
unknown anyway.
"""

from collections.abc import Callable

from fairlead.fleet.model import Fleet

_RETIRED_SECONDS = 60.0


class SlotAllocator:
    """The slots of the shared load table, by instance.

    is_idle: returns whether a slot is zero in all rows.
    """

    def __init__(self, count: int, is_idle: Callable[[int], bool]) -> None:
        self._is_idle = is_idle
        self._free = list(range(count - 1, -1, -1))
        self._slots: dict[str, int] = {}
        self._left_at: dict[str, float] = {}

    def assign(self, fleet: Fleet, now: float) -> dict[str, int]:
        """Returns the slots by instance, including instances that left recently.

        Instances beyond the number of slots get none.
        """
        present = {instance.id for instances in fleet.instances.values() for instance in instances}
        for instance_id in self._slots:
            if instance_id in present:
                self._left_at.pop(instance_id, None)
            else:
                self._left_at.setdefault(instance_id, now)
        for instance_id, left_at in list(self._left_at.items()):
            if now - left_at >= _RETIRED_SECONDS and self._is_idle(self._slots[instance_id]):
                self._free.append(self._slots.pop(instance_id))
                del self._left_at[instance_id]
        for instances in fleet.instances.values():
            for instance in instances:
                if instance.id not in self._slots and self._free:
                    self._slots[instance.id] = self._free.pop()
        return dict(self._slots)
