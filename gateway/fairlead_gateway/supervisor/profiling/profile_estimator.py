"""All engines of a gateway, learned from the rows of its workers: which spans belong to which kind of engine, and what comes of them.

Instances of one pool are one kind: the same accelerator, image and settings. Each kind has one fit; an instance that is slower than
its kind (a hot device, a noisy neighbour) has a factor of its own on top, from what its spans took against what the kind's
profile says, and against what the spans of the kind's middle instance did: what all of them take longer is the profile's to say.
Otherwise the two drive one another on, since a fit of relative errors lies a little low where times scatter.

Rows of several workers are put in order before they are used, which takes waiting for the latest: ``learn_settle_seconds``. A leg
of a hand-off tells nothing here: where KV comes from elsewhere, a first token says little of computing.
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
from fairlead_gateway.ipc.timing_events import TimingEvent, TimingEventKind
from fairlead_gateway.routing.load.load_window import median
from fairlead_gateway.supervisor.profiling.observations import EngineObserver, Observation
from fairlead_gateway.supervisor.profiling.profile_regression import MIN_OBSERVATIONS, ProfileRegression

SOLVE_INTERVAL_SECONDS: Final = 10.0
MIN_REPORTED_CHANGE: Final = 0.02
"""A profile by which a thousand tokens, or a step of decoding, take so much longer or shorter is told to the workers."""
SLOWDOWN_SMOOTHING: Final = 0.05
MAX_SLOWDOWN: Final = 3.0
MIN_SLOWDOWN_OBSERVATIONS: Final = 40
_PROBE_TOKENS: Final = 1_000.0


class LearnedProfile(NamedTuple):
    """What is known of one instance's engine. ``error``: how far single predictions are off, as a share; None before there are any.
    ``spans``: how many observations it rests on; below ``ENOUGH_SPANS`` the prior stands."""

    profile: EngineProfile
    observations: float
    error: float | None
    slowdown: float

    @property
    def is_reliable(self) -> bool:
        """Whether it is learned, and not only assumed."""
        return self.observations >= MIN_OBSERVATIONS


@dataclass(slots=True)
class _EngineState:
    kind: str
    observer: EngineObserver
    slowdown: float = 1.0  # seconds it takes for each that its kind's profile says
    measured: int = 0


class ProfileEstimator:
    """Times are monotonic seconds. ``profiles`` is what workers should route by."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._regressions: dict[str, ProfileRegression] = {}
        self._engines: dict[str, _EngineState] = {}
        self._kinds: Counter[str] = Counter()
        self._typical_slowdown: dict[str, float] = {}  # the pace of a kind's middle instance
        self._engine_of_request: dict[str, _EngineState] = {}
        self._events: list[tuple[float, int, TimingEvent]] = []
        self._order = count()
        self._solved_at = 0.0
        self._sent_profiles: dict[str, EngineProfile] = {}
        self.dropped = 0

    def update_fleet(self, fleet: Fleet) -> None:
        """Take over who is there. What was learned of a kind stays as long as it has an instance."""
        found: dict[str, Instance] = {
            one.id: one
            for instances in fleet.instances.values()
            for one in instances
            if one.role is Role.SERVE and one.transfer is None
        }
        for gone in self._engines.keys() - found.keys():
            del self._engines[gone]
            self._sent_profiles.pop(gone, None)
        for name, one in found.items():
            kind = f"{one.namespace}/{one.model}/{one.pool}"
            prior = one.profile or builtin_profile("h100-llama8b")
            fit = self._regressions.get(kind)
            if fit is None or fit.prior != prior:
                self._regressions[kind] = ProfileRegression(prior)
            if name not in self._engines:
                self._engines[name] = _EngineState(kind, EngineObserver(prior.step_tokens))
        self._kinds = Counter(place.kind for place in self._engines.values())
        self._regressions = {kind: fit for kind, fit in self._regressions.items() if kind in self._kinds}

    def add_timings(self, events: Iterable[TimingEvent], dropped: int) -> None:
        """A worker tells."""
        self.dropped += dropped
        for row in events:
            if len(self._events) >= self._limits.timing_rows_pending:
                self.dropped += 1
                continue
            heapq.heappush(self._events, (row.at, next(self._order), row))

    def on_peer_dispatch(self, instance: str, tokens: float, now: float) -> None:
        """Another gateway has sent a prompt to an instance; how much of it is cached there is not told."""
        place = self._engines.get(instance)
        if place is not None:
            place.observer.on_peer_dispatch(
                now, self._regressions[place.kind].profile().prefill_time(tokens) * self._slowdown(place)
            )

    def update(self, now: float) -> Mapping[str, EngineProfile]:
        """Learn from the rows that are old enough to be in order; the profiles, by instance, that changed enough to be told."""
        until = now - self._limits.timing_settle_seconds
        while self._events and self._events[0][0] <= until:
            self._apply_event(heapq.heappop(self._events)[2])
        if now - self._solved_at < SOLVE_INTERVAL_SECONDS:
            return {}
        self._solved_at = now
        self._compare_slowdowns()
        for fit in self._regressions.values():
            fit.solve()
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
        """All that was told: for a worker that is new."""
        return self._sent_profiles

    def learned_profile(self, instance: str) -> LearnedProfile | None:
        """What is known of one; None where nothing is learned there."""
        place = self._engines.get(instance)
        if place is None:
            return None
        fit = self._regressions[place.kind]
        pace = self._slowdown(place)
        return LearnedProfile(fit.profile().sped_up(1.0 / pace), fit.observations, fit.error, pace)

    def _apply_event(self, event: TimingEvent) -> None:
        if event.kind == TimingEventKind.DISPATCHED:
            place = self._engines.get(event.instance)
            if place is None:
                return
            if len(self._engine_of_request) >= self._limits.timing_inflight:
                first = next(iter(self._engine_of_request))
                self._engine_of_request.pop(first).observer.on_abandoned(first, event.at)
            self._engine_of_request[event.request] = place
            place.observer.on_dispatch(event.request, event.at, event.tokens, event.cached)
            return
        place = self._engine_of_request.get(event.request)
        if place is None:
            return
        if event.kind == TimingEventKind.FIRST_TOKEN:
            place.observer.on_first_token(event.request, event.at)
            return
        del self._engine_of_request[event.request]
        if event.kind == TimingEventKind.ABANDONED:
            place.observer.on_abandoned(event.request, event.at)
            return
        spans = place.observer.on_finish(
            event.request,
            event.at,
            cached_tokens=None if event.cached < 0.0 else event.cached,
            output_tokens=None if event.output < 0.0 else event.output,
        )
        for span in spans:
            self._add_observation(place, span, event.at)

    def _add_observation(self, engine: _EngineState, observation: Observation, now: float) -> None:
        """The kind learns from the span as if the instance were as fast as its kind; what is left over is the instance's pace."""
        fit = self._regressions[engine.kind]
        share = fit.predicted_share(observation)
        if share is not None and fit.observations >= MIN_OBSERVATIONS and share > 0.0:
            off = min(MAX_SLOWDOWN, max(1.0 / MAX_SLOWDOWN, 1.0 / share))
            engine.slowdown += SLOWDOWN_SMOOTHING * (off - engine.slowdown)
            engine.measured += 1
        fit.add(replace(observation, seconds=observation.seconds / self._slowdown(engine)), now)

    def _compare_slowdowns(self) -> None:
        paces: dict[str, list[float]] = {}
        for place in self._engines.values():
            if place.measured >= MIN_SLOWDOWN_OBSERVATIONS:
                paces.setdefault(place.kind, []).append(place.slowdown)
        self._typical_slowdown = {kind: median(known) for kind, known in paces.items()}

    def _slowdown(self, engine: _EngineState) -> float:
        """How long an instance takes for a second of its kind; one alone is its kind."""
        if engine.measured < MIN_SLOWDOWN_OBSERVATIONS or self._kinds[engine.kind] < 2:
            return 1.0
        return engine.slowdown / self._typical_slowdown.get(engine.kind, engine.slowdown)


def _differs(one: EngineProfile, other: EngineProfile) -> bool:
    """Whether prompts or steps take noticeably different times by them."""
    pairs = (
        (one.prefill_time(_PROBE_TOKENS), other.prefill_time(_PROBE_TOKENS)),
        (one.prefill_time(10 * _PROBE_TOKENS), other.prefill_time(10 * _PROBE_TOKENS)),
        (_probe_step_seconds(one), _probe_step_seconds(other)),
    )
    return any(abs(after - before) > MIN_REPORTED_CHANGE * before for before, after in pairs)


def _probe_step_seconds(profile: EngineProfile) -> float:
    return profile.step_time(computed=16, sequences=16, resident=16_000)
