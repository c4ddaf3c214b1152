"""Estimates the engine profile of each instance from the workers' timing events.

Instances of one pool are one kind: same accelerator, image and settings. Each kind has one
regression. An instance that is slower than its kind (a hot device, a noisy neighbour) has a
slowdown of its own: the measured time of its spans divided by the time that the kind's profile
predicts. Slowdowns are relative to the median instance of the kind.

Why relative: what slows all instances belongs in the profile. Otherwise profile and slowdowns
amplify each other, since a regression of relative errors is a little low where times scatter.

Events of several workers are sorted before use, so the estimator waits `timing_settle_seconds` for
late ones. Requests with a KV transfer are not measured: their first token says little about
computing.

Learns an engine profile from observed spans of the engine's time, by least squares.

A span (`observations`) is an equation in the coefficients of the profile
(`fairlead.engine_profile`). It says how many seconds these took in sum:

- steps (`d`), and steps that only read the weights (`w`);
- computed tokens (`p`), sequences (`s`), resident tokens (`c`);
- pairs of tokens in attention (`q`), and cached tokens (`h`);
- tokens that were loaded from CPU memory, disk and shared store. Engines report all cached tokens
  as one sum, which the expectation at the dispatch splits.

The coefficients are those that explain the recent spans best, none below zero. The error is
relative to the predicted seconds.

1. Unknowns are factors on the prior's coefficients (1 = as the prior), so all have one scale. A
   coefficient that is zero in the prior is counted in a default scale, with the factor 0.
2. Each equation is divided by its predicted seconds. Divided by the measured seconds, a span
   measured at a hundredth of its time would weigh ten thousand times as much as others. Where times
   scatter, the result would be too low, by a seventh at 30 %. An equation that is off by more
   than `OUTLIER_ERROR` counts for less in proportion. So a stalled engine or a lost minute does
   not become its profile.
3. Old observations decay by a half-life in time and by count. Only the two sums of least squares
   are stored.
4. Traffic may not show some directions, for example when all prompts are alike. A pull towards the
   last solution, worth `PULL_WEIGHT` equations, determines them.
5. A step of prefill costs max(w, p·tokens). An equation counts a step as bound by weights or by
   tokens with the coefficients of that moment. The choice settles as they do.
6. Prompts wait for steps that run or are planned (`waited_steps`). Which engines plan ahead shows
   in the errors of two regressions (`EngineRegression`).
7. No factor moves by more than `MAX_FACTOR_STEP` at a time, nor above `MAX_FACTOR`. An engine that
   seems to answer in no time has a wrong clock. A computed token always costs something, even
   where the attention of long prompts explains all of it.

Source: recursive least squares with forgetting, as in the fitted coefficients of FlowPrefill and
LAPS (arXiv 2601.11589). Changed: there are runs, the spans of answers separate decode from prefill,
and the pull is towards the last solution instead of zero.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Final, NamedTuple

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Fleet, Instance, Role
from fairlead_gateway.profiles.messages import TimingEvent, TimingEventKind
from fairlead_gateway.profiles.observations import EngineObserver, Observation
from fairlead_gateway.routing.load.load_window import median

HALF_LIFE_SECONDS: Final = 300.0
HALF_LIFE_OBSERVATIONS: Final = 400.0
OUTLIER_ERROR: Final = 0.6
MIN_PREDICTED_SHARE: Final = 0.1
"""Lower bound of predicted seconds, as a share of the measured, when an equation is scaled."""
PULL_WEIGHT: Final = 0.002
MAX_FACTOR: Final = 64.0
MAX_FACTOR_STEP: Final = 2.0
SATURATED_SHARE: Final = 0.8
MIN_FACTOR: Final = 0.02
MIN_ERROR_RATIO: Final = 0.9
"""The errors of two regressions that are closer say nothing."""
MIN_OBSERVATIONS: Final = 30.0
"""With fewer spans, the prior stands."""

_W, _P = 1, 2
_FIELDS: Final = (
    "step_seconds",
    "weights_seconds",
    "prefill_token_seconds",
    "sequence_seconds",
    "resident_token_seconds",
    "attention_seconds",
    "hit_token_seconds",
    "cpu_token_seconds",
    "disk_token_seconds",
    "store_token_seconds",
)
_DEFAULT_SCALES: Final = (1.5e-3, 5.5e-3, 3.6e-5, 2e-5, 4.9e-8, 1.2e-9, 2e-7, 6.5e-6, 4.4e-5, 4.4e-5)
"""The scales of coefficients whose prior is zero."""
_SOLVER_ROUNDS: Final = 60

TIMING_SETTLE_SECONDS: Final = 2.5
"""Limit: the wait before sorting: a worker may be late."""
TIMING_ROWS_PENDING: Final = 131_072
"""Limit: timings of all workers that wait to be sorted."""
TIMING_INFLIGHT: Final = 65_536
"""Limit: requests in flight that are timed; beyond, the oldest is not measured."""

SOLVE_INTERVAL_SECONDS: Final = 10.0
MIN_REPORTED_CHANGE: Final = 0.02
"""Smallest relative change of a prefill or decode step time for which workers get a new profile."""
SLOWDOWN_SMOOTHING: Final = 0.05
MAX_SLOWDOWN: Final = 3.0
MIN_SLOWDOWN_OBSERVATIONS: Final = 40
_PROBE_TOKENS: Final = 1_000.0


@dataclass(slots=True)
class ProfileRegression:
    """The regression of one kind of engine, under an assumption of how it plans steps.

    steps_ahead: the steps that the engine plans before the present one ends.
    factors: multiply the coefficients of `prior`.
    observations: the sum of the weights that still count.
    error: mean relative error of predictions before they were learned from; None before the first.
    wait_error: that of runs whose prompts may have waited for a step.
    """

    prior: EngineProfile
    steps_ahead: float = 1.0
    factors: list[float] = field(default_factory=list)
    observations: float = 0.0
    error: float | None = None
    wait_error: float | None = None
    at: float | None = None
    _products: list[list[float]] = field(default_factory=lambda: [[0.0] * len(_FIELDS) for _ in _FIELDS])
    _targets: list[float] = field(default_factory=lambda: [0.0] * len(_FIELDS))
    _scales: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        given = [float(getattr(self.prior, name)) for name in _FIELDS]
        self._scales = [value or usual for value, usual in zip(given, _DEFAULT_SCALES, strict=True)]
        self.factors = [1.0 if value else 0.0 for value in given]

    def add(self, observation: Observation, now: float) -> None:
        """Adds a span; `now` is in monotonic seconds."""
        row = self._equation(observation)
        if row is None:
            return
        predicted = sum(value * factor for value, factor in zip(row, self.factors, strict=True))
        error = abs(1.0 - predicted)
        scale = 1.0 / max(predicted, MIN_PREDICTED_SHARE)
        row = [value * scale for value in row]
        deviation = abs(scale - 1.0)
        weight = (
            1.0 if deviation <= OUTLIER_ERROR or self.observations < MIN_OBSERVATIONS else OUTLIER_ERROR / deviation
        )
        if observation.is_cache_assumed:
            weight *= 0.5
        elapsed = 0.0 if self.at is None else max(0.0, now - self.at)
        decay = 0.5 ** (elapsed / HALF_LIFE_SECONDS + 1.0 / HALF_LIFE_OBSERVATIONS)
        self.at = now if self.at is None else max(self.at, now)
        self.error = _smoothed(self.error, error)
        if observation.began_mid_step or observation.preceding:
            self.wait_error = _smoothed(self.wait_error, error)
        self.observations = self.observations * decay + weight
        products, targets = self._products, self._targets
        for one, value in enumerate(row):
            line = products[one]
            for other, second in enumerate(row):
                line[other] = line[other] * decay + weight * value * second
            targets[one] = targets[one] * decay + weight * value * scale

    def predicted_share(self, observation: Observation) -> float | None:
        """Returns predicted over measured seconds of a span; None if the span says nothing."""
        row = self._equation(observation)
        return None if row is None else sum(value * factor for value, factor in zip(row, self.factors, strict=True))

    def solve(self) -> EngineProfile:
        """Solves for the factors and returns the profile. To be called every few seconds.

        Below `MIN_OBSERVATIONS`, the factors stay as they are.
        """
        if self.observations < MIN_OBSERVATIONS:
            return self.profile()
        factors = list(self.factors)
        for _ in range(_SOLVER_ROUNDS):
            for one, line in enumerate(self._products):
                rest = (
                    sum(value * factor for value, factor in zip(line, factors, strict=True)) - line[one] * factors[one]
                )
                pull = PULL_WEIGHT
                factors[one] = max(0.0, (self._targets[one] - rest + pull * self.factors[one]) / (line[one] + pull))
        self.factors = [
            min(
                max(new, old / MAX_FACTOR_STEP if old > MIN_FACTOR else 0.0),
                max(old * MAX_FACTOR_STEP, 1.0),
                MAX_FACTOR,
            )
            for new, old in zip(factors, self.factors, strict=True)
        ]
        self.factors[_P] = max(self.factors[_P], 1.0 / MAX_FACTOR)
        return self.profile()

    def profile(self) -> EngineProfile:
        seconds = [scale * factor for scale, factor in zip(self._scales, self.factors, strict=True)]
        return replace(self.prior, **dict(zip(_FIELDS, seconds, strict=True)))  # type: ignore[arg-type]

    def _is_saturated(self, observation: Observation) -> bool:
        """Whether prompts waited for KV cache or sequences: such time says nothing of computing."""
        prior = self.prior
        return (
            observation.peak_tokens > SATURATED_SHARE * prior.kv_tokens
            or observation.peak_sequences > SATURATED_SHARE * prior.max_sequences
        )

    def _equation(self, observation: Observation) -> list[float] | None:
        """Returns the share of the span's seconds that each coefficient explains at factor 1.

        None for an empty span, and for a saturated one whose steps were not counted.
        """
        if observation.seconds <= 0.0 or (observation.steps is None and self._is_saturated(observation)):
            return None
        factors, work = self.factors, observation.work
        token = self._scales[_P] * factors[_P]
        # tokens that take as long as to read the weights
        bound = self._scales[_W] * factors[_W] / token if token > 0.0 else 0.0
        if observation.steps is None:
            computing = max(1.0, work.steps)
            reading = waited_steps(observation, self.profile(), self.steps_ahead)
        else:
            computing = min(max(1.0, observation.steps), work.steps)
            reading = max(1.0, observation.steps) - computing
        steps = computing + reading
        tokens = work.computed + observation.sequences * computing
        by_tokens = by_weights = 0.0
        if computing and tokens >= bound * computing:
            by_tokens += tokens
        else:
            by_weights += computing
        if observation.sequences >= bound:
            by_tokens += observation.sequences * reading
        else:
            by_weights += reading
        amounts = (
            steps,
            by_weights,
            by_tokens,
            steps * (observation.sequences + (1.0 if observation.steps is None else 0.0)),
            observation.resident * steps,
            work.attention,
            work.cached,
            work.cpu,
            work.disk,
            work.store,
        )
        return [amount * scale / observation.seconds for amount, scale in zip(amounts, self._scales, strict=True)]


def waited_steps(observation: Observation, profile: EngineProfile, steps_ahead: float) -> float:
    """Returns for how many steps that only decode the prompts of a run waited.

    steps_ahead: the steps that the engine plans before the present one ends, 0 or 1.

    A prompt that arrives during a step waits for its end: half a step, on average. If the next step
    was already planned, the prompt is not in it and waits for it, too. Such a step does not exist
    if the prompt came before the step began, or if the engine had no other work.

    - A run that began mid-step waits at its start.
    - A later prompt of a run was dispatched before the prompt ahead of it ended. It waits if it
      came during the last step of that prompt. The profile says how long that step was.

    Source: vLLM's asynchronous scheduling (`step_with_batch_queue` in `vllm/v1/engine/core.py`);
    SGLang's overlap scheduler does the same. On an H100, first tokens of vLLM came 35 to 60 ms
    later than without the second wait, whatever the prompt (`bench/notes/where-the-gpu-stands.md`).
    Why it counts: a regression without it takes the wait for slow prefill, and is up to 80 % off.
    """
    waited = 0.5 + steps_ahead if observation.began_mid_step else 0.0
    for step in observation.preceding:
        seconds = profile.step_time(
            computed=int(step.computed) + step.sequences,
            sequences=step.sequences + 1,
            resident=int(observation.resident),
            attention=step.attention,
        )
        if step.gap_seconds < seconds:
            waited += steps_ahead
    return waited


class EngineRegression:
    """The regression of one kind of engine: a model on an accelerator.

    It has a `ProfileRegression` for engines that plan a step ahead, and one for those that do not.
    The one whose predictions of prompts that waited are better holds.

    Why two: engines do not report it, and some have a switch (vLLM's `--async-scheduling`). A
    factor on the wait, fitted with the coefficients, was tried. Equations from before the
    coefficients settled kept it wrong for minutes where the prior was ten times too fast.
    """

    def __init__(self, prior: EngineProfile) -> None:
        self.best = ProfileRegression(prior)
        self._other = ProfileRegression(prior, steps_ahead=0.0)

    def add(self, observation: Observation, now: float) -> None:
        """Adds a span; `now` is in monotonic seconds."""
        self.best.add(observation, now)
        self._other.add(observation, now)

    def solve(self) -> EngineProfile:
        """Solves both regressions and returns the better profile.

        To be called every few seconds.
        """
        self.best.solve()
        self._other.solve()
        error, other_error = self.best.wait_error, self._other.wait_error
        if error is not None and other_error is not None and other_error < MIN_ERROR_RATIO * error:
            self.best, self._other = self._other, self.best
        return self.best.profile()


def _smoothed(mean: float | None, error: float) -> float:
    return error if mean is None else mean + 0.05 * (min(error, 4.0) - mean)


class LearnedProfile(NamedTuple):
    """The learned profile of one instance.

    observations: weight of the observations behind it; below `MIN_OBSERVATIONS` the prior is used.
    error: mean relative error of single predictions; None before the first.
    slowdown: time of the instance relative to its kind.
    """

    profile: EngineProfile
    observations: float
    error: float | None
    slowdown: float

    @property
    def is_reliable(self) -> bool:
        return self.observations >= MIN_OBSERVATIONS


@dataclass(slots=True)
class _EngineState:
    kind: str
    observer: EngineObserver
    slowdown: float = 1.0  # measured seconds per predicted second
    measured: int = 0


class ProfileEstimator:
    """The estimator for all instances of a fleet. Times are monotonic seconds."""

    def __init__(self, *, max_events: int = TIMING_ROWS_PENDING, max_inflight: int = TIMING_INFLIGHT) -> None:
        self._max_events, self._max_inflight = max_events, max_inflight
        self._regressions: dict[str, EngineRegression] = {}
        self._engines: dict[str, _EngineState] = {}
        self._kinds: Counter[str] = Counter()
        self._typical_slowdown: dict[str, float] = {}  # of a kind's median instance
        self._engine_of_request: dict[str, _EngineState] = {}
        self._events: list[tuple[float, int, TimingEvent]] = []
        self._order = count()
        self._solved_at = 0.0
        self.sent_profiles: dict[str, EngineProfile] = {}
        self.dropped = 0

    def update_fleet(self, fleet: Fleet) -> None:
        """Adds and drops instances. Only those of role Serve without KV transfer are measured.

        The profile of a kind stays while the kind has an instance and the same prior.
        """
        measured: dict[str, Instance] = {
            instance.id: instance
            for instances in fleet.instances.values()
            for instance in instances
            if instance.role is Role.SERVE and instance.transfer is None
        }
        for absent in self._engines.keys() - measured.keys():
            departed = self._engines.pop(absent)
            self.sent_profiles.pop(absent, None)
            for request in [name for name, engine in self._engine_of_request.items() if engine is departed]:
                del self._engine_of_request[request]
        for name, instance in measured.items():
            kind = f"{instance.namespace}/{instance.model}/{instance.pool}"
            prior = instance.profile or builtin_profile("h100-llama8b")
            regression = self._regressions.get(kind)
            if regression is None or regression.best.prior != prior:
                self._regressions[kind] = EngineRegression(prior)
            if name not in self._engines:
                self._engines[name] = _EngineState(kind, EngineObserver(prior.step_tokens))
        self._kinds = Counter(engine.kind for engine in self._engines.values())
        self._regressions = {kind: regression for kind, regression in self._regressions.items() if kind in self._kinds}

    def add_timings(self, events: Iterable[TimingEvent]) -> None:
        """Queues timing events of a worker."""
        for row in events:
            if len(self._events) >= self._max_events:
                self.dropped += 1
                continue
            heapq.heappush(self._events, (row.at, next(self._order), row))

    def on_peer_dispatch(self, instance: str, tokens: float, now: float) -> None:
        """Records a peer's dispatch, whose cached tokens are unknown."""
        engine = self._engines.get(instance)
        if engine is not None:
            engine.observer.on_peer_dispatch(
                now, self._regressions[engine.kind].best.profile().prefill_time(tokens) * self._slowdown(engine)
            )

    def update(self, now: float) -> Mapping[str, EngineProfile]:
        """Learns from the events that are old enough to be in order.

        Returns, by instance, the reliable profiles that changed enough for workers to get them.
        Empty if the last solution is younger than `SOLVE_INTERVAL_SECONDS`.
        """
        until = now - TIMING_SETTLE_SECONDS
        while self._events and self._events[0][0] <= until:
            self._apply_event(heapq.heappop(self._events)[2])
        if now - self._solved_at < SOLVE_INTERVAL_SECONDS:
            return {}
        self._solved_at = now
        self._compare_slowdowns()
        for regression in self._regressions.values():
            regression.solve()
        changed = {}
        for name in self._engines:
            known = self.learned_profile(name)
            if known is None or not known.is_reliable:
                continue
            before = self.sent_profiles.get(name)
            if before is None or _differs(before, known.profile):
                changed[name] = self.sent_profiles[name] = known.profile
        return changed

    def learned_profile(self, instance: str) -> LearnedProfile | None:
        """Returns the profile of an instance; None for one that is not measured."""
        engine = self._engines.get(instance)
        if engine is None:
            return None
        regression = self._regressions[engine.kind].best
        slowdown = self._slowdown(engine)
        return LearnedProfile(
            regression.profile().sped_up(1.0 / slowdown), regression.observations, regression.error, slowdown
        )

    def _apply_event(self, event: TimingEvent) -> None:
        if event.kind == TimingEventKind.DISPATCHED:
            engine = self._engines.get(event.instance)
            if engine is None:
                return
            if len(self._engine_of_request) >= self._max_inflight:
                first = next(iter(self._engine_of_request))
                self._engine_of_request.pop(first).observer.on_abandoned(first, event.at)
            self._engine_of_request[event.request] = engine
            engine.observer.on_dispatch(event.request, event.at, event.tokens, event.cached, event.loaded)
            return
        engine = self._engine_of_request.get(event.request)
        if engine is None:
            return
        if event.kind == TimingEventKind.FIRST_TOKEN:
            engine.observer.on_first_token(event.request, event.at)
            return
        del self._engine_of_request[event.request]
        if event.kind == TimingEventKind.UNMEASURED:
            engine.observer.on_unmeasured(event.request, event.at)
            return
        if event.kind == TimingEventKind.ABANDONED:
            engine.observer.on_abandoned(event.request, event.at)
            return
        observations = engine.observer.on_finish(
            event.request,
            event.at,
            cached_tokens=None if event.cached < 0.0 else event.cached,
            output_tokens=None if event.output < 0.0 else event.output,
        )
        for observation in observations:
            self._add_observation(engine, observation, event.at)

    def _add_observation(self, engine: _EngineState, observation: Observation, now: float) -> None:
        """Updates the instance's slowdown, and its kind's profile with the slowdown removed."""
        regression = self._regressions[engine.kind]
        share = regression.best.predicted_share(observation)
        if share is not None and regression.best.observations >= MIN_OBSERVATIONS and share > 0.0:
            slowdown = min(MAX_SLOWDOWN, max(1.0 / MAX_SLOWDOWN, 1.0 / share))
            engine.slowdown += SLOWDOWN_SMOOTHING * (slowdown - engine.slowdown)
            engine.measured += 1
        regression.add(replace(observation, seconds=observation.seconds / self._slowdown(engine)), now)

    def _compare_slowdowns(self) -> None:
        slowdowns: dict[str, list[float]] = {}
        for engine in self._engines.values():
            if engine.measured >= MIN_SLOWDOWN_OBSERVATIONS:
                slowdowns.setdefault(engine.kind, []).append(engine.slowdown)
        self._typical_slowdown = {kind: median(known) for kind, known in slowdowns.items()}

    def _slowdown(self, engine: _EngineState) -> float:
        """Returns the time of an instance relative to its kind; 1 for the only instance."""
        if engine.measured < MIN_SLOWDOWN_OBSERVATIONS or self._kinds[engine.kind] < 2:
            return 1.0
        return engine.slowdown / self._typical_slowdown.get(engine.kind, engine.slowdown)


def _differs(one: EngineProfile, other: EngineProfile) -> bool:
    """Whether the prefill or step times of two profiles differ noticeably."""
    pairs = (
        (one.prefill_time(_PROBE_TOKENS), other.prefill_time(_PROBE_TOKENS)),
        (one.prefill_time(10 * _PROBE_TOKENS), other.prefill_time(10 * _PROBE_TOKENS)),
        (_probe_step_seconds(one), _probe_step_seconds(other)),
        *[(_load_seconds(one, tier), _load_seconds(other, tier)) for tier in range(3)],
    )
    return any(abs(after - before) > MIN_REPORTED_CHANGE * before for before, after in pairs)


def _load_seconds(profile: EngineProfile, tier: int) -> float:
    tokens = [_PROBE_TOKENS if number == tier else 0.0 for number in range(3)]
    return profile.load_time(*tokens) + profile.prefill_time(_PROBE_TOKENS, _PROBE_TOKENS)


def _probe_step_seconds(profile: EngineProfile) -> float:
    return profile.step_time(computed=16, sequences=16, resident=16_000)
