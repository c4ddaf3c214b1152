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


class Tier(IntEnum):
    """From fast to slow. The value is stable: it may be stored."""

    GPU = 0
    CPU = 1
    DISK = 2
    REMOTE = 3


EXACT: Final = (Tier.GPU, Tier.CPU, Tier.DISK)
"""The tiers that are counted per instance."""

SPELLINGS: Final[Mapping[str, Tier]] = MappingProxyType(
    {
        "gpu": Tier.GPU,
        "device": Tier.GPU,
        "hbm": Tier.GPU,
        "cpu_pinned": Tier.CPU,
        "host": Tier.CPU,
        "dram": Tier.CPU,
        "disk": Tier.DISK,
        "ssd": Tier.DISK,
        "nvme": Tier.DISK,
        "remote": Tier.REMOTE,
        "external": Tier.REMOTE,
        "storage": Tier.REMOTE,
    }
)
"""Media in lower case. ``cpu`` is missing on purpose: only its case tells whose it is."""

_OWN_CPU: Final = "CPU"
_LOCAL: Final = "local"


def tier_of(
    medium: str | None,
    locality: object = None,
    *,
    shared: frozenset[str] = frozenset(),
    exact: frozenset[str] = frozenset(),
) -> Tier:
    """The tier that an event speaks of. ``shared`` and ``exact`` hold media in lower case that are known to be that."""
    if medium is None:
        return Tier.GPU  # older engines have one tier and do not name it
    word = medium.lower()
    if word in shared:
        return Tier.REMOTE
    tier = SPELLINGS.get(word)
    if word in exact:
        return Tier.CPU if tier is None else Tier.DISK if tier is Tier.REMOTE else tier
    if isinstance(locality, str) and locality.lower() != _LOCAL:
        return Tier.REMOTE
    if tier is None:
        return Tier.CPU if medium == _OWN_CPU else Tier.REMOTE
    return tier
