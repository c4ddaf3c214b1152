"""What arrives: its level, how much it spreads, where it is going.

Arrivals and their prompt tokens are counted into bins of half a minute, over eight minutes. From the bins that are closed comes the
**level**, the **spread** (the median absolute deviation of the bins around it, so that one bin in ten may be anything) and, where
ramps warrant it, the **trend**: a line through the last five minutes, taken only where its slope is several times as large as the
error of that slope. Extrapolated over a start-up of minutes, any smaller slope is noise times a long lever (measured: it costs more
and serves no better). A **change point** forgets what was before: when the last seconds lie five spreads and a quarter away from
the level, the old bins describe another load, and their spread would be the step's own height.

Where requests are few they are counted: a change is one only where so many of them are unlikely by chance (less than one in four
hundred, by Chernoff's bound on the binomial of what came before and for how long that was watched). And where nothing is known of
before, the first of those that came is what made us look, and says nothing of how many come.

**Bursts.** What comes back is a need of its own (``recurring``). That requests come in clumps shows within a minute, long before a
second burst does: from one five seconds to the next they differ fifteen to forty times as much as by chance in bursts of code
completion, and no more than by chance (0.8 to 1.4) in conversations, steps and silences.

Bins that are closed decide about everything but the last seconds, and the last seconds can only add. So more requests now never
make for less now."""

import math
from dataclasses import dataclass, replace

from fairlead_autoscaler.core.settings import ScalingSettings

_MIN_REQUESTS = 50.0
"""Requests that must have come before it is told whether they come in clumps."""


@dataclass(frozen=True, slots=True)
class ArrivalBin:
    """What arrived until ``at`` in ``seconds``; ``output`` is what a request was then thought to generate."""

    at: float
    seconds: float
    requests: float
    prompt: float
    output: float

    def plus(self, other: "ArrivalBin") -> "ArrivalBin":
        """Both, as one bin that ends with ``other``."""
        return ArrivalBin(
            other.at,
            self.seconds + other.seconds,
            self.requests + other.requests,
            self.prompt + other.prompt,
            other.output,
        )


@dataclass(frozen=True, slots=True)
class ArrivalHistory:
    """What arrived: closed bins, the open one, the ticks of the last seconds, and bins of the last while whatever changed since,
    each oldest first; and decaying sums over ticks: squares of what one differs from the next, halved, and requests."""

    bins: tuple[ArrivalBin, ...] = ()
    open: ArrivalBin | None = None
    recent: tuple[ArrivalBin, ...] = ()
    past: tuple[ArrivalBin, ...] = ()
    clumps: float = 0.0
    clumps_of: float = 0.0

    @property
    def burstiness(self) -> float:
        """How many times as much requests per tick differ from one tick to the next as chance alone makes them; 0 while few came."""
        return self.clumps / self.clumps_of if self.clumps_of >= _MIN_REQUESTS else 0.0


def record_tick(load: ArrivalHistory, tick: ArrivalBin, settings: ScalingSettings) -> ArrivalHistory:
    """``load`` with what one tick brought. Ticks of no length are left out."""
    if tick.seconds <= 0.0:
        return load
    bins, opened, past = load.bins, load.open, load.past
    if opened is not None and opened.seconds >= settings.bin_seconds - 1e-6:
        oldest = tick.at - settings.level_seconds
        bins = tuple(old for old in (*bins, opened) if old.at > oldest)
        past = (*(each for each in past if each.at > tick.at - settings.past_seconds), opened)
        opened = None
    opened = tick if opened is None else opened.plus(tick)
    recent = tuple(old for old in load.recent if old.at > tick.at - settings.recent_seconds)
    clumps, clumps_of = _update_burstiness(load, settings)
    return ArrivalHistory(bins, opened, (*recent, tick), past, clumps, clumps_of)


def _update_burstiness(load: ArrivalHistory, settings: ScalingSettings) -> tuple[float, float]:
    """The sums of ``clumped`` with the last two ticks that were noted. The one that comes now is left out: it must only add."""
    if len(load.recent) < 2 or not (load.recent[-2].requests and load.recent[-1].requests):
        return load.clumps, load.clumps_of
    before, last = load.recent[-2:]
    keep = math.exp(-last.seconds / settings.clump_seconds)
    off = last.requests - before.requests
    return load.clumps * keep + off * off / 2.0, load.clumps_of * keep + last.requests


def keep_last_ticks(load: ArrivalHistory, ticks: int) -> ArrivalHistory:
    """``load`` as if it began with its last ``ticks``."""
    kept = load.recent[-ticks:]
    together = kept[0]
    for each in kept[1:]:
        together = together.plus(each)
    return replace(load, bins=(), open=together, recent=kept)
