"""Storage tiers of a block, and the spellings that engines use for them.

``gpu``, ``cpu`` and ``disk`` belong to one instance and are exact: the instance reports each block
that comes and goes. ``remote`` is a store that instances share (Mooncake, LMCache, a file system).
The instance that writes a block reports it, evictions are not reported, and all instances can read
the block. So the store is a place of its own, like an instance of the model (``shared_store_id``).
Its blocks are in its first tier, and they expire (``SharedStore``).

The medium alone does not say which of the two is meant: vLLM's own offloading writes ``CPU``, its
Mooncake store ``cpu``. Taking a shared block for an exact one leaves a permanent ghost; the reverse
costs a cache hit. Therefore three cases count as shared: the spelling ``cpu``, a word that the
table lacks, and a locality other than local.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final

_ENGINE_GPU: Final = "GPU"
_ENGINE_CPU: Final = "CPU"
_LOCAL: Final = "local"

_SHARED_STORE: Final = "shared store of "


class StorageTier(IntEnum):
    """A tier, from fast to slow. The values are stable because they are stored."""

    GPU = 0
    CPU = 1
    DISK = 2
    REMOTE = 3


INSTANCE_TIERS: Final = (StorageTier.GPU, StorageTier.CPU, StorageTier.DISK)
"""The tiers that are counted per instance."""

TIER_BY_MEDIUM: Final[Mapping[str, StorageTier]] = MappingProxyType(
    {
        "gpu": StorageTier.GPU,
        "device": StorageTier.GPU,
        "hbm": StorageTier.GPU,
        "cpu_pinned": StorageTier.CPU,
        "host": StorageTier.CPU,
        "dram": StorageTier.CPU,
        "disk": StorageTier.DISK,
        "ssd": StorageTier.DISK,
        "nvme": StorageTier.DISK,
        "remote": StorageTier.REMOTE,
        "external": StorageTier.REMOTE,
        "storage": StorageTier.REMOTE,
    }
)
"""Tiers by medium in lower case. ``cpu`` is missing on purpose: its case decides."""


def shared_store_id(model_key: str) -> str:
    """Returns the id of the store that all instances of a model reach. Those of instances have no
    space.
    """
    return _SHARED_STORE + model_key


def is_shared_store(instance: str) -> bool:
    return instance.startswith(_SHARED_STORE)


def storage_tier(medium: str | None, locality: object) -> StorageTier:
    """Returns the tier that an event's medium and locality mean."""
    if medium is None:
        return StorageTier.GPU  # older engines have one tier and send no medium
    if locality is None and medium == _ENGINE_GPU:  # the usual case, on the hot path
        return StorageTier.GPU
    if isinstance(locality, str) and locality.lower() != _LOCAL:
        return StorageTier.REMOTE
    tier = TIER_BY_MEDIUM.get(medium.lower())
    if tier is None:
        return StorageTier.CPU if medium == _ENGINE_CPU else StorageTier.REMOTE
    return tier
