"""NVIDIA Dynamo's SLA planner, which sizes pools by throughput.

**Forecasts**: the next value of a series with one value per interval.

- Kalman: a level that moves by a trend, level' = level + trend. Both drift, with variances of 1 and
  0.1 an interval; measurements have a variance of 10. The forecast is the next level. The first
  value sets the level, with a variance of 1000.
- Constant: the last value.

Both leave out zeros before the first value that is not zero. ARIMA (the planner's default) and
Prophet are not modelled: they need packages and minutes of data. The study of the presets used
Kalman in their place.

Source: ai-dynamo/dynamo, components/src/dynamo/planner/utils/load_predictor.py at 0ff50012
(KalmanPredictor, ConstantPredictor); defaults kalman_q_level 1.0, kalman_q_trend 0.1, kalman_r
10.0. Apache-2.0. Facts, not code: the filter's equations are written out for two states; the
original calls filterpy.

**Sizing**: every 180 s, the requests and the mean prompt and answer length of the interval are
forecast one interval ahead. With separate prefill and decode pools, the number of engines of each
follows from profiled throughput, here from the engine's profile:

    prefill = ceil(requests × prompt ÷ interval × min(1, p) ÷ prompt tokens a second of an engine)
    decode  = ceil(requests × answer ÷ interval ÷ tokens a second of an engine at the decode limit)

The decode limit is the highest rate with an inter-token latency ≤ SLO ÷ d. The corrections are
p = measured TTFT ÷ profiled TTFT and d = measured ITL ÷ profiled ITL, at the measured concurrency.
The planner takes p above 1 for queueing and ignores it, so a queue never adds prefill engines.

An aggregated pool (in later versions) gets ceil(requests a second ÷ requests a second of an
engine). An engine takes the largest batch at which a step, with its share of prompt tokens, meets
both SLOs. It then serves batch ÷ (answer × step) requests a second, or what its prompt tokens
allow. Each pool has at least one engine. An interval without any finished token changes nothing.

Constants: interval 180 s, at least 1 engine, SLOs of 0.5 s and 50 ms where none are given.

Source: ai-dynamo/dynamo, components/planner/src/dynamo/planner/utils/planner_core.py at 07619258
(make_adjustments, _compute_replica_requirements), perf_interpolation.py, defaults.py; for the
aggregated case AggRegressionModel.find_best_engine_agg_rps and _throughput_agg of later versions.
Apache-2.0. Facts, not code.

Changed: profiles are formulas, not tables that are interpolated. Counts of an interval that was
read in part are scaled to the whole interval, as a Prometheus increase is. Later versions have a
second loop that reacts to load; it is not modelled. The GPU budget is the pools' maximum.

``headroom`` multiplies the forecast load and is an addition (1 is the planner). The planner's own
way to more headroom is a tighter SLO, which does not move a prefill pool at all. Where several
pools have one role, the first is sized and the others stay.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import ModelSpec, Observation, PoolPlan, PoolSpec, ScalingPlan
from fairlead_sim.autoscalers.metrics import is_due

_FIRST_VARIANCE = 1000.0


class ForecastMethod(StrEnum):
    """The method of the forecast."""

    CONSTANT = "constant"
    KALMAN = "kalman"


@dataclass(frozen=True, slots=True)
class LevelTrendSeries:
    """A local linear trend: level and trend with their variances and covariance.

    seen: the series has a value.
    """

    seen: bool = False
    last: float = 0.0
    level: float = 0.0
    trend: float = 0.0
    level_variance: float = _FIRST_VARIANCE
    covariance: float = 0.0
    trend_variance: float = _FIRST_VARIANCE
    level_noise: float = 1.0
    trend_noise: float = 0.1
    measurement_noise: float = 10.0

    def plus(self, value: float) -> "LevelTrendSeries":
        """Returns the series with the value of the next interval."""
        if not self.seen:
            return self if value == 0.0 else replace(self, seen=True, last=value, level=value)
        ahead = self._ahead()
        gain = ahead.level_variance / (ahead.level_variance + self.measurement_noise)
        trend_gain = ahead.covariance / (ahead.level_variance + self.measurement_noise)
        off = value - ahead.level
        return replace(
            ahead,
            last=value,
            level=ahead.level + gain * off,
            trend=ahead.trend + trend_gain * off,
            level_variance=(1.0 - gain) * ahead.level_variance,
            covariance=(1.0 - gain) * ahead.covariance,
            trend_variance=ahead.trend_variance - trend_gain * ahead.covariance,
        )

    def next(self, forecast: ForecastMethod) -> float:
        """Returns the forecast for the next interval; 0 before the first value."""
        return self.last if forecast is ForecastMethod.CONSTANT or not self.seen else self._ahead().level

    def _ahead(self) -> "LevelTrendSeries":
        return replace(
            self,
            level=self.level + self.trend,
            level_variance=self.level_variance + 2.0 * self.covariance + self.trend_variance + self.level_noise,
            covariance=self.covariance + self.trend_variance,
            trend_variance=self.trend_variance + self.trend_noise,
        )


@dataclass(frozen=True, slots=True)
class DynamoSettings:
    """Settings of the planner. ``headroom`` multiplies the forecast load."""

    headroom: float = 1.0
    forecast: ForecastMethod = ForecastMethod.KALMAN
    interval_seconds: float = 180.0
    default_ttft_seconds: float = 0.5
    default_itl_seconds: float = 0.05


@dataclass(frozen=True, slots=True)
class IntervalSums:
    """Sums over an interval. ``seconds``: the time that the gateway's counts cover."""

    seconds: float = 0.0
    arrivals: float = 0.0
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    finished: float = 0.0
    first_tokens: float = 0.0
    ttft_seconds: float = 0.0
    itl_seconds: float = 0.0

    def plus(self, observation: Observation, seconds: float) -> "IntervalSums":
        """Returns the sums with an observation, ``seconds`` after the one before."""
        result = self
        if observation.gateway is not None:
            result = replace(
                result,
                seconds=self.seconds + seconds,
                arrivals=self.arrivals + observation.gateway.arrivals,
                prompt_tokens=self.prompt_tokens + observation.gateway.prompt_tokens,
            )
        replicas = [replica for seen in observation.pools.values() for replica in seen.replicas or ()]
        return replace(
            result,
            generated_tokens=self.generated_tokens + _sum(replica.generated_tokens for replica in replicas),
            finished=self.finished + _sum(replica.finished for replica in replicas),
            first_tokens=self.first_tokens + _sum(replica.first_tokens for replica in replicas),
            ttft_seconds=self.ttft_seconds + _sum(replica.ttft_seconds for replica in replicas),
            itl_seconds=self.itl_seconds + _sum(replica.itl_seconds for replica in replicas),
        )

    def means(self, interval: float) -> "IntervalMeans":
        """Returns requests of a whole interval and means of a request; None without a count."""
        return IntervalMeans(
            self.arrivals / self.seconds * interval if self.seconds > 0 else None,
            _mean(self.prompt_tokens, self.arrivals),
            _mean(self.generated_tokens, self.finished),
            _mean(self.ttft_seconds, self.first_tokens),
            _mean(self.itl_seconds, self.generated_tokens - self.first_tokens),
        )


@dataclass(frozen=True, slots=True)
class IntervalMeans:
    """Means of an interval: requests, tokens of a prompt and an answer, TTFT and ITL in seconds."""

    requests: float | None
    prompt: float | None
    answer: float | None
    ttft: float | None
    itl: float | None


@dataclass(frozen=True, slots=True)
class ForecastLoad:
    """The forecast load: requests a second, tokens of a prompt, tokens of an answer."""

    rate: float
    prompt: float
    answer: float


class DynamoPlanner:
    """The planner: it sums up an interval, forecasts the next one and sizes the pools."""

    def __init__(self, model: ModelSpec, settings: DynamoSettings) -> None:
        self._model = model
        self._settings = settings
        self._sums = IntervalSums()
        self._requests, self._prompt, self._answer = LevelTrendSeries(), LevelTrendSeries(), LevelTrendSeries()
        self._looked: float | None = None
        self._acted: float | None = None

    def step(self, observation: Observation) -> ScalingPlan:
        now, interval = observation.now, self._settings.interval_seconds
        if self._looked is None or self._acted is None:
            self._looked = self._acted = now
            return ScalingPlan()
        self._sums = self._sums.plus(observation, now - self._looked)
        self._looked = now
        if not is_due(self._acted, now, interval):
            return ScalingPlan()
        means, self._sums, self._acted = self._sums.means(interval), IntervalSums(), now
        self._requests = self._requests.plus(means.requests or 0.0)
        self._prompt = self._prompt.plus(means.prompt or 0.0)
        self._answer = self._answer.plus(means.answer or 0.0)
        if None in (means.prompt, means.answer, means.ttft, means.itl):
            return ScalingPlan()
        guess = self._settings.forecast
        rate = self._settings.headroom * max(0.0, self._requests.next(guess)) / interval
        load = ForecastLoad(rate, max(0.0, self._prompt.next(guess)), max(0.0, self._answer.next(guess)))
        return ScalingPlan(size_pools(self._model, self._settings, load, means, observation))


def size_pools(
    model: ModelSpec, settings: DynamoSettings, load: ForecastLoad, means: IntervalMeans, observation: Observation
) -> dict[str, PoolPlan]:
    """Returns plans for the first pool of each role under ``load``.

    A pool without a profile, or without an observation, gets no plan.
    """
    ttft = settings.default_ttft_seconds if model.ttft_seconds is None else model.ttft_seconds
    itl = settings.default_itl_seconds if model.itl_seconds is None else model.itl_seconds
    plans = {}
    for facts in _first_of_each(model.pools):
        if facts.profile is None or facts.name not in observation.pools:
            continue
        if facts.role is Role.PREFILL:
            correction = min(1.0, _ratio(means.ttft, prefill_seconds(facts.profile, means.prompt or 0.0)))
            offered, capacity = load.rate * load.prompt * correction, prefill_rate(facts.profile, load.prompt)
        elif facts.role is Role.DECODE:
            correction = _decode_correction(facts.profile, means, observation.pools[facts.name].ready, settings)
            context = load.prompt + load.answer / 2.0
            offered, capacity = load.rate * load.answer, decode_rate(facts.profile, context, itl / (correction or 1.0))
        else:
            correction = 1.0
            offered, capacity = load.rate, serve_rate(facts.profile, load.prompt, load.answer, ttft, itl)
        if capacity <= 0.0:
            continue
        replicas = min(max(math.ceil(offered / capacity), 1, facts.minimum), facts.maximum)
        inputs = {
            "offered": DecisionInput(offered),
            "capacity": DecisionInput(capacity),
            "correction": DecisionInput(correction),
        }
        plans[facts.name] = PoolPlan(replicas, "dynamo/throughput", "Forecast load over profiled capacity.", inputs)
    return plans


def prefill_seconds(profile: EngineProfile, prompt: float) -> float:
    """Returns the seconds to the first token of a prompt that is alone on an engine."""
    return profile.prefill_time(prompt)


def prefill_rate(profile: EngineProfile, prompt: float) -> float:
    """Returns the prompt tokens a second of an engine that does nothing else."""
    return prompt / prefill_seconds(profile, prompt) if prompt > 0.0 else 0.0


def decode_rate(profile: EngineProfile, context: float, itl: float) -> float:
    """Returns the most tokens a second at which a step takes at most ``itl`` seconds.

    When even a single sequence takes longer, the rate is that of a single sequence.
    """
    batch = _largest_batch(_max_batch(profile, context), lambda b: step_seconds(profile, b, context, 0.0) <= itl)
    return batch / step_seconds(profile, batch, context, 0.0)


def serve_rate(profile: EngineProfile, prompt: float, answer: float, ttft: float, itl: float) -> float:
    """Returns the requests a second of an engine that prefills and decodes.

    The batch is the largest that meets both SLOs; 1 if none does.
    """
    if prompt <= 0.0 or answer <= 0.0:
        return 0.0
    context = prompt + answer / 2.0

    def seconds(batch: int) -> float:
        return step_seconds(profile, batch, context, min(profile.step_tokens, batch * prompt / answer))

    def meets(batch: int) -> bool:
        return seconds(batch) <= itl and math.ceil(prompt / profile.step_tokens) * seconds(batch) <= ttft

    batch = _largest_batch(_max_batch(profile, context), meets)
    return min(batch / answer, profile.step_tokens / prompt) / seconds(batch)


def step_seconds(profile: EngineProfile, batch: int, context: float, prompt_tokens: float) -> float:
    """Returns the seconds of a step.

    The step decodes ``batch`` sequences of ``context`` tokens and computes ``prompt_tokens``.
    """
    return profile.step_time(computed=round(prompt_tokens) + batch, sequences=batch, resident=round(batch * context))


def _max_batch(profile: EngineProfile, context: float) -> int:
    return max(1, min(profile.max_sequences, math.floor(profile.kv_tokens / max(1.0, context))))


def _largest_batch(most: int, holds: Callable[[int], bool]) -> int:
    """Returns the largest batch up to ``most`` for which ``holds`` is true; 1 if there is none.

    ``holds`` is true for all batches below one for which it is true.
    """
    least = 1
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if holds(middle) else (least, middle - 1)
    return least


def _decode_correction(profile: EngineProfile, means: IntervalMeans, engines: int, settings: DynamoSettings) -> float:
    """Returns the measured ITL over the profiled one, at the interval's concurrency.

    The concurrency is rate × time of a request (Little).
    """
    if means.requests is None or not engines or means.prompt is None or means.answer is None or means.itl is None:
        return 1.0
    lasted = (means.ttft or 0.0) + means.answer * means.itl
    concurrency = means.requests / engines * lasted / settings.interval_seconds
    context = means.prompt + means.answer / 2.0
    batch = max(1, min(round(concurrency), _max_batch(profile, context)))
    return _ratio(means.itl, step_seconds(profile, batch, context, 0.0))


def _first_of_each(pools: Iterable[PoolSpec]) -> list[PoolSpec]:
    first: dict[Role, PoolSpec] = {}
    for facts in pools:
        first.setdefault(facts.role, facts)
    return list(first.values())


def _sum(values: Iterable[float | None]) -> float:
    return sum([value for value in values if value is not None])


def _mean(total: float, count: float) -> float | None:
    return total / count if count > 0 else None


def _ratio(measured: float | None, expected: float) -> float:
    return measured / expected if measured is not None and expected > 0 else 1.0
