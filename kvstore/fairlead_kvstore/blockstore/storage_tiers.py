"""Where a block lies: four tiers, and how engines spell them.

``gpu``, ``cpu`` and ``disk`` belong to one instance and are exact: it announces what comes and what goes. ``remote`` is a store
that many instances share (Mooncake, LMCache, a file system): the writer announces what it puts there, nobody announces what the
store evicts, and every member can read it. Such a block is therefore no instance's property but a hint for the whole model
that runs out, see ``shared.py``.

The medium alone does not tell which of the two is meant: vLLM's own offloading says ``CPU``, its Mooncake store ``cpu``. Taking a
shared block for an exact one would leave a ghost for ever, the other way round costs a hit, so what is not known is shared:
the spelling ``cpu``, every word that is not in the table, and whatever an engine marks with a locality other than local.
Who knows the engine's connector says so (``attach(..., shared_media=…, exact_media=…)``).
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


class StorageTier(IntEnum):
    """From fast to slow. The value is stable: it may be stored."""

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
"""Media in lower case. ``cpu`` is missing on purpose: only its case tells whose it is."""

_OWN_CPU: Final = "CPU"
_LOCAL: Final = "local"


def storage_tier(
    medium: str | None,
    locality: object = None,
    *,
    shared: frozenset[str] = frozenset(),
    exact: frozenset[str] = frozenset(),
) -> StorageTier:
    """The tier that an event speaks of. ``shared`` and ``exact`` hold media in lower case that are known to be that."""
    if medium is None:
        return StorageTier.GPU  # older engines have one tier and do not name it
    word = medium.lower()
    if word in shared:
        return StorageTier.REMOTE
    tier = TIER_BY_MEDIUM.get(word)
    if word in exact:
        return StorageTier.CPU if tier is None else StorageTier.DISK if tier is StorageTier.REMOTE else tier
    if isinstance(locality, str) and locality.lower() != _LOCAL:
        return StorageTier.REMOTE
    if tier is None:
        return StorageTier.CPU if medium == _OWN_CPU else StorageTier.REMOTE
    return tier
