"""Timestamps of the API, and ages for people."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from fairlead_cli.formatting import UNKNOWN

_STEPS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"), (1.0, "s"))


def parse_time(text: object) -> float | None:
    """Returns ``2026-11-20T17:43:20Z`` as Unix time; None for an invalid time."""
    try:
        time = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def parse_http_date(text: str) -> float | None:
    """Returns an HTTP ``Date`` as Unix time, exact to a second; None for an invalid date."""
    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None


def format_age(since: float | None, now: float) -> str:
    """Returns ``41s``, ``12m``, ``3h``, ``8d``, in one unit as kubectl has it; a dash for an
    unknown time.
    """
    if since is None:
        return UNKNOWN
    seconds = max(0.0, now - since)
    for size, unit in _STEPS:
        if seconds >= (2 * size if unit in ("h", "m") else size):
            return f"{int(seconds // size)}{unit}"
    return "0s"
