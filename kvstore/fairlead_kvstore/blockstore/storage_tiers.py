"""Storage tiers of a block, and the spellings that engines use for them.

``gpu``, ``cpu`` and ``disk`` belong to one instance and are exact: the instance reports each block
that comes and goes. ``remote`` is a store that instances share (Mooncake, LMCache, a file system).
The instance that writes a block reports it, evictions are not reported, and all instances can read
the block. It is therefore a hint for the whole model, which expires (``shared_store_hints.py``).

The medium alone does not say which of the two is meant: vLLM's own offloading writes ``CPU``, its
Mooncake store ``cpu``. Taking a shared block for an exact one leaves a permanent ghost; the reverse
costs a cache hit. Therefore three cases count as shared: the spelling ``cpu``, a word that the
table lacks, and a locality other than local. A caller that knows the engine's connector overrides
this with ``BlockStore.attach(..., shared_media=…, exact_media=…)``.
"""

from collections.abc import Mapping
from enum import IntEnum
from types import MappingProxyType
from typing import Final


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

_MAX_MEDIA: Final = 32
_ENGINE_CPU: Final = "CPU"
_LOCAL: Final = "local"


def storage_tier(
    medium: str | None,
    locality: object = None,
    *,
    shared: frozenset[str] = frozenset(),
    exact: frozenset[str] = frozenset(),
) -> StorageTier:
    """Returns the tier that an event's medium and locality mean.

    shared, exact: media in lower case that are known to be shared, or to belong to one instance.
    """
    if medium is None:
        return StorageTier.GPU  # older engines have one tier and send no medium
    word = medium.lower()
    if word in shared:
        return StorageTier.REMOTE
    tier = TIER_BY_MEDIUM.get(word)
    if word in exact:
        return StorageTier.CPU if tier is None else StorageTier.DISK if tier is StorageTier.REMOTE else tier
    if isinstance(locality, str) and locality.lower() != _LOCAL:
        return StorageTier.REMOTE
    if tier is None:
        return StorageTier.CPU if medium == _ENGINE_CPU else StorageTier.REMOTE
    return tier


class MediumTiers:
    """The tiers of an instance's media; those of the first media are remembered.

    shared, exact: see ``storage_tier``.
    """

    __slots__ = ("_known", "_shared", "exact")

    def __init__(self, shared: frozenset[str], exact: frozenset[str]) -> None:
        self._shared = shared
        self.exact = exact
        self._known: dict[str | None, StorageTier] = {}

    def find(self, medium: str | None, locality: object) -> StorageTier:
        """Returns the tier of an event."""
        known = self._known.get(medium) if locality is None else None
        if known is None:
            known = storage_tier(medium, locality, shared=self._shared, exact=self.exact)
            if locality is None and len(self._known) < _MAX_MEDIA:
                self._known[medium] = known
        return known
