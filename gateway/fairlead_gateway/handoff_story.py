"""What became of one prompt's way from prefill to decode, for the decision log, metrics and traces. It holds no prompt."""

from dataclasses import dataclass, field
from typing import Final

from fairlead.decision import Decision

PENDING: Final = "pending"
DONE: Final = "done"
BYPASSED: Final = "bypassed"
FAILED: Final = "failed"


@dataclass(slots=True)
class PrefillLeg:
    """One prefill engine that was asked. ``result`` is ``pending``, ``ok`` or one word for what went wrong; ``began`` is
    monotonic seconds, ``seconds`` None until it ended."""

    instance_id: str
    decision: Decision
    began: float
    seconds: float | None = None
    result: str = PENDING


@dataclass(slots=True)
class HandoffStory:
    """``outcome`` is ``pending``, ``done``, ``bypassed`` or ``failed``, ``reason`` one word of a closed list, ``words`` the same for
    people. ``waited_seconds`` passed before a decode engine could be chosen."""

    outcome: str = PENDING
    reason: str = "none"
    words: str = ""
    waited_seconds: float = 0.0
    legs: list[PrefillLeg] = field(default_factory=list)
