"""The condition `fairlead.io/Serving` of pods: its reasons, with meaning and advice.

docs/reference/conditions.md is generated from this module.
"""

from dataclasses import dataclass
from enum import StrEnum


class ServingReason(StrEnum):
    """The `reason` of the condition `fairlead.io/Serving`, which the operator writes on pods."""

    ENGINE_HUNG = "EngineHung"
    ENGINE_ANSWERS = "EngineAnswers"


@dataclass(frozen=True, slots=True)
class ServingReasonInfo:
    """Documentation of a reason of the condition `fairlead.io/Serving`."""

    reason: ServingReason
    status: str
    when: str
    advice: str


def serving_reasons() -> tuple[ServingReasonInfo, ...]:
    """Returns the documentation of every reason of the condition `fairlead.io/Serving`."""
    return (
        ServingReasonInfo(
            ServingReason.ENGINE_HUNG,
            "False",
            "The engine takes connections and answers no request, by two gateways, or by one and its own probes. "
            "The message names the gateways.",
            "Nothing, if restarts are on: the operator deletes the pod after `operator.hungEngines.restartAfter`. "
            "Otherwise delete it. Read the engine's log first, if it is needed.",
        ),
        ServingReasonInfo(
            ServingReason.ENGINE_ANSWERS,
            "True",
            "The engine hung, and answers again.",
            "Nothing.",
        ),
    )
