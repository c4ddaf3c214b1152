"""The progress of a canary: from its last state and a judgement to the next state. Pure.

The state is stored in `status.canary` of the model, and a restarted operator continues from it. A
decision is first written there and then carried out, so it is never taken twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.spec.rollout import Canary, OnMiss
from fairlead.api.status import CanaryPhase, ConditionStatus
from fairlead.kube.conditions import ConditionValue, format_time
from fairlead_operator.canary.judge import Judgement, Measure, Verdict

_REASONS: Final[Mapping[Measure, Reason]] = {
    Measure.TTFT: Reason.TTFT_MISSED,
    Measure.TPOT: Reason.TPOT_MISSED,
    Measure.ERRORS: Reason.ERRORS_MISSED,
    Measure.ANSWER_LENGTH: Reason.ANSWER_LENGTH_MISSED,
}
_UNDER_WAY: Final = (CanaryPhase.STARTING, CanaryPhase.OBSERVING, CanaryPhase.PAUSED)


@dataclass(frozen=True, slots=True)
class CanaryState:
    """The latest canary of a model.

    since: when its step began, as the API server writes times.
    reason: of the condition `CanaryHealthy`.
    """

    revision: int
    hash: str
    phase: CanaryPhase
    step: int
    weight: int
    since: str
    reason: str
    message: str

    @property
    def is_under_way(self) -> bool:
        return self.phase in _UNDER_WAY

    @property
    def is_observed(self) -> bool:
        return self.phase is CanaryPhase.OBSERVING

    @property
    def is_refused(self) -> bool:
        """True if the revision was worse; it is not tried again."""
        return self.phase is CanaryPhase.ROLLED_BACK and self.reason != Reason.ENDED_BY_HAND

    def to_status(self) -> dict[str, Any]:
        """Returns the value of `status.canary`."""
        return {
            "revision": self.revision,
            "hash": self.hash,
            "phase": self.phase.value,
            "step": self.step,
            "weight": self.weight,
            "since": self.since,
            "reason": self.reason,
            "message": self.message,
        }

    def condition(self) -> ConditionValue:
        """Returns the condition of the model."""
        if self.phase is CanaryPhase.PROMOTED:
            status = ConditionStatus.TRUE
        elif self.phase in (CanaryPhase.ROLLED_BACK, CanaryPhase.PAUSED):
            status = ConditionStatus.FALSE
        else:
            status = ConditionStatus.UNKNOWN
        return ConditionValue(ConditionType.CANARY_HEALTHY, status, Reason(self.reason), self.message)


def parse_state(status: Mapping[str, Any]) -> CanaryState | None:
    """Returns the state from the status of a model; None without one, or if it is unreadable."""
    found = status.get("canary")
    if not isinstance(found, dict):
        return None
    try:
        return CanaryState(
            int(found["revision"]),
            str(found["hash"]),
            CanaryPhase(found["phase"]),
            int(found["step"]),
            int(found["weight"]),
            str(found["since"]),
            Reason(found["reason"]).value,
            str(found.get("message", "")),
        )
    except (KeyError, TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class CanaryInputs:
    """The facts that decide about the next state.

    canary: settings of the spec; None without.
    wanted: number and hash of the revision to try; None if there is none.
    running: hash of the revision that runs.
    is_ready: all of the canary's instances are ready.
    is_paused: the rollout is paused.
    judgement: on the present step; None if there is none.
    """

    canary: Canary | None
    wanted: tuple[int, str] | None
    running: str
    is_ready: bool
    is_paused: bool
    judgement: Judgement | None
    wall: float


def next_state(state: CanaryState | None, inputs: CanaryInputs) -> CanaryState | None:
    """Returns the next state of a model's canary; None if the model never had one."""
    if inputs.wanted is None or inputs.canary is None:
        return _end_canary(state, inputs)
    number, hash = inputs.wanted
    now = format_time(inputs.wall)
    if state is None or state.hash != hash or state.phase is CanaryPhase.ROLLED_BACK:
        return _starting_state(number, hash, now)
    if inputs.is_paused or state.phase in (CanaryPhase.PROMOTED, CanaryPhase.PAUSED):
        return replace(state, revision=number)
    if state.phase is CanaryPhase.STARTING:
        return _observing_state(state, 0, inputs.canary, now) if inputs.is_ready else replace(state, revision=number)
    return _apply_judgement(state, inputs.canary, inputs.judgement, now)


def _end_canary(state: CanaryState | None, inputs: CanaryInputs) -> CanaryState | None:
    """Returns the state once the spec asks for no canary: promoted or ended by hand."""
    if state is None or state.phase is CanaryPhase.PROMOTED:
        return state
    now = format_time(inputs.wall)
    if state.hash == inputs.running:
        message = f"revision {state.revision} was promoted by hand"
        return replace(state, phase=CanaryPhase.PROMOTED, reason=Reason.PROMOTED.value, message=message, since=now)
    if not state.is_under_way:
        return state
    message = f"the canary of revision {state.revision} was ended by hand"
    return _rolled_back_state(state, Reason.ENDED_BY_HAND, message, now)


def _starting_state(number: int, hash: str, now: str) -> CanaryState:
    message = f"instances of revision {number} are starting"
    return CanaryState(number, hash, CanaryPhase.STARTING, 0, 0, now, Reason.CANARY_STARTING.value, message)


def _observing_state(state: CanaryState, step: int, canary: Canary, now: str) -> CanaryState:
    weight = canary.steps[min(step, len(canary.steps) - 1)]
    message = f"revision {state.revision} gets {weight} % of the conversations"
    return replace(
        state,
        phase=CanaryPhase.OBSERVING,
        step=step,
        weight=weight,
        since=now,
        reason=Reason.OBSERVING.value,
        message=message,
    )


def _rolled_back_state(state: CanaryState, reason: Reason, message: str, now: str) -> CanaryState:
    return replace(state, phase=CanaryPhase.ROLLED_BACK, weight=0, reason=reason.value, message=message, since=now)


def _apply_judgement(state: CanaryState, canary: Canary, judgement: Judgement | None, now: str) -> CanaryState:
    if judgement is None:
        return state
    if judgement.verdict is Verdict.ROLLBACK:
        reason = _REASONS[judgement.missed or Measure.ERRORS]
        message = f"revision {state.revision} has {judgement.reason}"
        if canary.on_miss is OnMiss.PAUSE:
            return replace(state, phase=CanaryPhase.PAUSED, reason=reason.value, message=message, since=now)
        return _rolled_back_state(state, reason, message, now)
    if judgement.verdict is Verdict.PROMOTE:
        if state.step + 1 < len(canary.steps):
            return _observing_state(state, state.step + 1, canary, now)
        message = f"revision {state.revision} is promoted: {judgement.reason}"
        return replace(state, phase=CanaryPhase.PROMOTED, reason=Reason.PROMOTED.value, message=message, since=now)
    message = f"revision {state.revision} gets {state.weight} % of the conversations: {judgement.reason}"
    return replace(state, message=message)
