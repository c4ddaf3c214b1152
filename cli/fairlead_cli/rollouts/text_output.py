"""How a rollout stands, in words: what runs and why, how far it is, and the revisions that one can go back to."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from fairlead.kube.resources import key_of
from fairlead_cli.rollouts.revisions import RevisionEntry, RolloutStatus

_CHANGES: Final = 3
_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "m"))


def render_status(found: RolloutStatus, wall: float) -> Iterator[str]:
    """``wall`` is the present Unix time, for ages."""
    choice, status = found.choice, found.model.get("status") or {}
    number, present = choice.revision.number, choice.current.number
    runs = f"runs revision {number}"
    yield f"{key_of(found.model)} {runs}" + (f" of {present}: {choice.reason}" if choice.is_pending else "")
    if choice.problem:
        yield f"  cannot be done: {choice.problem}"
    if found.is_paused and not choice.is_pending:
        yield "  paused: nothing waits; the next change will"
    for one in status.get("conditions") or []:
        if one.get("type") in ("Ready", "Reconciling", "Stalled"):
            holds = "" if one.get("status") == "True" else "not "
            yield f"  {holds}{str(one.get('type')).lower()} ({one.get('reason')}): {one.get('message')}"
    yield ""
    rows = [("REVISION", "AGE", "CHANGED"), *(_row(one, number, present, wall) for one in found.revisions)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for row in rows:
        yield f"{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}".rstrip()


def _row(one: RevisionEntry, runs: int, present: int, wall: float) -> tuple[str, str, str]:
    number = one.revision.number
    marks = [word for word, holds in (("runs", number == runs), ("spec", number == present)) if holds]
    more = len(one.changed_fields) - _CHANGES
    changed = ", ".join(one.changed_fields[:_CHANGES]) + (f" and {more} more" if more > 0 else "")
    return f"{number}{' ' if marks else ''}{', '.join(marks)}", _age(one.created, wall), changed


def _age(created: str, wall: float) -> str:
    if not created:
        return ""
    seconds = max(0, int(wall - datetime.strptime(created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()))
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
