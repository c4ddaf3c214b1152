"""A choice with its reason: what every deciding function of Fairlead returns.

A Decision never holds a prompt or a key; ids, counts and seconds only. It is what headers, the decision log,
``/why`` in ``fairlead chat`` and the status page show, so it must be enough to redo the choice by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Input:
    """One number that a choice was made from, and how old it was (seconds; None = computed just then)."""

    value: float | None
    age_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate that was not taken, and why, in words."""

    id: str
    why: str


@dataclass(frozen=True, slots=True)
class Decision:
    """``chosen`` is None when nothing could be chosen; ``rule`` is the closed-list name of the rule that decided.

    ``cost_seconds`` is what the choice is expected to cost in engine time; ``inputs`` maps a name such as
    ``"pod-3/backlog_seconds"`` to the number used.
    """

    chosen: str | None
    rule: str
    reason: str
    rejected: tuple[Rejected, ...] = ()
    inputs: Mapping[str, Input] = field(default_factory=dict)
    cost_seconds: float | None = None
