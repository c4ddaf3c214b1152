"""A request that has been assigned and waits before its engine, as presets see it that order those."""

from dataclasses import dataclass

Order = tuple[float, float, str]
"""The smallest goes first."""


@dataclass(frozen=True, slots=True)
class Stay:
    """``hit_tokens`` of its prompt are cached where it is to go, ``own_seconds`` takes the rest; it ``arrived`` when it was assigned
    first, and wants its first token ``objective_seconds`` later."""

    id: str
    arrived: float
    hit_tokens: float
    own_seconds: float
    objective_seconds: float
