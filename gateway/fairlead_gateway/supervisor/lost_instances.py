"""Instances that left the fleet without being drained, for people who look at it afterwards.

An engine that dies is no longer in the fleet: of eight, seven are ready, and nothing is wrong with
them. What is missing would be invisible.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.fleet.model import Fleet, Instance, InstanceState

REMEMBERED_SECONDS: Final = 300.0
"""Limit: a lost instance is remembered this long, unless another one takes its place."""
LOST_INSTANCES: Final = 256
"""Limit: lost instances of a model that are remembered."""


@dataclass(frozen=True, slots=True)
class LostInstance:
    """An instance that is gone. lost_at: monotonic seconds."""

    id: str
    pool: str
    lost_at: float


class LostInstances:
    """The lost instances of each model, by the changes of the fleet."""

    def __init__(self) -> None:
        self._lost: dict[str, list[LostInstance]] = {}

    def update(self, before: Fleet, after: Fleet, now: float) -> None:
        """Notes who is gone, and forgets those whose pool has got another instance."""
        for key in before.instances.keys() | self._lost.keys():
            if key not in after.models:
                self._lost.pop(key, None)
                continue
            old, new = _by_id(before, key), _by_id(after, key)
            lost = [entry for entry in self._lost.get(key, ()) if entry.id not in new]
            lost += [
                LostInstance(instance.id, instance.pool, now)
                for instance in old.values()
                if instance.id not in new and instance.state in (InstanceState.READY, InstanceState.STARTING)
            ]
            for instance in new.values():
                if instance.id not in old:
                    replaced = next((entry for entry in lost if entry.pool == instance.pool), None)
                    lost = [entry for entry in lost if entry is not replaced]
            self._lost[key] = lost[-LOST_INSTANCES:]

    def present(self, now: float) -> Mapping[str, Sequence[LostInstance]]:
        """Returns those that are remembered at a time, by model."""
        found = {
            key: [entry for entry in lost if now - entry.lost_at < REMEMBERED_SECONDS]
            for key, lost in self._lost.items()
        }
        return {key: lost for key, lost in found.items() if lost}


def _by_id(fleet: Fleet, key: str) -> dict[str, Instance]:
    return {instance.id: instance for instance in fleet.instances.get(key, ())}
