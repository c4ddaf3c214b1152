"""Tick: one observation with valid values, checked for consistency and placed on the core's clock.

The clock of the core only moves forward. An observation whose clock stood still or went back brings
no signals. Nor does one whose clock jumped far ahead, as after the process was suspended: it counts
as one tick interval.

Why: the time that the counters cover after such a jump is unknown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.consistency import ConsistencyState, TrustedSignals, check_consistency
from fairlead_autoscaler.core.signals.validation import pool_totals, valid_count, valid_number, valid_traffic
from fairlead_autoscaler.core.types import GatewayTraffic, MixResult, ModelSpec, Observation, PoolObservation

MAX_GAP_INTERVALS: Final = 3.5
"""Counters after a longer gap between two ticks are left out."""

_COUNT_FIELDS = ("desired", "ready", "pending", "draining", "asleep_desired", "asleep", "waking")


@dataclass(frozen=True, slots=True)
class TickClock:
    """The clock of the core, and the arrivals of the interval that is not complete yet.

    `told` is the time of the last observation; None: there was none.

    now: seconds since the first tick; never decreases.
    calm_at: until then nothing is lowered, after a start or a gap.
    blind_since: since when arrivals are missing; None: they are not.
    """

    told: float | None = None
    now: float = 0.0
    calm_at: float = 0.0
    blind_since: float | None = None
    open_seconds: float = 0.0
    open_requests: float = 0.0
    open_prompt: float = 0.0


@dataclass(frozen=True, slots=True)
class CountedArrivals:
    """Arrivals on which an estimate of the usual rate can rest."""

    seconds: float
    requests: float


@dataclass(frozen=True, slots=True)
class IntervalArrivals:
    """Arrivals of one complete interval, which ended at `at`."""

    at: float
    seconds: float
    requests: float
    prompt_tokens: float


@dataclass(frozen=True, slots=True)
class Tick:
    """One observation, validated, checked and timed.

    seconds: since the last tick; 0 for the first one, and if the clock did not advance.
    missing_seconds: how long arrivals have been missing; None: they are known.
    warming_up: the core began, or a gap ended, a short time ago.
    has_arrivals: requests arrived or are queued.
    arrivals: what arrived in an interval that is complete now.
    mix_results: replies of the solver, by role.
    """

    model: ModelSpec
    settings: ScalingSettings
    now: float
    seconds: float
    wall: float | None
    pools: Mapping[str, PoolObservation]
    signals: TrustedSignals
    missing_seconds: float | None
    warming_up: bool
    has_arrivals: bool
    arrivals: IntervalArrivals | None
    mix_results: Mapping[str, MixResult]

    @property
    def forbids_scale_down(self) -> bool:
        return self.missing_seconds is not None or self.signals.inconsistency is not None or self.warming_up


def take_sample(
    clock: TickClock,
    memory: ConsistencyState,
    usual: CountedArrivals,
    observation: Observation,
    model: ModelSpec,
    settings: ScalingSettings,
) -> tuple[TickClock, ConsistencyState, Tick]:
    """Returns the next clock and memory, and the tick of `observation`.

    usual: recent arrivals; they bound the first counters after missing metrics.
    """
    pools = {
        pool.name: _valid_pool(observation.pools[pool.name]) for pool in model.pools if pool.name in observation.pools
    }
    clock, seconds, has_gap = _advance_clock(clock, observation.now, model, settings)
    is_counted = not has_gap and seconds > 0.0
    totals = {
        pool.name: pool_totals(pools[pool.name], pool, model.itl_seconds) if is_counted else None
        for pool in model.pools
        if pool.name in pools
    }
    traffic = valid_traffic(observation.gateway) if is_counted else None
    memory, signals = check_consistency(memory, clock.now, traffic, totals)
    clock, arrivals = _collect_arrivals(clock, signals.gateway, seconds, model, usual)
    if seconds > 0.0 and (signals.inconsistency is not None or clock.blind_since is not None):
        clock = replace(clock, calm_at=max(clock.calm_at, clock.now + settings.doubt_seconds))
    tick = Tick(
        model=model,
        settings=settings,
        now=clock.now,
        seconds=seconds,
        wall=valid_number(observation.wall),
        pools=pools,
        signals=signals,
        missing_seconds=None if clock.blind_since is None else clock.now - clock.blind_since,
        warming_up=clock.now < clock.calm_at,
        has_arrivals=signals.gateway is not None and (signals.gateway.arrivals > 0.0 or signals.gateway.held > 0.0),
        arrivals=arrivals,
        mix_results=observation.mixes,
    )
    return clock, memory, tick


def _valid_pool(pool: PoolObservation) -> PoolObservation:
    """Returns the pool with valid numbers of replicas."""
    observed = {name: getattr(pool, name) for name in _COUNT_FIELDS}
    counts = {name: valid_count(value) for name, value in observed.items()}
    return pool if counts == observed else replace(pool, **counts)  # type: ignore[arg-type]


def _advance_clock(
    clock: TickClock, time: float, model: ModelSpec, settings: ScalingSettings
) -> tuple[TickClock, float, bool]:
    """Returns the clock after an observation at `time`, the seconds to count, and whether there is
    a gap.

    The seconds are 0 for the first observation or a clock that went back, and one tick interval
    after a gap.
    """
    if valid_number(time) is None:
        return clock, 0.0, False
    if clock.told is None:
        return replace(clock, told=time, calm_at=clock.now + settings.restart_seconds), 0.0, True
    seconds = time - clock.told
    if seconds <= 0.0:
        return replace(clock, told=time), 0.0, False
    if seconds > MAX_GAP_INTERVALS * model.interval_seconds:
        now = clock.now + model.interval_seconds
        calm_at = max(clock.calm_at, now + settings.restart_seconds)
        return replace(clock, told=time, now=now, calm_at=calm_at), model.interval_seconds, True
    return replace(clock, told=time, now=clock.now + seconds), seconds, False


def _collect_arrivals(
    clock: TickClock, traffic: GatewayTraffic | None, seconds: float, model: ModelSpec, usual: CountedArrivals
) -> tuple[TickClock, IntervalArrivals | None]:
    """Adds the arrivals to the open interval, and returns the interval once it is complete.

    An interval is complete after half of the tick interval: ticks that come sooner are added up.
    Missing arrivals discard the open interval.
    """
    if traffic is None:
        since = clock.now if clock.blind_since is None else clock.blind_since
        return replace(clock, blind_since=since, open_seconds=0.0, open_requests=0.0, open_prompt=0.0), None
    share = _share_of_tick(clock, traffic.arrivals, seconds, model, usual)
    clock = replace(
        clock,
        blind_since=None,
        open_seconds=clock.open_seconds + seconds,
        open_requests=clock.open_requests + share * traffic.arrivals,
        open_prompt=clock.open_prompt + share * traffic.prompt_tokens,
    )
    if clock.open_seconds < model.interval_seconds / 2:
        return clock, None
    arrivals = IntervalArrivals(clock.now, clock.open_seconds, clock.open_requests, clock.open_prompt)
    return replace(clock, open_seconds=0.0, open_requests=0.0, open_prompt=0.0), arrivals


def _share_of_tick(
    clock: TickClock, arrivals: float, seconds: float, model: ModelSpec, usual: CountedArrivals
) -> float:
    """Returns the share of the counted arrivals that belongs to this tick.

    Why: the first counters after missing metrics may cover all of that time. Five minutes in one
    tick would be sixty times the load. They count as the usual rate, or as their mean over all of
    the time, whichever is more. Right after the start there was no traffic before.
    """
    if clock.blind_since is None or arrivals <= 0.0:
        return 1.0
    missing = clock.now - clock.blind_since
    is_known = usual.seconds > 0.0
    if not is_known and missing < 1.5 * model.interval_seconds:
        return 1.0
    expected = usual.requests / usual.seconds * seconds if is_known else 0.0
    return max(seconds / (missing + model.interval_seconds), min(1.0, expected / arrivals))
