"""The way down: the largest need of a window decides, and the window learns from its mistakes.

Starting a replica is paid for from the order on, so one that is removed must stay unneeded for a while to be worth it. The window
is as long as five minutes, shorter where replicas start within seconds. Where a burst comes back sooner than start-up and window
together, a replica was removed that would have been needed again: then the window becomes half as long again, up to half an hour.
It shrinks back over an hour without such a mistake."""

import math
from dataclasses import dataclass, replace

from fairlead_autoscaler.scaling.settings import ScalingSettings


@dataclass(frozen=True, slots=True)
class Window:
    """Needs that are larger than every later one, with their times, oldest first; how many times as long as usual it is; the
    largest need that was let go, and when."""

    needs: tuple[tuple[float, float], ...] = ()
    stretch: float = 1.0
    dropped: float = 0.0
    dropped_at: float = -1e9

    @property
    def held(self) -> float:
        """The largest need within the window."""
        return self.needs[0][1] if self.needs else 0.0


def usual(startup_seconds: float, settings: ScalingSettings) -> float:
    """How long a window is for replicas that start in ``startup_seconds``."""
    return min(settings.window_seconds, max(settings.window_least_seconds, settings.window_startups * startup_seconds))


def push(before: Window, now: float, need: float, startup_seconds: float, settings: ScalingSettings) -> Window:
    """``before`` with what is needed ``now``."""
    base = usual(startup_seconds, settings)
    length = min(base * before.stretch, max(base, settings.window_most_seconds))
    kept = tuple(entry for entry in before.needs if entry[0] > now - length)
    dropped, dropped_at, stretch = before.dropped, before.dropped_at, before.stretch
    if len(kept) < len(before.needs):
        left = max(kept[0][1] if kept else 0.0, need)
        gone = before.needs[len(before.needs) - len(kept) - 1][1]
        gone = max(gone, before.needs[0][1])
        if gone > left + 0.5 and (gone >= dropped or now - dropped_at > startup_seconds + length):
            dropped, dropped_at = gone, now
    if dropped and need > _REGRET * dropped:
        if now - dropped_at < startup_seconds + length:
            stretch = min(stretch * 1.5, settings.window_most_seconds / base)
        dropped = 0.0
    return Window(_with(kept, now, need), stretch, dropped, dropped_at)


def hold(before: Window, now: float, need: float, seconds: float) -> Window:
    """``before`` with what is needed ``now``, of a window of so many seconds that learns nothing."""
    return replace(before, needs=_with(tuple(entry for entry in before.needs if entry[0] > now - seconds), now, need))


def _with(needs: tuple[tuple[float, float], ...], now: float, need: float) -> tuple[tuple[float, float], ...]:
    while needs and needs[-1][1] <= need:
        needs = needs[:-1]
    return (*needs, (now, need))


def ease(before: Window, seconds: float, settings: ScalingSettings) -> Window:
    """``before`` after ``seconds`` more: its length goes back to usual."""
    if before.stretch <= 1.0:
        return before
    keep = math.exp(-seconds / settings.window_forget_seconds)
    return replace(before, stretch=1.0 + (before.stretch - 1.0) * keep)


_REGRET = 0.8
"""A need of this share of one that was let go says that letting go was wrong."""
