"""Verdicts on engines that hang, in fault runs: none may be about an engine that works.

The simulated routers know no failures of engines. So an observer before them feeds one outlier
detector of production per gateway with what the gateway would see:

- the first token of a request is an answer, and later tokens are bytes;
- a request whose engine sends it nothing for `first_token_min_seconds`, and no byte to the others
  of its gateway, is a timeout. It is sent again, at most twice;
- an engine that the gateway does not reach fails one connect a second;
- a request to an ejected engine would not have been sent, so its answer does not count;
- an ejected engine that may hang gets one-token probes. A probe waits behind the requests that wait
  in the engine. It fails after `ejection_probe_seconds`.

Each second the verdict of production is asked about each engine in service. It is *wrong* if the
engine works, also if no gateway reaches it. An engine that is 50 times slower does not work well:
it may answer nothing for a minute, and fail its probes. Verdicts on it are counted apart, also
after it has recovered, until the probes of that time have ended.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Final

from fairlead.fleet.hung_engines import EjectionReport, hung_verdict
from fairlead.limits import Limits
from fairlead_gateway.caller_key import CallerKey
from fairlead_gateway.resilience.outlier_detection import FaultSource, OutlierDetector, is_hang_cause
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.engine.sequence import SequenceState
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.simulation import QUEUED, RouterFront, SimulationContext
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.fleet_faults.runner import FaultRouter, FaultScenario, from_seed, prepare_simulation

TICK_SECONDS: Final = 1.0
PRODUCT_GRACE_SECONDS: Final = 60.0
HUNG_FACTOR: Final = 1e5
"""An engine so many times slower does not work."""
SLOW_FACTOR: Final = 50.0
"""Verdicts on an engine so many times slower are not wrong."""
_CALLERS: Final = 3
_LIMITS: Final = Limits()
_Key = tuple[str, float]
"""One sending of a request: its id and when the engine got it."""


@dataclass(frozen=True, slots=True)
class HangFinding:
    """A verdict that an engine hangs: when, which engine, and why."""

    at: float
    engine: str
    reason: str


@dataclass(frozen=True, slots=True)
class VerdictReport:
    """The result of one run.

    wrong: verdicts on engines that work.
    slow: verdicts on engines that are `SLOW_FACTOR` times slower.
    hung: verdicts on engines that hang.
    ejections: ejections of all gateways; failed_probes: failed probes; checks: verdicts asked.
    """

    seed: int
    wrong: tuple[HangFinding, ...]
    slow: tuple[HangFinding, ...]
    hung: tuple[HangFinding, ...]
    ejections: int
    failed_probes: int
    checks: int


@dataclass(slots=True)
class _Probe:
    """A probe that has not ended: when it was sent, and the requests that waited before it."""

    sent_at: float
    waiting: frozenset[str]
    heard_at: float


class _GatewayView:
    """The knowledge that one gateway has of the engines."""

    def __init__(self, seed: str) -> None:
        self.detector = OutlierDetector(_LIMITS, Random(seed).random)
        self.heard: dict[str, float] = {}
        self.unreachable: frozenset[str] = frozenset()
        self.probes: dict[str, _Probe] = {}
        self.ignored: set[_Key] = set()
        self.known: set[_Key] = set()

    def report(self, engine: str, now: float, grace_seconds: float) -> tuple[bool, EjectionReport | None]:
        """Returns whether the gateway has a say, and its report."""
        record = self.detector.ejection_records.by_instance.get(engine)
        if record is not None:
            return True, EjectionReport(now - record.since, record.cause, record.failed_probes, 1)
        answered_at = self.detector.answer_times().get(engine)
        return answered_at is not None and now - answered_at <= grace_seconds, None


class HangObserver:
    """The observer of one run, between the simulation and its router.

    gateway_of: returns the number of a request's gateway; None if it has none now.
    """

    def __init__(
        self,
        router: RouterFront,
        scenario: FaultScenario,
        *,
        gateway_of: Callable[[str], int | None],
        grace_seconds: float,
    ) -> None:
        self._router = router
        self._gateway_of = gateway_of
        self._grace_seconds = grace_seconds
        self._seed = scenario.seed
        self._live = list(scenario.engine_names)
        self._views = [self._new_view(number) for number in range(scenario.gateways)]
        self._judged: set[str] = set()
        self._simulation: SimulationContext | None = None
        self._last_tick = 0.0
        self._fleet_events = sorted(scenario.fleet_events, key=lambda event: event.at)
        self.slow: list[HangFinding] = []
        self.wrong: list[HangFinding] = []
        self.hung: list[HangFinding] = []
        self.ejections = self.failed_probes = self.checks = 0

    # --- RouterFront --------------------------------------------------------------------------------------------

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation
        self._router.start(simulation)
        simulation.schedule(TICK_SECONDS, self._tick)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        return self._router.route(request, now)

    def on_rejected(self, request: str, now: float) -> None:
        self._router.on_rejected(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        inflight = self._context().known_request(request)
        number = self._gateway_of(request)
        if number is not None and inflight.sequence is not None and inflight.instance is not None:
            view = self._views[number]
            self._note(view, inflight, now)
            if _key(inflight) not in view.ignored:
                view.detector.on_success(inflight.instance, now, _caller(request))
                view.heard[inflight.instance] = now
        self._router.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._router.on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        self._router.on_kv_events(instance, events, now)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Forgets engines that left, as gateways do; an engine that joins has a new identity."""
        self._live = list(live_engines)
        self._judged.intersection_update(self._live)
        for view in self._views:
            view.detector.retain(self._live)
            view.detector.retain_ready(self._live)
            for name in view.heard.keys() - set(self._live):
                del view.heard[name]
            for name in view.probes.keys() - set(self._live):
                del view.probes[name]
        self._router.on_membership(live_engines, now)

    def on_lost(self, request: str, now: float) -> None:
        self._router.on_lost(request, now)

    # --- faults -------------------------------------------------------------------------------------------------

    def on_partition(self, gateway: int, unreachable: frozenset[str], now: float) -> None:
        self._views[gateway].unreachable = unreachable

    def on_gateway_killed(self, gateway: int, now: float) -> None:
        """Replaces a gateway by one that knows nothing."""
        unreachable = self._views[gateway].unreachable
        self._views[gateway] = self._new_view(gateway)
        self._views[gateway].unreachable = unreachable

    # --- each second --------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        context = self._context()
        for inflight in list(context.all_requests()):
            if inflight.is_ended or inflight.sequence is None or inflight.instance in (None, QUEUED):
                continue
            number = self._gateway_of(inflight.request.id)
            if number is not None:
                self._observe(self._views[number], inflight, now)
        for view in self._views:
            self._connect(view, now)
            self._settle_probes(view, now)
            self._send_probes(view, now)
        for name in self._live:
            self._judge(name, now)
        self._last_tick = now
        context.schedule(now + TICK_SECONDS, self._tick)

    def _note(self, view: _GatewayView, inflight: InflightRequest, now: float) -> None:
        """Notes a request when it is first seen at an engine."""
        key, engine = _key(inflight), inflight.instance
        if key in view.known or engine is None:
            return
        view.known.add(key)
        if engine in view.detector.ejected(self._live, now):
            view.ignored.add(key)
        else:
            view.detector.on_dispatch(engine)

    def _observe(self, view: _GatewayView, inflight: InflightRequest, now: float) -> None:
        self._note(view, inflight, now)
        key, engine = _key(inflight), inflight.instance
        if key in view.ignored or engine is None or engine not in self._live:
            return
        if inflight.first_token_at is not None:
            if _has_step(inflight, self._last_tick, now):
                view.heard[engine] = now
            return
        silent_since = max(key[1], view.heard.get(engine, 0.0))
        if now - silent_since > _LIMITS.first_token_min_seconds:
            view.ignored.add(key)
            request = inflight.request.id
            self._fail(view, engine, "timeout", now, FaultSource(_caller(request), request.encode()))
            if inflight.retries < _LIMITS.max_attempts - 1:
                self._router.on_lost(request, now)
                self._context().interrupt_request(request, now)

    def _connect(self, view: _GatewayView, now: float) -> None:
        """Tries each engine that the gateway does not reach."""
        for name in view.unreachable.intersection(self._live):
            if view.detector.is_usable(name, now):
                view.detector.on_dispatch(name)
                self._fail(view, name, "connect-timeout", now, None)

    def _send_probes(self, view: _GatewayView, now: float) -> None:
        records = view.detector.ejection_records
        for name in records.due(now):
            records.on_probe_sent(name, now)
            waiting = [] if name not in self._context().engine_cores else _waiting(self._context().engine_cores[name])
            view.probes[name] = _Probe(now, frozenset(waiting), view.heard.get(name, 0.0))

    def _settle_probes(self, view: _GatewayView, now: float) -> None:
        records = view.detector.ejection_records
        for name, probe in list(view.probes.items()):
            age_seconds = now - probe.sent_at
            if name in view.unreachable:
                if age_seconds >= _LIMITS.connect_seconds:
                    self._end_probe(view, name, "connect-timeout", now)
            elif self._is_answered(name, probe, now):
                del view.probes[name]
                view.detector.on_success(name, now)
                records.on_probe_ended(name, has_failed=False)
            elif age_seconds >= _LIMITS.ejection_probe_seconds:
                if view.heard.get(name, 0.0) > probe.heard_at:
                    del view.probes[name]
                    records.restart(name, now)
                    records.on_probe_ended(name, has_failed=False)
                else:
                    self._end_probe(view, name, "timeout", now)

    def _end_probe(self, view: _GatewayView, name: str, cause: str, now: float) -> None:
        has_failed = is_hang_cause(cause)
        del view.probes[name]
        self.failed_probes += has_failed
        self._fail(view, name, cause, now, None)
        view.detector.ejection_records.on_probe_ended(name, has_failed=has_failed)
        view.detector.on_inconclusive(name)

    def _is_answered(self, name: str, probe: _Probe, now: float) -> bool:
        """Returns whether a probe has had its turn: those that waited before it have, too."""
        core = self._context().engine_cores.get(name)
        if core is None or probe.waiting.intersection(_waiting(core)):
            return False
        running = [sequence for sequence in core.sequences() if sequence.state is SequenceState.RUNNING]
        step_seconds = core.profile.step_time(computed=1, sequences=len(running) + 1, resident=1)
        return now - probe.sent_at >= step_seconds

    def _fail(self, view: _GatewayView, name: str, cause: str, now: float, source: FaultSource | None) -> None:
        self.ejections += view.detector.on_failure(name, cause, now, self._live, source)

    def _judge(self, name: str, now: float) -> None:
        found = {str(number): view.report(name, now, self._grace_seconds) for number, view in enumerate(self._views)}
        reports: Mapping[str, EjectionReport | None] = {
            number: report for number, (has_say, report) in found.items() if has_say
        }
        self.checks += 1
        verdict = hung_verdict(reports, grace_seconds=self._grace_seconds)
        if not verdict.is_hung or name in self._judged:
            return
        self._judged.add(name)
        factor = self._slowest_factor(name, now)
        findings = self.hung if factor >= HUNG_FACTOR else self.slow if factor >= SLOW_FACTOR else self.wrong
        findings.append(HangFinding(now, name, verdict.reason))

    def _slowest_factor(self, name: str, now: float) -> float:
        """Returns how many times slower the engine was, at most, since a probe of now began."""
        slowest = 1.0
        for event in self._fleet_events:
            if event.engine == name and event.at <= now:
                slowest = (
                    max(slowest, event.factor) if event.at > now - _LIMITS.ejection_probe_seconds else event.factor
                )
        return slowest

    def _new_view(self, number: int) -> _GatewayView:
        return _GatewayView(f"jitter {self._seed} {number}")

    def _context(self) -> SimulationContext:
        assert self._simulation is not None, "nothing happens before the start"
        return self._simulation


def judge_seed(seed: int) -> VerdictReport:
    return judge_scenario(from_seed(seed))


def judge_stretched_seed(seed: int) -> VerdictReport:
    """Runs the scenario of a seed with faults that last three times as long, so that they outlast
    the grace.
    """
    return judge_scenario(stretched(from_seed(seed), 3.0))


def judge_scenario(scenario: FaultScenario, grace_seconds: float = PRODUCT_GRACE_SECONDS) -> VerdictReport:
    """Runs a scenario and returns the verdicts."""
    observers: list[HangObserver] = []

    def observe(router: FaultRouter) -> RouterFront:
        observers.append(HangObserver(router, scenario, gateway_of=router.gateway_number, grace_seconds=grace_seconds))
        return observers[0]

    simulation = prepare_simulation(scenario, observe)
    (observer,) = observers
    for partition in scenario.partitions:
        simulation.schedule(partition.at, partial(observer.on_partition, partition.gateway, partition.unreachable))
    for kill in scenario.kills:
        simulation.schedule(kill.at, partial(observer.on_gateway_killed, kill.gateway))
    simulation.run(scenario.traffic)
    return VerdictReport(
        scenario.seed,
        tuple(observer.wrong),
        tuple(observer.slow),
        tuple(observer.hung),
        observer.ejections,
        observer.failed_probes,
        observer.checks,
    )


def stretched(scenario: FaultScenario, factor: float) -> FaultScenario:
    """Returns the scenario with all its times multiplied; engines keep their speed."""
    return replace(
        scenario,
        traffic=tuple([replace(one, arrival=one.arrival * factor) for one in scenario.traffic]),
        fleet_events=tuple([replace(event, at=event.at * factor) for event in scenario.fleet_events]),
        partitions=tuple([replace(partition, at=partition.at * factor) for partition in scenario.partitions]),
        kills=tuple([replace(kill, at=kill.at * factor) for kill in scenario.kills]),
        network_faults=tuple(
            [replace(fault, begin=fault.begin * factor, end=fault.end * factor) for fault in scenario.network_faults]
        ),
    )


def _key(inflight: InflightRequest) -> _Key:
    assert inflight.sequence is not None
    return inflight.request.id, inflight.sequence.arrival


def _caller(request: str) -> CallerKey:
    return CallerKey(f"caller-{sum(request.encode()) % _CALLERS}")


def _waiting(core: EngineCore) -> list[str]:
    return [sequence.id for sequence in core.sequences() if sequence.state is SequenceState.WAITING]


def _has_step(inflight: InflightRequest, since: float, until: float) -> bool:
    ends = inflight.step_ends
    return bisect_right(ends, since) < bisect_right(ends, until)
