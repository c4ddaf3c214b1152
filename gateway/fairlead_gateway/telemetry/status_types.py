"""How far the index follows a model's instances and how good it was, as status and metrics show it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from fairlead_kvstore.analysis.block_counts import BlockCounts
from fairlead_kvstore.analysis.removal_ranking import RemovalRank
from fairlead_kvstore.analysis.replication_hints import ReplicationHint


class IndexState(StrEnum):
    """How far routing knows what an instance holds."""

    INDEX = "index"
    INCOMPLETE = "incomplete"
    STALE = "stale"
    QUARANTINED = "quarantined"
    GUESSED = "hashing only"


@dataclass(frozen=True, slots=True)
class InstanceIndexStatus:
    """One instance. Tokens are sums over answers whose cached tokens were reported; ``silent`` are those whose were not, ``late``
    those that found less since the engine had just lost it; ``ratio``
    is predicted to reported, None until both are known. ``held`` and ``victim``: what it holds and what would be lost with it, None
    where it does not tell."""

    state: IndexState
    reason: str
    predicted_tokens: int
    reported_tokens: int
    answers: int
    unreported: int
    late: int
    quarantines: int
    ratio: float | None
    block_counts: BlockCounts | None = None
    removal_rank: RemovalRank | None = None


@dataclass(frozen=True, slots=True)
class ModelIndexStatus:
    """One model: its instances by id; blocks of prompts that are linked, links that had to be lowered, prompts that were learned, and
    how they are learned, in words; hot prefixes that want another home."""

    instances: Mapping[str, InstanceIndexStatus]
    linked_blocks: int
    lowered_links: int
    learned_prompts: int
    token_source: str
    replication_hints: tuple[ReplicationHint, ...] = ()


IndexStatus = Mapping[str, ModelIndexStatus]
"""By model (``namespace/name``); a model without an engine that tells what it holds is missing."""


class LoadView(Protocol):
    """The router's ``InstanceLoad`` fits."""

    @property
    def inflight(self) -> int:
        """Requests sent there and not ended."""
        ...

    @property
    def waiting(self) -> int:
        """Of those, the ones without a first token."""
        ...

    @property
    def backlog_seconds(self) -> float:
        """Engine time of work already sent there."""
        ...

    @property
    def inflight_tokens(self) -> float:
        """Tokens those requests hold."""
        ...


class PublishStats(Protocol):
    """What this gateway told the others through Redis (``kvstore``'s ``Decisions`` fits)."""

    @property
    def connected(self) -> bool:
        """Whether Redis answers."""
        ...

    @property
    def published(self) -> int:
        """Decisions told."""
        ...

    @property
    def dropped(self) -> int:
        """Decisions that waited too long for a Redis that was away."""
        ...

    @property
    def refused(self) -> int:
        """Decisions that Redis would not take."""
        ...


class HealthState(StrEnum):
    """How far an instance may be used."""

    HEALTHY = "Healthy"
    EJECTED = "Ejected"
    PROBING = "Probing"
    WARMING = "WarmingUp"
