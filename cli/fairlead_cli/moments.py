"""Reads a moment in the past from an argument: `--at`, `--since`."""

import math
from datetime import datetime, timedelta

from fairlead.errors import BadInput
from fairlead.units import parse_duration


def parse_moment(text: str, now: float, flag: str = "--at") -> float:
    """Returns Unix time of ``5m`` (ago), ``14:05[:30]`` (the last such time), ISO 8601, or Unix
    seconds.

    Raises BadInput with ``flag``.
    """
    for reader in (_unix, _ago, _today, _iso):
        moment = reader(text.strip(), now)
        if moment is not None:
            return moment
    raise BadInput(
        f"{flag}: {text!r} is not a time", field=flag, hint="write it like 5m (ago), 14:05 or 2026-11-21T14:05"
    )


def _unix(text: str, now: float) -> float | None:
    found = float(text) if text.replace(".", "", 1).isdecimal() else math.inf
    return found if math.isfinite(found) else None


def _ago(text: str, now: float) -> float | None:
    try:
        return now - parse_duration(text.removeprefix("-"), field="--at")
    except BadInput:
        return None


def _today(text: str, now: float) -> float | None:
    for form in ("%H:%M", "%H:%M:%S"):
        try:
            time = datetime.strptime(text, form).time()
        except ValueError:
            continue
        found = datetime.combine(datetime.fromtimestamp(now).date(), time)
        return (found if found.timestamp() <= now else found - timedelta(days=1)).timestamp()
    return None


def _iso(text: str, now: float) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
