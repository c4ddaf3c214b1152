"""KPA: the pod autoscaler of Knative.

**Windows**: averages that know where data begins and ends, and the largest recent number. An
average covers the time from the first write of a run of data to the last. After 6 s of a run that
is 6 s, not the window. A gap inside counts as zero. After a whole window without a write there is
no data at all, which is not zero. Values of one second add up.

Source: knative/serving v0.47.0, pkg/autoscaler/aggregation/bucketing.go (TimedFloat64Buckets) and
pkg/autoscaler/aggregation/max/window.go. Apache-2.0. Changed: values of the window are kept, not a
ring; writes come in order.

**Rule**: the concurrency of the whole revision is averaged over a stable window (60 s) and a panic
window (a tenth of it). Each asks for ceil(average ÷ target) pods, kept between floor(ready ÷ 2) and
ceil(ready × 1000).

- Panic begins when the panic window asks, before those limits, for 2 × the ready pods or more. The
  larger number of both windows then holds.
- In panic the number never falls. Panic ends after a whole stable window below the threshold.
- A down delay keeps the largest number of its time.
- Without data for a whole window there is no decision.
- A controller that starts with more than one ready pod starts in panic at that number, so a restart
  does not scale down.

Constants: stable window 60 s, panic window 10 %, panic threshold 200 %, up rate 1000, down rate 2.
Utilisation 70 %, tick 2 s, down delay 0, scale-to-zero grace 30 s.

Source: knative/serving v0.47.0, pkg/autoscaler/scaling/autoscaler.go (newAutoscaler, Scale),
pkg/autoscaler/config/config.go (defaults), pkg/autoscaler/metrics/collector.go (windows,
ErrNoData), pkg/reconciler/autoscaling/kpa/scaler.go (applyBounds, handleScaleToZero). Apache-2.0.
Facts, not code: the results equal those of the Go functions on 200 vectors
(tests/sim/autoscalers/golden).

A quirk of the original is kept. When the last data is exactly as old as the window, the average is
already 0, but the window is not yet empty. A decision in that second scales down.

Changed:

- Observations come every 5 s instead of 2 s. A value stands for the seconds since the observation
  before, up to one stable window.
- ``target`` is the load of one replica after the 70 %.
- Requests queued in the gateway count as concurrency, as those in Knative's activator do. A
  revision at zero gets its first pod as soon as a request is queued.
- A revision goes to zero after a stable window without demand and the grace period, without
  Knative's probes of the activator.
"""

import math
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.types import ModelSpec, PoolPlan
from fairlead_sim.autoscalers.controller import PerPoolController
from fairlead_sim.autoscalers.metrics import Metric, PoolSample, pool_metric

_DIGITS = 1e6  # averages are rounded to six digits

_TICK_SECONDS = 2  # Knative's; the down delay counts in it


@dataclass(frozen=True, slots=True)
class WindowAverage:
    """The values of the last ``window_seconds``, by second.

    first, last: the seconds of the first and the last write; None before the first.
    """

    window_seconds: int
    values: tuple[tuple[int, float], ...] = ()
    first: int | None = None
    last: int | None = None

    def plus(self, now: float, value: float) -> "WindowAverage":
        """Returns the window with ``value`` written at ``now``."""
        second = math.floor(now)
        if self.last is None or second - self.last >= self.window_seconds:
            return replace(self, values=((second, value),), first=second, last=second)
        kept = tuple(value for value in self.values if value[0] > second - self.window_seconds)
        return replace(self, values=(*kept, (second, value)), last=second)

    def is_empty(self, now: float) -> bool:
        return self.last is None or math.floor(now) - self.last > self.window_seconds

    def average_at(self, now: float) -> float:
        """Returns the average; 0 if all values are too old. See ``is_empty``."""
        if self.first is None or self.last is None:
            return 0.0
        second = math.floor(now)
        silent = max(0, second - self.last)
        if silent >= self.window_seconds:
            return 0.0
        total = sum(value for at, value in self.values if at > second - self.window_seconds)
        return _rounded(total / min(self.last - self.first + 1, self.window_seconds - silent))


@dataclass(frozen=True, slots=True)
class WindowMaximum:
    """The values of the last ``length`` ticks of ``tick_seconds``."""

    length: int
    tick_seconds: int
    values: tuple[tuple[int, int], ...] = ()

    def plus(self, now: float, value: int) -> "WindowMaximum":
        """Returns the window with ``value`` at ``now``."""
        tick = math.floor(now) // self.tick_seconds
        kept = tuple(value for value in self.values if tick - value[0] < self.length)
        return replace(self, values=(*kept, (tick, value)))

    def current(self) -> int:
        return max(value for _, value in self.values)


def _rounded(value: float) -> float:
    """Returns the value with six digits, halves away from zero, as Go rounds."""
    scaled = value * _DIGITS
    whole = math.floor(scaled)
    return (whole + 1 if scaled - whole >= 0.5 else whole) / _DIGITS


@dataclass(frozen=True, slots=True)
class KpaSettings:
    """Settings of a KPA.

    target: for one replica, in the metric's unit.
    activation_scale: the fewest pods under any load.
    """

    target: float
    metric: Metric = Metric.CONCURRENCY
    minimum: int = 0
    maximum: int = 0  # 0: none
    stable_window_seconds: int = 60
    panic_window_seconds: int = 6
    panic_threshold: float = 2.0
    max_up_rate: float = 1000.0
    max_down_rate: float = 2.0
    down_delay_seconds: float = 0.0
    activation_scale: int = 1
    zero_grace_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class KpaState:
    """The state of a KPA.

    panic_since: when the threshold was last passed.
    idle_since: since when no pod is wanted.
    looked: time of the last observation.
    """

    stable: WindowAverage
    panic: WindowAverage
    delay: WindowMaximum | None
    panic_since: float | None = None
    panic_most: int = 0
    looked: float | None = None
    idle_since: float | None = None


def kpa(model: ModelSpec, settings: KpaSettings) -> PerPoolController[KpaState | None]:
    """Returns the KPA preset: a controller that scales each pool as a KPA of its own would, within
    the bounds of the pool.
    """

    def decide(state: KpaState | None, look: PoolSample) -> tuple[KpaState | None, PoolPlan | None]:
        own = replace(settings, minimum=look.spec.minimum, maximum=look.spec.maximum)
        state = initial_state(own, look.now, look.observed.ready) if state is None else state
        value = pool_metric(own.metric, look)
        if value is not None:
            state = _record_sample(state, own, look.now, value)
        state, replicas = scale(replace(state, looked=look.now), own, look.now, look.observed.ready)
        if replicas is None:
            return state, None
        return _plan(state, own, look, replicas)

    return PerPoolController(model, decide, start=None, period_seconds=model.interval_seconds)


def initial_state(settings: KpaSettings, now: float, ready: int) -> KpaState:
    """Returns the state of a controller that starts: in panic if more than one pod is ready."""
    length = math.ceil(settings.down_delay_seconds / _TICK_SECONDS)
    return KpaState(
        stable=WindowAverage(settings.stable_window_seconds),
        panic=WindowAverage(settings.panic_window_seconds),
        delay=WindowMaximum(length, _TICK_SECONDS) if length else None,
        panic_since=now if ready > 1 else None,
        panic_most=ready,
    )


def record(state: KpaState, now: float, value: float) -> KpaState:
    return replace(state, stable=state.stable.plus(now, value), panic=state.panic.plus(now, value))


def scale(state: KpaState, settings: KpaSettings, now: float, ready: int) -> tuple[KpaState, int | None]:
    """Returns the next state, and the pods wanted before the bounds.

    The pods are None without data, which is no decision.
    """
    if state.stable.is_empty(now):
        return state, None
    there = max(1, ready)
    stable_asks = math.ceil(state.stable.average_at(now) / settings.target)
    panic_asks = math.ceil(state.panic.average_at(now) / settings.target)
    wanted = _limit_rate(stable_asks, there, settings)
    if panic_asks / there >= settings.panic_threshold:
        state = replace(state, panic_since=now)
    elif state.panic_since is not None and state.panic_since + settings.stable_window_seconds < now:
        state = replace(state, panic_since=None, panic_most=0)
    if state.panic_since is not None:
        wanted = max(wanted, _limit_rate(panic_asks, there, settings), state.panic_most)
        state = replace(state, panic_most=wanted)
    if state.delay is not None:
        state = replace(state, delay=state.delay.plus(now, wanted))
        wanted = state.delay.current() if state.delay is not None else wanted
    return state, wanted


def clamp_replicas(settings: KpaSettings, wanted: int) -> int:
    wanted = max(wanted, settings.minimum)
    return min(wanted, settings.maximum) if settings.maximum else wanted


def _limit_rate(asks: int, there: int, settings: KpaSettings) -> int:
    most, least = math.ceil(settings.max_up_rate * there), math.floor(there / settings.max_down_rate)
    wanted = min(max(asks, least), most)
    return max(wanted, settings.activation_scale) if settings.activation_scale > 1 and asks > 0 else wanted


def _record_sample(state: KpaState, settings: KpaSettings, now: float, value: float) -> KpaState:
    """Returns the state with `value` recorded for each second from the last observation up to
    `now`.
    """
    end = math.floor(now)
    begin = end - 1 if state.looked is None else math.floor(state.looked)
    for second in range(max(begin, end - settings.stable_window_seconds), end):
        state = record(state, second, value)
    return state


def _plan(state: KpaState, settings: KpaSettings, look: PoolSample, wanted: int) -> tuple[KpaState, PoolPlan]:
    inputs = {
        "stable": DecisionInput(state.stable.average_at(look.now)),
        "panic": DecisionInput(state.panic.average_at(look.now)),
        "wanted": DecisionInput(wanted),
    }
    replicas = clamp_replicas(settings, wanted)
    if look.observed.desired == 0 and look.queued:
        replicas = max(1, replicas)
    idle = state.idle_since if replicas == 0 else None
    state = replace(state, idle_since=look.now if replicas == 0 and idle is None else idle)
    if replicas == 0 and look.observed.desired > 0:
        waited = look.now - (look.now if state.idle_since is None else state.idle_since)
        if waited < settings.zero_grace_seconds:
            return state, PoolPlan(1, "kpa/zero-grace", f"Nothing is wanted, for {waited:.0f} s now.", inputs)
    rule = "kpa/stable" if state.panic_since is None else "kpa/panic"
    return state, PoolPlan(replicas, rule, f"The windows ask for {wanted}; {look.observed.ready} are ready.", inputs)
