"""A request that has been assigned and waits before its engine, as presets see it that order those."""

from dataclasses import dataclass

QueueKey = tuple[float, float, str]
"""The smallest goes first."""


@dataclass(frozen=True, slots=True)
class AssignedRequest:
    """``hit_tokens`` of its prompt are cached where it is to go, ``own_seconds`` takes the rest; it ``arrived`` when it was assigned
    first, and wants its first token ``objective_seconds`` later."""

    id: str
    assigned_at: float
    cached_tokens: float
    prefill_seconds: float
    objective_seconds: float
