"""Stabilization window: the highest demand of the last minutes holds the number of replicas up.

The window is five minutes, shorter if replicas start within seconds. Bursts that come back after
longer raise the demand itself (`load_forecast.recurring_burst_level`).

A demand counts only as far as it was met. If bounds or steps kept the number below the demand,
nothing starts for that demand later.

For one pool, the window keeps the demand without the error of the forecast. The present demand has
that error in it, and both together would pay for it twice.

Why a window: a replica is paid for from its order on, so it must stay unneeded for a while before
its removal pays.
"""

from dataclasses import dataclass

from fairlead_autoscaler.core.settings import ScalingSettings


@dataclass(frozen=True, slots=True)
class NeedWindow:
    """Demands that exceed every later one, as (time, replicas), oldest first."""

    needs: tuple[tuple[float, float], ...] = ()

    @property
    def largest(self) -> float:
        return self.needs[0][1] if self.needs else 0.0


def window_length(startup_seconds: float, settings: ScalingSettings) -> float:
    """Returns the seconds of the window for replicas that start in `startup_seconds`."""
    return min(settings.window_seconds, max(settings.min_window_seconds, settings.window_startups * startup_seconds))


def cap_newest_need(before: NeedWindow, replicas: float) -> NeedWindow:
    """Returns the window; its newest demand is at most the number of replicas that it led to."""
    if not before.needs or before.needs[-1][1] <= replicas:
        return before
    return NeedWindow((*before.needs[:-1], (before.needs[-1][0], replicas)))


def add_need(before: NeedWindow, now: float, need: float, seconds: float) -> NeedWindow:
    """Returns the window with the demand of `now`, and without those older than `seconds`."""
    needs = tuple(entry for entry in before.needs if entry[0] > now - seconds)
    while needs and needs[-1][1] <= need:
        needs = needs[:-1]
    return NeedWindow((*needs, (now, need)))


def keep_recent(
    before: tuple[tuple[float, float], ...], now: float, need: float, settings: ScalingSettings
) -> tuple[tuple[float, float], ...]:
    """Returns the demands of the last seconds, with that of `now`.

    The least of them has lasted, and is what a window remembers. The demand of a single tick acts
    at once, but is noise to be forgotten.
    """
    return (*[entry for entry in before if entry[0] > now - settings.lasting_seconds], (now, need))
