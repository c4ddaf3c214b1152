"""Chooses the instances that keep an adapter loaded, also while no request names it. Pure.

They are the first homes of the adapter, so all gateways choose alike. An instance with several
slots leaves one to adapters that are loaded on demand.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """An adapter with a fixed number of replicas.

    homes: the instances in the order in which they are its homes.
    """

    name: str
    replicas: int
    homes: tuple[str, ...]


def choose_keepers(adapters: Iterable[KeptAdapter], slots: int) -> Mapping[str, frozenset[str]]:
    """Returns the names of the adapters that each instance keeps, by its id.

    An adapter gets fewer replicas if there are fewer instances, or if other adapters of an earlier
    name fill their slots.

    slots: adapters that one instance holds at a time.
    """
    kept: dict[str, set[str]] = {}
    for adapter in sorted(adapters, key=lambda adapter: adapter.name):
        missing = adapter.replicas
        for instance_id in adapter.homes:
            names = kept.setdefault(instance_id, set())
            if missing > 0 and len(names) < max(1, slots - 1):
                names.add(adapter.name)
                missing -= 1
    return {instance_id: frozenset(names) for instance_id, names in kept.items() if names}
