"""Rollout status as text: the running revision, its conditions, and the stored revisions."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

from fairlead.kube.resources import key_of
from fairlead_cli.rollouts.revisions import RevisionEntry, RolloutStatus

_CHANGES: Final = 3
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def to_plain(status: RolloutStatus) -> dict[str, Any]:
    """Returns the complete status for a document."""
    running, present = status.choice.revision.number, status.choice.current.number
    return {
        "model": key_of(status.model),
        "running_revision": running,
        "spec_revision": present,
        "pending_reason": status.choice.reason if status.choice.is_pending else None,
        "problem": status.choice.problem or None,
        "paused": status.is_paused,
        "settled": status.is_settled,
        "conditions": (status.model.get("status") or {}).get("conditions") or [],
        "revisions": [
            {"revision": entry.revision.number, "created": entry.created or None, "changed": entry.changed_fields}
            for entry in status.revisions
        ],
    }


def render_status(status: RolloutStatus, now: float, *, is_wide: bool = False) -> Iterator[str]:
    """Yields the rollout status as lines of text.

    now: Unix time.

    is_wide: all changed fields of each revision.
    """
    choice, model_status = status.choice, status.model.get("status") or {}
    number, present = choice.revision.number, choice.current.number
    headline = f"runs revision {number}"
    yield f"{key_of(status.model)} {headline}" + (f" of {present}: {choice.reason}" if choice.is_pending else "")
    if choice.problem:
        yield f"  cannot be done: {choice.problem}"
    if status.is_paused and not choice.is_pending:
        yield "  paused: nothing waits; the next change will"
    for condition in model_status.get("conditions") or []:
        if condition.get("type") in ("Ready", "Reconciling", "Stalled"):
            holds = "" if condition.get("status") == "True" else "not "
            yield f"  {holds}{str(condition.get('type')).lower()} ({condition.get('reason')}): {condition.get('message')}"
    yield ""
    rows = [
        ("REVISION", "AGE", "CHANGED"),
        *(_row(entry, (number, present), now, is_wide) for entry in status.revisions),
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        yield f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip()


def _row(entry: RevisionEntry, marked: tuple[int, int], now: float, is_wide: bool) -> tuple[str, str, str]:
    """Returns the cells of a revision. ``marked``: numbers of the running one and the spec's."""
    number, (running, present) = entry.revision.number, marked
    shown = len(entry.changed_fields) if is_wide else _CHANGES
    marks = [word for word, holds in (("runs", number == running), ("spec", number == present)) if holds]
    more = len(entry.changed_fields) - shown
    changed = ", ".join(entry.changed_fields[:shown]) + (f" and {more} more" if more > 0 else "")
    return f"{number}{' ' if marks else ''}{', '.join(marks)}", _age(entry.created, now), changed


def _age(created: str, wall: float) -> str:
    if not created:
        return ""
    seconds = max(0, int(wall - datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
