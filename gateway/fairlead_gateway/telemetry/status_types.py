"""Values that metrics and management API read from other parts of the gateway."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeAlias

TenantValues: TypeAlias = Mapping[str, Sequence[tuple[str, float]]]
"""By metric name without prefix: the tenants that have a series of their own, with their values."""


class IndexState(StrEnum):
    """The degree to which routing knows what an instance has cached."""

    INDEX = "index"
    INCOMPLETE = "incomplete"
    QUARANTINED = "quarantined"
    GUESSED = "hashing only"


@dataclass(frozen=True, slots=True)
class BlockCounts:
    """Blocks of one instance: distinct ones in any tier, those that no other instance has, and
    those of the latter that were used lately.

    Why: these are lost when the instance is removed, and recent ones are soon computed again.
    """

    blocks: int
    unique: int
    unique_used: int


@dataclass(frozen=True, slots=True)
class InstanceIndexStatus:
    """The index status of one instance.

    - predicted_tokens, reported_tokens: sums over responses that reported cached tokens.
    - unreported: responses that did not.
    - late: responses with fewer cached tokens because the engine had just evicted them.
    - ratio: predicted tokens per reported one; None while none was reported.
    - block_counts: None if the instance does not report its cache.
    """

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


@dataclass(frozen=True, slots=True)
class ModelIndexStatus:
    """The index status of one model.

    - linked_blocks: blocks of prompt text that its prefix map links to token blocks.
    - lowered_links: links that another prompt contradicted, cut to the shared prefix.
    - learned_prompts: prompts that the links were learned from.
    - token_source: how the gateway gets tokens of prompts, as text.
    """

    instances: Mapping[str, InstanceIndexStatus]
    linked_blocks: int
    lowered_links: int
    learned_prompts: int
    token_source: str


IndexStatus = Mapping[str, ModelIndexStatus]
"""By model (`namespace/name`). A model without an engine that reports its cache is missing."""


class LoadView(Protocol):
    """The load of an instance, as `routing.InstanceLoad` has it."""

    @property
    def inflight(self) -> int:
        """Requests sent there and not finished."""

    @property
    def waiting(self) -> int:
        """Requests without a first token."""

    @property
    def backlog_seconds(self) -> float:
        """Engine time of work sent there."""

    @property
    def inflight_tokens(self) -> float:
        """Tokens of the requests in flight there."""

    @property
    def queued(self) -> int:
        """Requests of these that wait in the gateway."""


class HealthState(StrEnum):
    """The health of an instance: the extent to which it may be used."""

    HEALTHY = "Healthy"
    EJECTED = "Ejected"
    PROBING = "Probing"
    WARMING = "WarmingUp"
