"""The way down: the largest need of a window decides.

Starting a replica is paid for from the order on, so one that is removed must stay unneeded for a while to be worth it. The window
is five minutes, shorter where replicas start within seconds. Bursts that come back after longer than that are another matter
(``load.recurring``): they raise the need itself.

A need counts for as much as there was for it: where bounds or steps held the number below it, it was done without, and once it is
over nothing is started for it."""

from dataclasses import dataclass

from fairlead_autoscaler.core.settings import ScalingSettings


@dataclass(frozen=True, slots=True)
class NeedWindow:
    """Needs that are larger than every later one, with their times, oldest first."""

    needs: tuple[tuple[float, float], ...] = ()

    @property
    def largest(self) -> float:
        """The largest need within the window."""
        return self.needs[0][1] if self.needs else 0.0


def window_length(startup_seconds: float, settings: ScalingSettings) -> float:
    """How long a window is for replicas that start in ``startup_seconds``."""
    return min(settings.window_seconds, max(settings.window_least_seconds, settings.window_startups * startup_seconds))


def cap_newest_need(before: NeedWindow, replicas: float) -> NeedWindow:
    """``before`` with its newest need as what came of it, where there is less than that."""
    if not before.needs or before.needs[-1][1] <= replicas:
        return before
    return NeedWindow((*before.needs[:-1], (before.needs[-1][0], replicas)))


def add_need(before: NeedWindow, now: float, need: float, seconds: float) -> NeedWindow:
    """``before`` with what is needed ``now``, and without what is older than ``seconds``."""
    needs = tuple(entry for entry in before.needs if entry[0] > now - seconds)
    while needs and needs[-1][1] <= need:
        needs = needs[:-1]
    return NeedWindow((*needs, (now, need)))
