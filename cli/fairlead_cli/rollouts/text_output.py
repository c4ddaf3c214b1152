"""Rollout status as text: the running revision, its conditions, and the stored revisions."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from fairlead.kube.resources import key_of
from fairlead_cli.rollouts.revisions import RevisionEntry, RolloutStatus

_CHANGES: Final = 3
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def render_status(status: RolloutStatus, now: float) -> Iterator[str]:
    """Yields the lines; ``wall`` is the present Unix time."""
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
    rows = [("REVISION", "AGE", "CHANGED"), *(_row(condition, number, present, now) for condition in status.revisions)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        yield f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip()


def _row(entry: RevisionEntry, running: int, present: int, now: float) -> tuple[str, str, str]:
    number = entry.revision.number
    marks = [word for word, holds in (("runs", number == running), ("spec", number == present)) if holds]
    more = len(entry.changed_fields) - _CHANGES
    changed = ", ".join(entry.changed_fields[:_CHANGES]) + (f" and {more} more" if more > 0 else "")
    return f"{number}{' ' if marks else ''}{', '.join(marks)}", _age(entry.created, now), changed


def _age(created: str, wall: float) -> str:
    if not created:
        return ""
    seconds = max(0, int(wall - datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
