"""Is the operator alive: not whether its process runs, but whether it hears the cluster. Pure.

A process is dead when a watch has been silent for long although the API server answers others: an operator that is restarted
because the API server is away gains nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

SILENT_SECONDS = 180.0
"""No event and no bookmark (the API server sends one a minute) for this long: the watch is dead."""
ANSWERED_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """Ages in seconds, None for never. ``watches``: since each was last heard of. ``answered``: since the API server answered a list.

    ``overdue``: for how long a change that was listed has not come by the watch of models.
    """

    leading: bool = False
    synced: bool = False
    watches: Mapping[str, float | None] = field(default_factory=dict)
    answered: float | None = None
    overdue: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """``why`` names what is wrong, or says that all is well."""

    well: bool
    why: str


def alive(pulse: Pulse) -> Verdict:
    """False when only a restart helps."""
    if not pulse.leading:
        return Verdict(True, "another replica leads")
    if pulse.answered is None or pulse.answered > ANSWERED_SECONDS:
        return Verdict(True, "the API server does not answer; a restart would not help")
    if pulse.overdue is not None and pulse.overdue > SILENT_SECONDS:
        return Verdict(False, f"the watch of models has missed a change for {pulse.overdue:.0f} s")
    for kind, age in sorted(pulse.watches.items()):
        if age is not None and age > SILENT_SECONDS:
            return Verdict(False, f"the watch of {kind} has been silent for {age:.0f} s")
    return Verdict(True, "every watch is heard")


def ready(pulse: Pulse) -> Verdict:
    """A replica that waits is ready too: it can take over."""
    if pulse.leading and not pulse.synced:
        return Verdict(False, "not everything has been listed yet")
    return Verdict(True, "leading" if pulse.leading else "waiting to lead")


def stale(pulse: Pulse) -> str:
    """Why what is known may be old, in words; empty when it is fresh. Nothing is deleted while it is not."""
    if not pulse.synced:
        return "not everything has been listed yet"
    if pulse.answered is None or pulse.answered > SILENT_SECONDS:
        return "the API server has not answered for a while"
    old = sorted(kind for kind, age in pulse.watches.items() if age is None or age > SILENT_SECONDS)
    return f"nothing has been heard of {', '.join(old)} for a while" if old else ""
