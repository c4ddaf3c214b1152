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
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Final, NamedTuple

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Fleet, Instance, Role
from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import TimingEvent, TimingEventKind
from fairlead_gateway.routing.load.load_window import median
from fairlead_gateway.supervisor.profiling.observations import EngineObserver, Observation
from fairlead_gateway.supervisor.profiling.profile_regression import MIN_OBSERVATIONS, ProfileRegression

TIMING_SETTLE_SECONDS: Final = 2.5
"""Limit: the wait before sorting: a worker may be late."""

SOLVE_INTERVAL_SECONDS: Final = 10.0
MIN_REPORTED_CHANGE: Final = 0.02
"""Smallest relative change of a prefill or decode step time for which workers get a new profile."""
SLOWDOWN_SMOOTHING: Final = 0.05
MAX_SLOWDOWN: Final = 3.0
MIN_SLOWDOWN_OBSERVATIONS: Final = 40
_PROBE_TOKENS: Final = 1_000.0


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
        """Whether the profile is learned, not only the prior."""
        return self.observations >= MIN_OBSERVATIONS


@dataclass(slots=True)
class _EngineState:
    kind: str
    observer: EngineObserver
    slowdown: float = 1.0  # measured seconds per predicted second
    measured: int = 0


class ProfileEstimator:
    """The estimator for all instances of a fleet. Times are monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._regressions: dict[str, ProfileRegression] = {}
        self._engines: dict[str, _EngineState] = {}
        self._kinds: Counter[str] = Counter()
        self._typical_slowdown: dict[str, float] = {}  # of a kind's median instance
        self._engine_of_request: dict[str, _EngineState] = {}
        self._events: list[tuple[float, int, TimingEvent]] = []
        self._order = count()
        self._solved_at = 0.0
        self._sent_profiles: dict[str, EngineProfile] = {}
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
            self._sent_profiles.pop(absent, None)
            for request in [name for name, engine in self._engine_of_request.items() if engine is departed]:
                del self._engine_of_request[request]
        for name, instance in measured.items():
            kind = f"{instance.namespace}/{instance.model}/{instance.pool}"
            prior = instance.profile or builtin_profile("h100-llama8b")
            regression = self._regressions.get(kind)
            if regression is None or regression.prior != prior:
                self._regressions[kind] = ProfileRegression(prior)
            if name not in self._engines:
                self._engines[name] = _EngineState(kind, EngineObserver(prior.step_tokens))
        self._kinds = Counter(engine.kind for engine in self._engines.values())
        self._regressions = {kind: regression for kind, regression in self._regressions.items() if kind in self._kinds}

    def add_timings(self, events: Iterable[TimingEvent], dropped: int) -> None:
        """Queues timing events of a worker; `dropped` events were lost before."""
        self.dropped += dropped
        for row in events:
            if len(self._events) >= self._limits.timing_rows_pending:
                self.dropped += 1
                continue
            heapq.heappush(self._events, (row.at, next(self._order), row))

    def on_peer_dispatch(self, instance: str, tokens: float, now: float) -> None:
        """Records a peer's dispatch, whose cached tokens are unknown."""
        engine = self._engines.get(instance)
        if engine is not None:
            engine.observer.on_peer_dispatch(
                now, self._regressions[engine.kind].profile().prefill_time(tokens) * self._slowdown(engine)
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
            before = self._sent_profiles.get(name)
            if before is None or _differs(before, known.profile):
                changed[name] = self._sent_profiles[name] = known.profile
        return changed

    def sent_profiles(self) -> Mapping[str, EngineProfile]:
        """Returns the last profile of each instance that `update` returned, for a new worker."""
        return self._sent_profiles

    def learned_profile(self, instance: str) -> LearnedProfile | None:
        """Returns the profile of an instance; None for one that is not measured."""
        engine = self._engines.get(instance)
        if engine is None:
            return None
        regression = self._regressions[engine.kind]
        slowdown = self._slowdown(engine)
        return LearnedProfile(
            regression.profile().sped_up(1.0 / slowdown), regression.observations, regression.error, slowdown
        )

    def _apply_event(self, event: TimingEvent) -> None:
        if event.kind == TimingEventKind.DISPATCHED:
            engine = self._engines.get(event.instance)
            if engine is None:
                return
            if len(self._engine_of_request) >= self._limits.timing_inflight:
                first = next(iter(self._engine_of_request))
                self._engine_of_request.pop(first).observer.on_abandoned(first, event.at)
            self._engine_of_request[event.request] = engine
            engine.observer.on_dispatch(event.request, event.at, event.tokens, event.cached)
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
        share = regression.predicted_share(observation)
        if share is not None and regression.observations >= MIN_OBSERVATIONS and share > 0.0:
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
    )
    return any(abs(after - before) > MIN_REPORTED_CHANGE * before for before, after in pairs)


def _probe_step_seconds(profile: EngineProfile) -> float:
    return profile.step_time(computed=16, sequences=16, resident=16_000)
