"""Conditions in `status.conditions`, as every Kubernetes controller writes them. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

MAX_MESSAGE_LENGTH: Final = 2_000


@dataclass(frozen=True, slots=True)
class ConditionValue:
    """The content of a condition, without its times. `status` is `True`, `False` or `Unknown`."""

    type: str
    status: str
    reason: str
    message: str


def find_condition(status: Mapping[str, Any], type: str) -> Mapping[str, Any] | None:
    """Returns a condition of a status; None if it is absent."""
    return next((condition for condition in status.get("conditions") or [] if condition.get("type") == type), None)


def conditions_for(
    values: Iterable[ConditionValue], previous: Mapping[str, Any], generation: int, now: str
) -> list[dict[str, Any]]:
    """Returns the conditions to write. A transition time changes only with the condition's status.

    previous: the current status.
    generation: the `metadata.generation` that the conditions describe.
    now: current time as the API server writes it.
    """
    return [_condition(value, find_condition(previous, value.type), generation, now) for value in values]


def format_time(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: object) -> float | None:
    """Returns a time of the API as Unix time; None if it cannot be read."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _condition(value: ConditionValue, previous: Mapping[str, Any] | None, generation: int, now: str) -> dict[str, Any]:
    unchanged_since = None
    if previous is not None and previous.get("status") == value.status:
        unchanged_since = previous.get("lastTransitionTime")
    return {
        "type": str(value.type),
        "status": str(value.status),
        "reason": str(value.reason),
        "message": value.message[:MAX_MESSAGE_LENGTH],
        "lastTransitionTime": unchanged_since or now,
        "observedGeneration": generation,
    }
