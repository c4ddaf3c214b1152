"""Load level: how much load arrives, how much it spreads, and where it goes.

From the closed bins of the last five minutes come the **level**, the **spread** and, on ramps, the
**trend**. The spread is the median absolute deviation of the bins, so that one bin in ten may be
anything. The trend is a line through the last five minutes, used only if its slope is several times
its error. Extrapolated over minutes of startup time, a smaller slope is noise with a long lever
(measured: it costs more and serves no better). A **change point** drops the bins before it: if the
last seconds are 5.25 spreads away from the level, the old bins describe another load.

If requests are few, a change needs so many of them that chance brings them less than once in 400
cases. The odds are Chernoff's bound on the binomial of the time before. Without a time before, the
first request started the measurement, so it does not count.

**Bursts** that come back are a demand of their own (`recurring_burst_level`). Requests in clumps
show within a minute, long before a second burst does. Bursts of code completion vary 15 to 40 times
as much from one five seconds to the next as random arrivals do. Conversations, steps and idle gaps
vary 0.8 to 1.4 times as much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.workload.arrivals import BIN_SECONDS, RECENT_SECONDS, ArrivalBin, ArrivalHistory

SHORT_BINS: Final = 3
"""Newest bins that can raise the level."""
CHANGE_SIGMAS: Final = 5.0
"""A change differs from the level by so many spreads."""
CHANGE_SHARE: Final = 0.25
"""The same as a share of the level."""
MIN_CHANGE_ODDS: Final = 6.0
"""Logarithm of the odds against chance that a rise needs."""
MIN_TREND_T: Final = 4.0
"""A trend is its error, multiplied by this, at least."""
TREND_SECONDS: Final = 300.0
"""Length of the line of a trend."""
MIN_TREND_BINS: Final = 8
FEW_BURSTS_ROOM: Final = 4.0
"""Room above a burst, divided by the number of busy bins."""
BURST_SPARE: Final = 0.03
"""Share of the load that may lie above the level of bursts."""
MIN_CLUMPING: Final = 6.0
"""Burstiness from which requests come in clumps."""
GUESS_STRETCHES: Final = 4.0
"""Stretches of the past that the guess of the deviation is worth."""
MAX_DEVIATION: Final = 0.5
FALL_SIGMAS: Final = 3.0
"""Chance spreads by which a load is below the half of a burst."""

_MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""
_WORK_VARIANCE = 2.0
"""Variance of the work of a request, in squares of its mean, plus one: the spread of random
arrivals. Lengths are about exponential."""
_BUSY_SHARE, _MIN_BUSY_BINS = 0.1, 2
"""Share of the largest bin from which a bin counts as busy, and the fewest bins that count so."""

BinPrice = Callable[[ArrivalBin], float]
"""Returns the replicas whose capacity the load of a bin uses."""


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """The load, as the number of replicas whose capacity it would use.

    spread: of a bin around the level.
    slope: replicas per second; 0 without a significant trend.
    recent: of the recent seconds alone.
    is_recent_only: the level comes from the recent seconds.
    floor: what was expected before a rise, which holds after it.
    """

    current: float
    spread: float
    slope: float
    recent: float
    is_recent_only: bool = False
    floor: float = 0.0

    def expected(self, ahead_seconds: float) -> float:
        """Returns the load to expect `ahead_seconds` from now."""
        return max(self.current + self.slope * ahead_seconds, self.current, self.floor)


def estimate_level(history: ArrivalHistory, price: BinPrice, request_seconds: float) -> LoadLevel | None:
    """Returns the level of the load; None before the first tick.

    request_seconds: replica-seconds of one request.
    """
    if not history.recent:
        return None
    recent = _mean_price(history.recent, price)
    closed = history.bins
    if not closed:
        requests = float_sum([tick.requests for tick in history.recent])
        level = recent * max(0.0, requests - 1.0) / requests if requests > 0.0 else 0.0
        return LoadLevel(level, _chance_spread(level, request_seconds, BIN_SECONDS), 0.0, recent, is_recent_only=True)
    values = [price(closed_bin) for closed_bin in closed]
    slope, fitted, residuals = fit_line(closed, values)
    if slope == 0.0:
        mean = sum(values) / len(values)
        residuals = [value - mean for value in values]
        newest = values[-SHORT_BINS:]
        short_mean = sum(newest) / len(newest)
        fitted = max(mean, short_mean)
    spread = max(
        _MAD_TO_SIGMA * _median([abs(residual) for residual in residuals]),
        _chance_spread(fitted, request_seconds, BIN_SECONDS),
    )
    return LoadLevel(max(0.0, fitted), spread, max(0.0, slope), recent)


def change_point_ticks(
    history: ArrivalHistory,
    level: LoadLevel,
    price: BinPrice,
    request_seconds: float,
    is_bursty: bool,
) -> int:
    """Returns how many ticks ago another load began than that of `level`; 0: it did not.

    A rise may show in one tick, which then must differ more the shorter it is; the ticks in which
    it is largest count. A fall, and any change of a bursty load, needs all recent ticks.
    """
    if level.is_recent_only or not history.recent:
        return 0
    seconds = replica_seconds = highest = 0.0
    found = 0
    watched = float_sum([closed.seconds for closed in history.bins])
    for count, tick in enumerate(reversed(history.recent), start=1):
        seconds += tick.seconds
        replica_seconds += price(tick) * tick.seconds
        shortness = math.sqrt(max(1.0, BIN_SECONDS / seconds))
        difference = replica_seconds / seconds - level.current
        limit = max(CHANGE_SIGMAS * level.spread, CHANGE_SHARE * level.current) * shortness
        is_all = count == len(history.recent) and seconds >= RECENT_SECONDS / 2
        if is_all and -difference > limit and not found:
            return count
        if difference > max(limit, highest) and (is_all or not is_bursty):
            requests = (level.current * watched / request_seconds, replica_seconds / request_seconds)
            if _log_odds(*requests, seconds / (seconds + watched)) > MIN_CHANGE_ODDS:
                found, highest = count, difference
    return found


def recurring_burst_level(
    history: ArrivalHistory,
    price: BinPrice,
    within_seconds: float,
    request_seconds: float,
    settings: ScalingSettings,
) -> float:
    """Returns the load of bursts that come back, by those of the last `within_seconds`; 0: none do.

    Bursts come back if the load has reached a level twice and fell below half of it in between, by
    more than chance explains. The mean interval, and the time since the last burst, must be at most
    `within_seconds`. They also come back if requests arrive in clumps; then the first burst is
    enough.
    """
    values = [price(closed) for closed in history.past]
    now = history.past[-1].at
    recent = [value for value, closed in zip(values, history.past, strict=True) if now - closed.at <= within_seconds]
    if history.burstiness > MIN_CLUMPING:
        return _burst_level(recent, settings)
    # Any level will do: that it comes back says that bursts do, not how high they are.
    for peak in sorted({value for value in values if value > 0.0}, reverse=True):
        bursts, first, last, is_above = 0, 0.0, 0.0, False
        for value, closed in zip(values, history.past, strict=True):
            if value >= peak:
                if not is_above:
                    bursts += 1
                    first = first or closed.at
                last, is_above = closed.at, True
            elif _has_fallen(peak, value, request_seconds):
                is_above = False
        if bursts >= 2 and (last - first) / (bursts - 1) <= within_seconds and now - last <= within_seconds:
            return _burst_level(recent, settings)
    return 0.0


def _has_fallen(peak: float, value: float, request_seconds: float) -> bool:
    """Whether the load fell from `peak` to less than half of it by more than chance explains.

    Why also the half: among the bins of half an hour there is soon one that chance made large, and
    one that it made small. So `value` must be below the half with certainty, too.
    """
    half, seconds = peak / 2, BIN_SECONDS
    return half - value > FALL_SIGMAS * _chance_spread(half, request_seconds, seconds) and (
        peak - value > CHANGE_SIGMAS * _chance_spread(half + value / 2, request_seconds, seconds)
    )


def _burst_level(values: Sequence[float], settings: ScalingSettings) -> float:
    """Returns the level above which only the spare share of the load lies, with room on top.

    The fewer bins are busy, the more room: the largest of a few is soon exceeded.
    """
    ordered = sorted(values, reverse=True)
    spare = BURST_SPARE * sum(ordered)
    level, above = ordered[0], 0.0
    for count, lower in enumerate([*ordered[1:], 0.0], start=1):
        if above + count * (level - lower) >= spare:
            level -= (spare - above) / count
            break
        above += count * (level - lower)
        level = lower
    busy = sum([value > _BUSY_SHARE * ordered[0] for value in ordered])
    return level * (settings.burst_room + FEW_BURSTS_ROOM / max(_MIN_BUSY_BINS, busy))


def forecast_deviation(
    history: ArrivalHistory,
    price: BinPrice,
    ahead_seconds: float,
    request_seconds: float,
    settings: ScalingSettings,
) -> float:
    """Returns the standard deviation of the load of `ahead_seconds` from now, as a share of the
    load that is expected.

    It follows from how far the load of the past exceeded what its level of `ahead_seconds` before
    let expect: for errors around zero, half of the mean square lies above it. What exceeds
    `change_share` is a change, not a habit, and does not count. Few stretches of the past count
    less than a guess does. It is at least what chance makes of the present load.
    """
    values = [price(closed) for closed in history.past]
    long, short = round(settings.level_seconds / BIN_SECONDS), SHORT_BINS
    lag = max(1, round(ahead_seconds / BIN_SECONDS))
    sums = [0.0, *accumulate(values)]
    squares = count = 0.0
    for end in range(long, len(values) - lag + 1):
        predicted = max((sums[end] - sums[end - long]) / long, (sums[end] - sums[end - short]) / short)
        if predicted > 0.0:
            actual = (sums[end + lag] - sums[end + lag - short]) / short
            error = max(0.0, actual / predicted - 1.0)
            if error <= CHANGE_SHARE:
                squares += error * error
                count += 1.0
    stretches = count / (lag + short)
    known = 2.0 * squares / count if count else 0.0
    variance = (settings.deviation_guess**2 * GUESS_STRETCHES + known * stretches) / (GUESS_STRETCHES + stretches)
    newest = sum(values[-long:]) / long
    chance = _chance_spread(newest, request_seconds, short * BIN_SECONDS) / newest if newest > 0.0 else 0.0
    return min(MAX_DEVIATION, max(math.sqrt(variance), chance))


def fit_line(bins: Sequence[ArrivalBin], values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Returns slope per second, last value and residuals of a line through the newest bins.

    The slope is 0 if it is not significant.
    """
    first = bins[-1].at - TREND_SECONDS
    start = next(index for index, closed in enumerate(bins) if closed.at > first)
    times = [closed.at - bins[-1].at for closed in bins[start:]]
    chosen = values[start:]
    count = len(times)
    if count < MIN_TREND_BINS:
        return 0.0, 0.0, []
    mean_time, mean = sum(times) / count, sum(chosen) / count
    variation = float_sum([(time - mean_time) ** 2 for time in times])
    slope = (
        float_sum([(time - mean_time) * (value - mean) for time, value in zip(times, chosen, strict=True)]) / variation
    )
    residuals = [value - mean - slope * (time - mean_time) for time, value in zip(times, chosen, strict=True)]
    error = math.sqrt(float_sum([residual * residual for residual in residuals]) / (count - 2) / variation)
    if slope <= MIN_TREND_T * error:
        return 0.0, 0.0, []
    return slope, mean - slope * mean_time, residuals


def _mean_price(bins: Sequence[ArrivalBin], price: BinPrice) -> float:
    seconds = float_sum([arrivals.seconds for arrivals in bins])
    return float_sum([price(arrivals) * arrivals.seconds for arrivals in bins]) / seconds if seconds > 0.0 else 0.0


def _chance_spread(value: float, request_seconds: float, seconds: float) -> float:
    return math.sqrt(_WORK_VARIANCE * max(0.0, value) * request_seconds / seconds)


def _log_odds(before: float, now: float, share: float) -> float:
    """Returns the logarithm of the odds against `now` requests or more in `share` (0..1) of the
    time.

    before: requests in the rest of the time. Unequal requests count as fewer equal ones.
    """
    both = before + now
    if both <= 0.0 or now <= share * both:
        return 0.0
    odds = now * math.log(now / both / share)
    if before > 0.0:
        odds += before * math.log(before / both / (1.0 - share))
    return odds / _WORK_VARIANCE


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
