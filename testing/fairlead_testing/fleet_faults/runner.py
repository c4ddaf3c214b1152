"""Fault scenarios of simulated fleets, drawn from seeds, and the invariants that hold in them.

A seed draws a fleet, its router, its traffic, and the faults of the first ``FAULT_SECONDS``. Then
the faults end: lost engines are replaced, slow ones recover, and every gateway reaches every
engine. Traffic continues. After ``RECOVERY_SECONDS`` the fleet must serve as if there had been no
fault. ``make nightly`` runs ten thousand seeds (``docs/reference/faults.md``).

    | fault | here |
    |---|---|
    | engines killed, also all at once, and restarted under their names | ``LOSE``, ``JOIN`` |
    | engines drained, others added | ``DRAIN``, ``JOIN`` |
    | engines 3, 10 or 50 times slower for a while | ``SLOW`` by 3, 10 or 50 |
    | a gateway does not reach some engines; links are cut and mended one by one | ``partitions`` |
    | 30 % of the requests of ``FAULT_SECONDS`` arrive within one second | ``traffic`` |
    | a gateway killed during its answers | ``kills`` |
    | messages lost, duplicated, late or out of order; Redis down | ``network_faults`` |

The invariants are checked all the time by a router between the simulation and the real router:

- A request goes only to an engine in service that its gateway reaches. It is refused only if there
  is none.
- A request is answered once. It arrives again only without a first token; its first token and its
  end come once.
- The requests of an engine are those in flight there, and every open request is at one engine.
- The gateways' counts (requests, those without a first token) are the requests in flight. No count
  is negative.
- Every request ends. One that is open ``PATIENCE_SECONDS`` after the last arrival is lost.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any, Final, TypeAlias

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import FairleadError
from fairlead_gateway.routing import PRESETS, QUEUEING_PRESETS
from fairlead_sim.adapters.external_router import ExternalRouter, SharingDelays
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.engine.sequence import SequenceState
from fairlead_sim.experiments.trial import SeamKind, Trial
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind, schedule_events
from fairlead_sim.fleet.packet_simulator import NetworkFault, PacketSimulator
from fairlead_sim.fleet.request import InflightRequest, RequestResult
from fairlead_sim.fleet.results import TARGET_SECONDS, share_within
from fairlead_sim.fleet.simulation import (
    ENGINE_LOST,
    QUEUED,
    FleetOptions,
    FleetSimulation,
    RouterFront,
    SimulationContext,
)
from fairlead_sim.gateways.gateway_cluster import ClusterOptions, GatewayCluster, SharingOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions, SingleGateway
from fairlead_sim.seams import router
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest, at_rate

CHECK_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 1_800.0
_MAX_VIOLATIONS: Final = 20
_MIN_COUNT: Final = -1e-6

EndpointCount = tuple[str, int, int, float, float]
"""The counts of one gateway for one engine.

Name, requests in flight, those without a first token, their prefill seconds, their tokens.
"""

FAULT_SECONDS: Final = 45.0
RECOVERY_SECONDS: Final = 60.0
OBSERVED_SECONDS: Final = 20.0
_PROFILES: Final = ("h100-llama8b", "a100-qwen7b")
_ENGINE_RATE: Final = {"h100-llama8b": 2.4, "a100-qwen7b": 1.0}
"""Requests per second that one engine carries without cache hits."""
SINGLE_GATEWAY: Final = "one"
EXTERNAL_ROUTER: Final = "seam"
GATEWAY_CLUSTER: Final = "gateways"

REPLAY_COMMAND: Final = ".venv/bin/python scripts/nightly_fleet.py --replay {}"
FaultRouter: TypeAlias = SingleGateway | ExternalRouter | GatewayCluster
"""The routers of fault runs."""
RECOVERED_ATTAINMENT: Final = 0.9
"""The least share of first tokens within ``TARGET_SECONDS`` after recovery."""


class RequestLost(Exception):
    """Raised in a run with a request that never ends."""


class InvariantChecker:
    """The checker of one run.

    - counts: returns the counts of all gateways.
    - queues_requests: the router queues requests. The simulation does not know for which engine, so
      only sums are compared.
    - reachable: returns the engines in service that the request's gateway reaches.
    """

    def __init__(
        self,
        router: RouterFront,
        engine_names: Sequence[str],
        *,
        counts: Callable[[], Iterable[EndpointCount]],
        queues_requests: bool,
        reachable: Callable[[str, Collection[str]], Collection[str]],
        last_arrival: float,
    ) -> None:
        self.violations: list[str] = []
        self.checks = 0
        self.unserved: set[str] = set()
        self._router = router
        self._live = list(engine_names)
        self._counts = counts
        self._queues_requests = queues_requests
        self._reachable = reachable
        self._last_arrival = last_arrival
        self._simulation: SimulationContext | None = None
        self._in_service: dict[str, list[list[float]]] = {name: [[0.0, float("inf")]] for name in engine_names}
        self._first_tokens: set[str] = set()
        self._ends: set[str] = set()

    # --- what passes -----------------------------------------------------------------------------------------------------

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation
        self._router.start(simulation)
        simulation.schedule(CHECK_SECONDS, self._check)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        inflight = self._inflight_request(request.id)
        if inflight.is_ended or inflight.first_token_at is not None:
            self._report(now, f"{request.id} arrives again after its first token")
        chosen, reason = self._router.route(request, now)
        reachable = self._reachable(request.id, self._live)
        if chosen is None:
            self.unserved.add(request.id)
            if reachable:
                self._report(now, f"{request.id} gets no engine ({reason}) although {len(reachable)} are in service")
        elif chosen != QUEUED and chosen not in reachable:
            self._report(now, f"{request.id} goes to {chosen}, which is not in service or not reachable")
        return chosen, reason

    def on_rejected(self, request: str, now: float) -> None:
        self._report(now, f"{request} is rejected by {self._inflight_request(request).instance}")
        self._router.on_rejected(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        if request in self._first_tokens:
            self._report(now, f"{request} has two first tokens")
        self._first_tokens.add(request)
        self._router.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        if sequence.id in self._ends or sequence.id not in self._first_tokens:
            self._report(now, f"{sequence.id} ends twice, or before its first token")
        self._ends.add(sequence.id)
        self._router.on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        self._router.on_kv_events(instance, events, now)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Records when each engine enters and leaves service."""
        for name in live_engines:
            if name not in self._live:
                self._in_service.setdefault(name, []).append([now, float("inf")])
        for name in self._live:
            if name not in live_engines:
                self._in_service[name][-1][1] = now
        self._live = list(live_engines)
        self._router.on_membership(live_engines, now)

    def on_lost(self, request: str, now: float) -> None:
        self._router.on_lost(request, now)

    # --- looks -----------------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """Checks a finished run.

        Engines and counts must be empty, and requests must have gone to engines in service.
        """
        simulation = self._require_simulation()
        for name, core in simulation.engine_cores.items():
            if core.sequences() or core.pool.referenced:
                left = f"{len(core.sequences())} requests and {core.pool.referenced} blocks"
                self._report(self._last_arrival, f"{name} still has {left} after the end")
        for name, *numbers in self._counts():
            if any(abs(number) > -_MIN_COUNT for number in numbers):
                self._report(self._last_arrival, f"{numbers} are still counted at {name} after the end")
        for inflight in simulation.all_requests():
            at = None if inflight.sequence is None else inflight.sequence.arrival
            if at is None or inflight.instance is None:
                continue
            if not any(since <= at <= until for since, until in self._in_service.get(inflight.instance, ())):
                self._report(at, f"{inflight.request.id} was sent to {inflight.instance}, which was not in service")

    def _check(self, now: float) -> None:
        simulation = self._require_simulation()
        self.checks += 1
        if now > self._last_arrival + PATIENCE_SECONDS:
            waiting = [inflight.request.id for inflight in simulation.all_requests() if not inflight.is_ended]
            raise RequestLost(f"{len(waiting)} requests were not answered in time, {waiting[0]} among them")
        self._check_engines(simulation, now)
        self._check_counts(simulation, now)
        simulation.schedule(now + CHECK_SECONDS, self._check)

    def _check_engines(self, simulation: SimulationContext, now: float) -> None:
        by_engine = {
            name: {item.id: item for item in core.sequences()} for name, core in simulation.engine_cores.items()
        }
        known: Counter[str] = Counter()
        for inflight in simulation.all_requests():
            if inflight.is_ended or inflight.instance == QUEUED:
                continue
            present, sequence = by_engine.get(inflight.instance or "", {}), inflight.sequence
            if sequence is not None and present.get(inflight.request.id) is sequence:
                known[inflight.instance or ""] += 1
            elif sequence is None or sequence.state is not SequenceState.FINISHED:  # it ends with the present step
                self._report(now, f"{inflight.request.id} is open and not at {inflight.instance}")
        for name, present in by_engine.items():
            if len(present) != known[name]:
                self._report(now, f"{name} has {len(present)} requests, and {known[name]} are in flight there")

    def _check_counts(self, simulation: SimulationContext, now: float) -> None:
        expected: Counter[tuple[str, bool]] = Counter()
        for open_request in simulation.all_requests():
            if not open_request.is_ended:
                name = "" if self._queues_requests else open_request.instance or ""
                expected[name, True] += 1
                expected[name, False] += open_request.first_token_at is None
        counted: Counter[tuple[str, bool]] = Counter()
        for name, inflight, waiting, prefill, tokens in self._counts():
            if min(inflight, waiting, prefill, tokens) < _MIN_COUNT:
                self._report(now, f"{inflight}, {waiting}, {prefill}, {tokens} are counted at {name}")
            name = "" if self._queues_requests else name
            counted[name, True] += inflight
            counted[name, False] += waiting
        for key in expected.keys() | counted.keys():
            if expected[key] != counted[key]:
                what = "in flight" if key[1] else "without a first token"
                self._report(now, f"{counted[key]} are counted {what} at {key[0] or 'all'}, and {expected[key]} are")

    def _report(self, now: float, violation: str) -> None:
        if len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(f"{now:.3f} s: {violation}")

    def _inflight_request(self, request: str) -> InflightRequest:
        return self._require_simulation().known_request(request)

    def _require_simulation(self) -> SimulationContext:
        assert self._simulation is not None, "nothing happens before the course begins"
        return self._simulation


@dataclass(frozen=True, slots=True)
class NetworkPartition:
    """A change of what a gateway reaches: from ``at`` on, all engines but ``unreachable``."""

    at: float
    gateway: int
    unreachable: frozenset[str]


@dataclass(frozen=True, slots=True)
class GatewayKill:
    """The kill of a gateway at a time; a new gateway takes its place."""

    at: float
    gateway: int


@dataclass(frozen=True, slots=True)
class FaultScenario:
    """A fleet, its traffic and its faults.

    - router: one router (``SINGLE_GATEWAY``), cores behind the seam (``EXTERNAL_ROUTER``), or
      production's gateways with their exchange (``GATEWAY_CLUSTER``).
    - shared: False if gateways and engines share nothing.
    """

    seed: int
    router: str
    preset: str
    gateways: int
    engines: int
    profile: EngineProfile
    shared: bool
    delay_seconds: float
    traffic: tuple[TraceRequest, ...]
    fleet_events: tuple[FleetEvent, ...]
    partitions: tuple[NetworkPartition, ...]
    kills: tuple[GatewayKill, ...]
    network_faults: tuple[NetworkFault, ...]

    @property
    def engine_names(self) -> list[str]:
        return [engine_name(number) for number in range(self.engines)]

    @property
    def all_engine_names(self) -> list[str]:
        return list(dict.fromkeys([*self.engine_names, *[event.engine for event in self.fleet_events]]))

    def describe(self) -> str:
        """Returns a one-line description."""
        faults = [
            *[(event.at, f"{event.kind} {event.engine.split('/')[0]}") for event in self.fleet_events],
            *[
                (partition.at, f"gateway {partition.gateway} without {len(partition.unreachable)}")
                for partition in self.partitions
            ],
            *[(kill.at, f"gateway {kill.gateway} killed") for kill in self.kills],
            *[(fault.begin, "network fault") for fault in self.network_faults],
        ]
        faults_text = ", ".join([f"{at:.1f} {what}" for at, what in sorted(faults)])
        return (
            f"{self.preset} as {self.router}, {self.gateways} gateways, {self.engines} × {self.profile.name}, "
            f"{len(self.traffic)} requests; {faults_text}"
        )


def engine_name(number: int) -> str:
    return f"sim-{number}/0/0"


def draw_router(random_: Random, seed: int) -> tuple[str, str]:
    """Returns the router and preset of a seed.

    The preset is the one whose hash with the seed is lowest, so that a new preset changes only the
    seeds that draw it.
    """
    router = random_.choice(
        [SINGLE_GATEWAY, SINGLE_GATEWAY, EXTERNAL_ROUTER, EXTERNAL_ROUTER, GATEWAY_CLUSTER]
    )  # a cluster takes five times as long
    if router == GATEWAY_CLUSTER or random_.random() < 0.5:
        return router, "dual-hash"
    return router, min(PRESETS, key=lambda name: Random(f"{name} {seed}").random())


def from_seed(seed: int) -> FaultScenario:
    """Returns the scenario of a seed."""
    random_ = Random(f"trouble {seed}")
    router, preset = draw_router(random_, seed)
    gateways = 1 if router == SINGLE_GATEWAY else random_.randint(1, 4)
    engines = random_.randint(2, 6)
    name = random_.choice(_PROFILES)
    names = [engine_name(number) for number in range(engines)]
    script = _fleet_events(random_, names)
    partitions = _partitions(random_, names, gateways)
    return FaultScenario(
        seed=seed,
        router=router,
        preset=preset,
        gateways=gateways,
        engines=engines,
        profile=_profile(random_, name),
        shared=random_.random() < 0.8,
        delay_seconds=random_.choice([0.0, 0.05, 0.5]),
        traffic=_traffic(random_, seed, _ENGINE_RATE[name] * engines * random_.uniform(0.2, 0.6)),
        fleet_events=script,
        partitions=partitions,
        kills=() if router == SINGLE_GATEWAY else _kills(random_, gateways),
        network_faults=_network_faults(random_),
    )


def _traffic(random_: Random, seed: int, rate: float) -> tuple[TraceRequest, ...]:
    count = int(rate * (FAULT_SECONDS + RECOVERY_SECONDS + OBSERVED_SECONDS)) + 2
    requests = at_rate(FAMILIES[random_.choice(list(FAMILIES))](count, seed=seed), rate)
    if random_.random() < 0.3:
        herd = _random_time(random_)
        requests = [
            replace(request, arrival=herd + random_.random())
            if request.arrival < FAULT_SECONDS and random_.random() < 0.3
            else request
            for request in requests
        ]
        requests.sort(key=lambda request: request.arrival)
    return tuple(requests)


def _profile(random_: Random, name: str) -> EngineProfile:
    """Returns a profile, sometimes with half the memory or with few sequences."""
    base = builtin_profile(name)
    return replace(
        base,
        kv_tokens=base.kv_tokens // random_.choice([1, 1, 2]),
        max_sequences=random_.choice([base.max_sequences, base.max_sequences, 32]),
    )


def _random_time(random_: Random) -> float:
    return random_.uniform(2.0, FAULT_SECONDS - 1.0)


def _fleet_events(random_: Random, names: Sequence[str]) -> tuple[FleetEvent, ...]:
    events: list[FleetEvent] = []
    if random_.random() < 0.05:  # all at once
        at = _random_time(random_)
        events += [FleetEvent(at, FleetEventKind.LOSE, name) for name in names]
    lost: list[str] = list(names) if events else []
    for name in names:
        if name not in lost and random_.random() < 0.35:
            lost.append(name)
            events.append(
                FleetEvent(
                    _random_time(random_),
                    random_.choice([FleetEventKind.LOSE, FleetEventKind.LOSE, FleetEventKind.DRAIN]),
                    name,
                )
            )
        elif random_.random() < 0.3:
            at = _random_time(random_)
            events.append(FleetEvent(at, FleetEventKind.SLOW, name, random_.choice([3.0, 10.0, 50.0])))
            events.append(FleetEvent(random_.uniform(at, FAULT_SECONDS), FleetEventKind.SLOW, name, 1.0))
    begun = {event.engine: event for event in events}
    for number, name in enumerate(lost):
        loss = begun[name]
        replacement = (
            name if loss.kind is FleetEventKind.LOSE and random_.random() < 0.6 else engine_name(len(names) + number)
        )
        at = loss.at + random_.choice([0.0, random_.uniform(0.0, 1.0), random_.uniform(0.0, 20.0)])
        events.append(FleetEvent(min(at, FAULT_SECONDS), FleetEventKind.JOIN, replacement))
    return tuple(sorted(events, key=lambda event: event.at))


def _partitions(random_: Random, names: Sequence[str], gateways: int) -> tuple[NetworkPartition, ...]:
    """Returns partitions of some gateways, whose links are cut and mended in different orders."""
    partitions: list[NetworkPartition] = []
    for gateway in range(gateways):
        if random_.random() >= 0.25:
            continue
        cut = random_.sample(names, random_.randint(1, len(names)))
        moments = sorted([_random_time(random_) for _ in range(2 * len(cut))])
        cut_names: set[str] = set()
        for at, name in zip(moments, [*cut, *random_.sample(cut, len(cut))], strict=True):
            cut_names ^= {name}
            partitions.append(NetworkPartition(at, gateway, frozenset(cut_names)))
    return tuple(partitions)


def _kills(random_: Random, gateways: int) -> tuple[GatewayKill, ...]:
    return tuple([GatewayKill(_random_time(random_), gateway) for gateway in range(gateways) if random_.random() < 0.3])


def _network_faults(random_: Random) -> tuple[NetworkFault, ...]:
    faults = []
    for _ in range(random_.choice([0, 1, 1, 2])):
        begin = _random_time(random_)
        end = random_.uniform(begin, FAULT_SECONDS)
        if random_.random() < 0.3:
            faults.append(NetworkFault(begin, end, drop=1.0))
        else:
            faults.append(
                NetworkFault(
                    begin, end, random_.uniform(0.0, 0.3), random_.uniform(0.0, 0.5), random_.uniform(0.0, 5.0)
                )
            )
    return tuple(faults)


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of one fault run: its violations, and counts of requests and checks."""

    seed: int
    violations: tuple[str, ...]
    requests: int
    cut: int
    retried: int
    unserved: int
    checks: int
    attainment_after: float

    def describe(self) -> str:
        lines = [f"seed {self.seed}: {len(self.violations)} findings", *[f"  {what}" for what in self.violations]]
        return "\n".join([*lines, f"  {REPLAY_COMMAND.format(self.seed)}"])


def run_seed(seed: int) -> RunReport:
    return run_scenario(from_seed(seed))


def run_scenario(scenario: FaultScenario, core: Callable[..., Any] | None = None) -> RunReport:
    """Runs a scenario under the invariant checker and returns the report.

    An error that ends the run is a violation in the report, which then has no counts of requests.

    core: replaces the production core behind the seam, to test the checker.
    """
    simulation, checker = _prepare(scenario, core)
    try:
        results = simulation.run(scenario.traffic)
    except (RequestLost, FairleadError, LookupError, AssertionError, ArithmeticError, TypeError, ValueError) as error:
        return RunReport(
            scenario.seed, (*checker.violations, f"{type(error).__name__}: {error}"), 0, 0, 0, 0, checker.checks, 0.0
        )
    checker.check_end()
    recovered = [result for result in results if result.arrival >= FAULT_SECONDS + RECOVERY_SECONDS]
    attainment = share_within(recovered, TARGET_SECONDS)
    broken = [*checker.violations, *_failed_requests(scenario, results, checker.unserved)]
    if scenario.preset == "dual-hash" and attainment < RECOVERED_ATTAINMENT:
        broken.append(f"{attainment:.3f} of {len(recovered)} first tokens in time after recovery")
    return RunReport(
        seed=scenario.seed,
        violations=tuple(broken),
        requests=len(results),
        cut=sum([result.error == ENGINE_LOST for result in results]),
        retried=sum([result.retries > 0 for result in results]),
        unserved=len(checker.unserved),
        checks=checker.checks,
        attainment_after=attainment,
    )


def _prepare(scenario: FaultScenario, core: Callable[..., Any] | None) -> tuple[FleetSimulation, InvariantChecker]:
    """Returns the simulation of a scenario, with its faults scheduled, and its checker."""
    prompts = (trial := _trial(scenario, core)).prompt_cache()
    router = _gateways(scenario) if scenario.router == GATEWAY_CLUSTER else trial.router(prompts)
    checker = InvariantChecker(
        router,
        scenario.engine_names,
        counts=partial(_endpoint_counts, router),
        queues_requests=scenario.preset in QUEUEING_PRESETS,
        reachable=partial(_reachable_engines, router),
        last_arrival=scenario.traffic[-1].arrival,
    )
    simulation = FleetSimulation(checker, _fleet(scenario, scenario.engine_names), prompts=prompts)
    schedule_events(scenario.fleet_events, simulation)
    for partition in scenario.partitions:
        simulation.schedule(partition.at, partial(_partition_gateway, router, partition.gateway, partition.unreachable))
    for kill in scenario.kills:
        simulation.schedule(kill.at, partial(_kill_gateway, router, kill.gateway, trial))
    return simulation, checker


def _trial(scenario: FaultScenario, core: Callable[..., Any] | None) -> Trial:
    seam = None
    if scenario.router == EXTERNAL_ROUTER:
        sharing = SharingDelays(scenario.delay_seconds, scenario.delay_seconds) if scenario.shared else None
        ours = core or (lambda info, preset, seed: router(info, preset=preset, seed=seed))
        seam = SeamKind(ours, scenario.gateways, sharing, PacketSimulator(scenario.network_faults, scenario.seed))
    return Trial(scenario.preset, profile=scenario.profile, engines=scenario.engines, seed=scenario.seed, seam=seam)


def _fleet(scenario: FaultScenario, names: Sequence[str]) -> FleetOptions:
    return FleetOptions(names, scenario.profile, TRACE_BLOCK_TOKENS, publishes_kv_events=scenario.shared)


def _gateways(scenario: FaultScenario) -> GatewayCluster:
    shared, late = scenario.shared, max(0.01, scenario.delay_seconds)
    sharing = SharingOptions(sent=shared, loads=shared, index=shared, publish_seconds=late, index_seconds=late)
    cluster = GatewayCluster(
        _fleet(scenario, scenario.all_engine_names),
        RoutingOptions(Trial().objectives, f"secret {scenario.seed}".encode(), scenario.seed),
        ClusterOptions(scenario.gateways, sharing),
        network=PacketSimulator(scenario.network_faults, scenario.seed),
    )
    cluster.live = scenario.engine_names
    cluster.on_membership(scenario.engine_names, 0.0)
    return cluster


def _partition_gateway(router: FaultRouter, gateway: int, without: frozenset[str], now: float) -> None:
    if isinstance(router, SingleGateway):
        router.set_unreachable(without, now)
    else:
        router.set_unreachable(gateway, without, now)


def _kill_gateway(router: FaultRouter, gateway: int, trial: Trial, now: float) -> None:
    if isinstance(router, GatewayCluster):
        router.kill_gateway(gateway, now)
    elif isinstance(router, ExternalRouter):
        assert trial.seam is not None
        router.kill_gateway(gateway, trial.core(trial.seam), now)


def _endpoint_counts(router: FaultRouter) -> Iterable[EndpointCount]:
    if isinstance(router, ExternalRouter):
        for gateway in router.gateways:
            for name, (inflight, waiting, prefill, tokens) in gateway.counters.items():
                yield name, round(inflight), round(waiting), prefill, tokens
    else:
        for loads in router.loads() if isinstance(router, GatewayCluster) else [router.loads()]:
            for name, load in loads.items():
                yield (name, *(load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens))


def _reachable_engines(router: FaultRouter, request: str, live: Collection[str]) -> Collection[str]:
    unreachable = router.unreachable_for(request)
    return [name for name in live if name not in unreachable]


def _failed_requests(scenario: FaultScenario, results: Sequence[RequestResult], unserved: Collection[str]) -> list[str]:
    """Returns a line for each request whose outcome the scenario does not permit, at most ten."""
    problems = []
    for request, result in zip(scenario.traffic, results, strict=True):
        if result.error is not None:
            if result.arrival > FAULT_SECONDS:
                problems.append(f"{result.id} fails after recovery: {result.error}")
            elif result.error != ENGINE_LOST and result.id not in unserved:
                problems.append(f"{result.id} fails: {result.error}")
            continue
        times = result.token_times
        if result.output_tokens != request.output_tokens or len(times) != request.output_tokens:
            problems.append(f"{result.id} has {len(times)} tokens of {request.output_tokens}")
        elif list(times) != sorted(times) or times[0] < result.arrival:
            problems.append(f"{result.id} has tokens out of order")
    return problems[:10]
