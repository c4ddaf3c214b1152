"""The record of a prompt's hand-off from prefill to decode, for decisions, metrics and traces."""

from dataclasses import dataclass, field
from typing import Final

from fairlead.decision import Decision

OK: Final = "ok"
PENDING: Final = "pending"
DONE: Final = "done"
BYPASSED: Final = "bypassed"
FAILED: Final = "failed"


@dataclass(slots=True)
class PrefillAttempt:
    """One attempt at a prefill instance.

    - result: `pending`, `ok`, or one word for the failure.
    - started_at: monotonic seconds.
    - seconds: None until it has ended.
    - crashed: the instance crashed while it had the prompt.
    """

    instance_id: str
    decision: Decision
    started_at: float
    seconds: float | None = None
    result: str = PENDING
    crashed: bool = False


@dataclass(slots=True)
class HandoffRecord:
    """The record of a hand-off. It holds no prompt.

    - outcome: `pending`, `done`, `bypassed` or `failed`.
    - reason: one word of a closed list; `message` is the same as text.
    - placement: the decision where to compute the prompt (`routing.prefill_placement`); None if
      there was no choice.
    - waited_seconds: time before a decode instance could be chosen.
    """

    outcome: str = PENDING
    reason: str = "none"
    message: str = ""
    waited_seconds: float = 0.0
    attempts: list[PrefillAttempt] = field(default_factory=list)
    placement: Decision | None = None

    @property
    def prefilled_locally(self) -> bool:
        """True if no prefill instance computed the prompt: the decode instance does."""
        return not any(leg.result == OK for leg in self.attempts)

    @property
    def is_suspicious(self) -> bool:
        """True if a prefill instance crashed on the prompt and no other has computed it.

        Why: the instance that then answers has not shown that the prompt is harmless to prefill
        instances.
        """
        return self.outcome != DONE and any(leg.crashed for leg in self.attempts)
