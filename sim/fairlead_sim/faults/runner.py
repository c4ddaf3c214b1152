"""The runner of fault scenarios: safety is checked all the time, liveness after the faults."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from fairlead.errors import FairleadError
from fairlead_gateway.routing import QUEUEING_PRESETS
from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_sim.adapters.external_router import ExternalRouter, SharingDelays
from fairlead_sim.experiments.trial import SeamKind, Trial
from fairlead_sim.faults.invariants import EndpointCount, InvariantChecker, RequestLost
from fairlead_sim.faults.scenarios import (
    EXTERNAL_ROUTER,
    FAULT_SECONDS,
    GATEWAY_CLUSTER,
    RECOVERY_SECONDS,
    FaultScenario,
    from_seed,
)
from fairlead_sim.fleet.fleet_events import schedule_events
from fairlead_sim.fleet.fleet_options import FleetOptions
from fairlead_sim.fleet.packet_simulator import PacketSimulator
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import TARGET_SECONDS, share_within
from fairlead_sim.fleet.router_front import RouterFront
from fairlead_sim.fleet.simulation import ENGINE_LOST, FleetSimulation
from fairlead_sim.gateways.cluster_options import ClusterOptions, SharingOptions
from fairlead_sim.gateways.gateway_cluster import GatewayCluster
from fairlead_sim.gateways.single_gateway import RoutingOptions, SingleGateway
from fairlead_sim.seams import router
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS

REPLAY_COMMAND: Final = ".venv/bin/python scripts/nightly_fleet.py --replay {}"
FaultRouter: TypeAlias = SingleGateway | ExternalRouter | GatewayCluster
"""The routers of fault runs."""
RECOVERED_ATTAINMENT: Final = 0.9
"""The least share of first tokens within ``TARGET_SECONDS`` after recovery."""


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
        """Returns the violations and the command that runs the seed again."""
        lines = [f"seed {self.seed}: {len(self.violations)} findings", *[f"  {what}" for what in self.violations]]
        return "\n".join([*lines, f"  {REPLAY_COMMAND.format(self.seed)}"])


def run_seed(seed: int) -> RunReport:
    """Runs the scenario of a seed and returns the report."""
    return run_scenario(from_seed(seed))


def run_scenario(scenario: FaultScenario, core: Callable[..., Any] | None = None) -> RunReport:
    """Runs a scenario under the invariant checker and returns the report.

    An error that ends the run is a violation in the report, which then has no counts of requests.

    core: replaces the production core behind the seam, to test the checker.
    """
    checkers: list[InvariantChecker] = []

    def observe(router: FaultRouter) -> InvariantChecker:
        checkers.append(
            InvariantChecker(
                router,
                scenario.engine_names,
                counts=partial(_endpoint_counts, router),
                queues_requests=scenario.preset in QUEUEING_PRESETS,
                reachable=partial(_reachable_engines, router),
                last_arrival=scenario.traffic[-1].arrival,
            )
        )
        return checkers[0]

    simulation = prepare_simulation(scenario, observe, core)
    (checker,) = checkers
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


def prepare_simulation(
    scenario: FaultScenario, observe: Callable[[FaultRouter], RouterFront], core: Callable[..., Any] | None = None
) -> FleetSimulation:
    """Returns the simulation of a scenario, with its faults scheduled.

    observe: returns what stands between the simulation and its router.
    """
    prompts = (trial := _trial(scenario, core)).prompt_cache()
    router = _gateways(scenario) if scenario.router == GATEWAY_CLUSTER else trial.router(prompts)
    simulation = FleetSimulation(observe(router), _fleet(scenario, scenario.engine_names), prompts=prompts)
    schedule_events(scenario.fleet_events, simulation)
    _schedule_gateway_faults(scenario, router, trial, simulation)
    return simulation


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
    sharing = SharingOptions(
        sent=shared, loads=shared, hot=shared, index=shared, publish_seconds=late, index_seconds=late
    )
    cluster = GatewayCluster(
        _fleet(scenario, scenario.all_engine_names),
        RoutingOptions(Trial().objectives, f"secret {scenario.seed}".encode(), scenario.seed),
        ClusterOptions(scenario.gateways, sharing),
        network=PacketSimulator(scenario.network_faults, scenario.seed),
    )
    cluster.live = scenario.engine_names
    cluster.on_membership(scenario.engine_names, 0.0)
    return cluster


def _schedule_gateway_faults(
    scenario: FaultScenario,
    router: FaultRouter,
    trial: Trial,
    simulation: FleetSimulation,
) -> None:
    for partition in scenario.partitions:
        simulation.schedule(partition.at, partial(_partition_gateway, router, partition.gateway, partition.unreachable))
    for kill in scenario.kills:
        simulation.schedule(kill.at, partial(_kill_gateway, router, kill.gateway, trial))


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
                yield (name, *_numbers(load))


def _numbers(load: InstanceLoad) -> tuple[int, int, float, float]:
    return load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens


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
