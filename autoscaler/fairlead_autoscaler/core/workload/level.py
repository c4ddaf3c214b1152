"""Level."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory

_MAD_TO_SIGMA = 1.4826
"""From a median absolute deviation to the standard deviation of a normal distribution."""


_WORK_VARIANCE = 2.0
"""Variance of a request's work around its mean, plus one: what arrivals by chance alone spread (lengths about exponential)."""


_BUSY_SHARE, _MIN_BUSY_BINS = 0.1, 2
"""Of the largest bin what is load worth the name, and how many such bins there are taken to be at least."""


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """Replicas that what arrives keeps at their knee: ``now``, ``spread`` of a bin around it, ``slope`` per second where a ramp
    warrants it (else 0), and what the ``recent`` seconds brought. ``changed``: the level is of the recent seconds alone. ``least``:
    what to be ready for in any case, since it was so before load rose. ``steady`` is the level without what chance alone makes of the
    last minute and a half."""

    current: float
    spread: float
    slope: float
    recent: float
    steady: float
    is_recent_only: bool = False
    floor: float = 0.0

    def upper_bound(self, sigmas: float, swing: float, ahead_seconds: float) -> float:
        """What to be ready for so many seconds ahead, where load was so large a share above its level before."""
        ahead = max(self.current + self.slope * ahead_seconds, self.current)
        return max(ahead + max(sigmas * self.spread, swing * self.current), self.floor)


BinPrice = Callable[[ArrivalBin], float]
"""Replicas that a bin keeps at their knee."""


def estimate_level(load: ArrivalHistory, price: BinPrice, shot: float, settings: ScalingSettings) -> LoadLevel | None:
    """The level of ``load`` at ``price``; None before anything was counted. ``shot`` is the replica-seconds of one request."""
    if not load.recent:
        return None
    recent = _mean_price(load.recent, price)
    closed = load.bins
    if not closed:
        came = sum(each.requests for each in load.recent)
        now = recent * max(0.0, came - 1.0) / came if came > 0.0 else 0.0
        return LoadLevel(now, _chance_spread(now, shot, settings.bin_seconds), 0.0, recent, now, True)
    values = [price(each) for each in closed]
    slope, fitted, residuals = fit_line(closed, values, settings)
    steady = fitted
    if slope == 0.0:
        middle = sum(values) / len(values)
        residuals = [value - middle for value in values]
        newest = values[-settings.short_bins :]
        late, chance = sum(newest) / len(newest), _chance_spread(middle, shot, settings.bin_seconds * len(newest))
        fitted, steady = max(middle, late), max(middle, late - chance)
    spread = max(
        _MAD_TO_SIGMA * _median([abs(each) for each in residuals]), _chance_spread(fitted, shot, settings.bin_seconds)
    )
    return LoadLevel(max(0.0, fitted), spread, max(0.0, slope), recent, max(0.0, steady))


def change_point_ticks(
    load: ArrivalHistory, level: LoadLevel, price: BinPrice, shot: float, bursty: bool, settings: ScalingSettings
) -> int:
    """Of how many of the last ticks it is that another load began than the level was taken from; 0 = it did not. A rise may show in
    one tick, by as much more as a tick is shorter, and the ticks in which it is largest count; a fall needs all the recent ones, and
    so does a rise where load is ``bursty``."""
    if level.is_recent_only or not load.recent:
        return 0
    seconds = worth = highest = 0.0
    found = 0
    watched = sum(each.seconds for each in load.bins)
    for count, tick in enumerate(reversed(load.recent), start=1):
        seconds += tick.seconds
        worth += price(tick) * tick.seconds
        shorter = math.sqrt(max(1.0, settings.bin_seconds / seconds))
        away = worth / seconds - level.current
        most = max(settings.change_sigmas * level.spread, settings.change_share * level.current) * shorter
        whole = count == len(load.recent) and seconds >= settings.recent_seconds / 2
        if whole and -away > most and not found:
            return count
        if away > max(most, highest) and (whole or not bursty):
            events = (level.current * watched / shot, worth / shot)
            if _log_odds(*events, seconds / (seconds + watched)) > settings.change_odds:
                found, highest = count, away
    return found


def recurring_burst_level(
    load: ArrivalHistory, price: BinPrice, within_seconds: float, shot: float, settings: ScalingSettings
) -> float:
    """What to be ready for where bursts come back, by those of the last ``within_seconds``; else 0. They do where load has reached
    some level twice, not longer than that apart on the mean and not longer than that ago, and fell below half of it between, by more
    than chance explains (a few requests a second do so at times, and are no bursts). They will, too, where requests come in clumps
    from one tick to the next: then the first burst of all says what is to come."""
    values = [price(each) for each in load.past]
    now = load.past[-1].at
    recent = [value for value, each in zip(values, load.past, strict=True) if now - each.at <= within_seconds]
    if load.burstiness > settings.clump_least:
        return _burst_level(recent, settings)
    for peak in sorted({value for value in values if value > 0.0}, reverse=True):
        bursts, first, last, over = 0, 0.0, 0.0, False
        for value, each in zip(values, load.past, strict=True):
            if value >= peak:
                if not over:
                    bursts += 1
                    first = first or each.at
                last, over = each.at, True
            elif _has_fallen(peak, value, shot, settings):
                over = False
        if bursts >= 2 and (last - first) / (bursts - 1) <= within_seconds and now - last <= within_seconds:
            return _burst_level(recent, settings)
    return 0.0


def _has_fallen(peak: float, value: float, shot: float, settings: ScalingSettings) -> bool:
    """Did load fall from ``peak`` to less than half of it, by more than chance explains? Of the bins of half an hour one that chance
    made large and one that it made small are soon found, so it must be sure, too, that ``value`` is below that half."""
    half, seconds = peak / 2, settings.bin_seconds
    return half - value > settings.fall_sigmas * _chance_spread(half, shot, seconds) and peak - value > (
        settings.change_sigmas * _chance_spread(half + value / 2, shot, seconds)
    )


def _burst_level(values: Sequence[float], settings: ScalingSettings) -> float:
    """The level above which so small a share of the load lay as may be spared, with room above that: the more the fewer bins had any
    load worth the name, since the largest of a few is soon surpassed and that of many is not."""
    ordered = sorted(values, reverse=True)
    spare = settings.burst_spare * sum(ordered)
    level, over = ordered[0], 0.0
    for count, lower in enumerate([*ordered[1:], 0.0], start=1):
        if over + count * (level - lower) >= spare:
            level -= (spare - over) / count
            break
        over += count * (level - lower)
        level = lower
    busy = sum(value > _BUSY_SHARE * ordered[0] for value in ordered)
    return level * (settings.burst_room + settings.burst_few / max(_MIN_BUSY_BINS, busy))


def upward_swing(
    load: ArrivalHistory, price: BinPrice, ahead_seconds: float, shot: float, settings: ScalingSettings
) -> float:
    """By what share load has been above what its level said so long before: of stretches as long as that looks back, the largest
    share of each, and of these the one that a quarter pass, two at least (what happened once is a change, not a habit). What is
    assumed where stretches are few. What a smaller load showed counts for less by as much as chance (``shot``: the replica-seconds of
    one request) moves it more than the load of now."""
    values = [price(each) for each in load.past]
    long, short = round(settings.level_seconds / settings.bin_seconds), settings.short_bins
    lag = max(1, round(ahead_seconds / settings.bin_seconds))
    sums = [0.0, *accumulate(values)]
    seconds = short * settings.bin_seconds
    level_now = max(sum(values[-long:]) / long, sum(values[-short:]) / short)
    chance_now = _chance_spread(level_now, shot, seconds) / level_now if level_now > 0.0 else math.inf
    errors: list[float] = []
    for end in range(long, len(values) - lag + 1):
        told = max((sums[end] - sums[end - long]) / long, (sums[end] - sums[end - short]) / short)
        came = (sums[end + lag] - sums[end + lag - short]) / short
        if told <= 0.0:
            errors.append(0.0)
            continue
        less = max(0.0, _chance_spread(told, shot, seconds) / told - chance_now)
        errors.append(came / told - 1.0 - settings.swing_sigmas * less)
    stretch = lag + short
    largest = sorted((max(errors[at : at + stretch]) for at in range(0, len(errors), stretch)), reverse=True)
    if len(largest) < settings.swing_few:
        return settings.swing_guess
    return min(settings.swing_most, max(0.0, largest[max(2, int(settings.swing_over * len(largest)))]))


def _mean_price(bins: Sequence[ArrivalBin], price: BinPrice) -> float:
    seconds = sum(each.seconds for each in bins)
    return sum(price(each) * each.seconds for each in bins) / seconds if seconds > 0.0 else 0.0


def _chance_spread(value: float, shot: float, seconds: float) -> float:
    """The spread that arrivals by chance give a bin whose mean is ``value``."""
    return math.sqrt(_WORK_VARIANCE * max(0.0, value) * shot / seconds)


def _log_odds(before: float, now: float, share: float) -> float:
    """How unlikely it is by chance, as a logarithm, that of requests that came ``before`` and ``now`` so many came now, which is that
    share of the time. Requests are unequal, so fewer are taken to have come than did."""
    both = before + now
    if both <= 0.0 or now <= share * both:
        return 0.0
    odds = now * math.log(now / both / share)
    if before > 0.0:
        odds += before * math.log(before / both / (1.0 - share))
    return odds / _WORK_VARIANCE


def fit_line(
    bins: Sequence[ArrivalBin], values: Sequence[float], settings: ScalingSettings
) -> tuple[float, float, list[float]]:
    """Slope per second, value at the end and residuals of a line through the last bins; slope 0 where it is not to be believed."""
    first = bins[-1].at - settings.trend_seconds
    start = next(index for index, each in enumerate(bins) if each.at > first)
    times = [each.at - bins[-1].at for each in bins[start:]]
    chosen = values[start:]
    count = len(times)
    if count < settings.trend_bins:
        return 0.0, 0.0, []
    mean_time, mean = sum(times) / count, sum(chosen) / count
    across = sum((time - mean_time) ** 2 for time in times)
    slope = sum((time - mean_time) * (value - mean) for time, value in zip(times, chosen, strict=True)) / across
    residuals = [value - mean - slope * (time - mean_time) for time, value in zip(times, chosen, strict=True)]
    error = math.sqrt(sum(each * each for each in residuals) / (count - 2) / across)
    if slope <= settings.trend_t * error:
        return 0.0, 0.0, []
    return slope, mean - slope * mean_time, residuals


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
