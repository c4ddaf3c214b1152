"""What became of one prompt's way from prefill to decode, for the decision log, metrics and traces. It holds no prompt."""

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
    """One prefill engine that was asked. ``result`` is ``pending``, ``ok`` or one word for what went wrong; ``began`` is
    monotonic seconds, ``seconds`` None until it ended. ``died``: it had the prompt and broke off."""

    instance_id: str
    decision: Decision
    started_at: float
    seconds: float | None = None
    result: str = PENDING
    crashed: bool = False


@dataclass(slots=True)
class HandoffRecord:
    """``outcome`` is ``pending``, ``done``, ``bypassed`` or ``failed``, ``reason`` one word of a closed list, ``words`` the same for
    people. ``where`` is the decision who computes the prompt (``routing.convertible``), None where two engines cannot.
    ``waited_seconds`` passed before a decode engine could be chosen."""

    outcome: str = PENDING
    reason: str = "none"
    message: str = ""
    waited_seconds: float = 0.0
    attempts: list[PrefillAttempt] = field(default_factory=list)
    placement: Decision | None = None

    @property
    def prefilled_locally(self) -> bool:
        """No prefill engine has computed the prompt: the one that answers does."""
        return not any(leg.result == OK for leg in self.attempts)

    @property
    def is_suspicious(self) -> bool:
        """A prefill engine broke off on the prompt and no other has computed it: whoever answered it then has not shown that it
        is harmless to those that prefill."""
        return self.outcome != DONE and any(leg.crashed for leg in self.attempts)
