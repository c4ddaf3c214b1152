"""The fault scenarios of ``make nightly``, drawn from seeds (``docs/reference/faults.md``).

A seed draws a fleet, its router, its traffic, and the faults of the first ``FAULT_SECONDS``. Then
the faults end: lost engines are replaced, slow ones recover, and every gateway reaches every
engine. Traffic continues. After ``RECOVERY_SECONDS`` the fleet must serve as if there had been no
fault.

    | fault | here |
    |---|---|
    | engines killed, also all at once, and restarted under their names | ``LOSE``, ``JOIN`` |
    | engines drained, others added | ``DRAIN``, ``JOIN`` |
    | engines 3, 10 or 50 times slower for a while | ``SLOW`` by 3, 10 or 50 |
    | a gateway does not reach some engines; links are cut and mended one by one | ``partitions`` |
    | 30 % of the requests of ``FAULT_SECONDS`` arrive within one second | ``traffic`` |
    | a gateway killed during its answers | ``kills`` |
    | messages lost, duplicated, late or out of order; Redis down | ``network_faults`` |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead_gateway.routing import PRESETS
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind
from fairlead_sim.fleet.packet_simulator import NetworkFault
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TraceRequest, at_rate

FAULT_SECONDS: Final = 45.0
RECOVERY_SECONDS: Final = 60.0
OBSERVED_SECONDS: Final = 20.0
_PROFILES: Final = ("h100-llama8b", "a100-qwen7b")
_ENGINE_RATE: Final = {"h100-llama8b": 2.4, "a100-qwen7b": 1.0}
"""Requests per second that one engine carries without cache hits."""
SINGLE_GATEWAY: Final = "one"
EXTERNAL_ROUTER: Final = "seam"
GATEWAY_CLUSTER: Final = "gateways"


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
        """Returns the names of the engines at the start."""
        return [engine_name(number) for number in range(self.engines)]

    @property
    def all_engine_names(self) -> list[str]:
        """Returns the names of all engines, also of those that join later."""
        return list(dict.fromkeys([*self.engine_names, *[event.engine for event in self.fleet_events]]))

    def describe(self) -> str:
        """Returns a one-line description."""
        faults = [
            *[(one.at, f"{one.kind} {one.engine.split('/')[0]}") for one in self.fleet_events],
            *[(one.at, f"gateway {one.gateway} without {len(one.unreachable)}") for one in self.partitions],
            *[(one.at, f"gateway {one.gateway} killed") for one in self.kills],
            *[(one.begin, "network fault") for one in self.network_faults],
        ]
        faults_text = ", ".join([f"{at:.1f} {what}" for at, what in sorted(faults)])
        return (
            f"{self.preset} as {self.router}, {self.gateways} gateways, {self.engines} × {self.profile.name}, "
            f"{len(self.traffic)} requests; {faults_text}"
        )


def engine_name(number: int) -> str:
    return f"sim-{number}/0/0"


def from_seed(seed: int) -> FaultScenario:
    """Returns the scenario of a seed."""
    random_ = Random(f"trouble {seed}")
    router = random_.choice(
        [SINGLE_GATEWAY, SINGLE_GATEWAY, EXTERNAL_ROUTER, EXTERNAL_ROUTER, GATEWAY_CLUSTER]
    )  # a cluster takes five times as long
    rule = "dual-hash" if router == GATEWAY_CLUSTER or random_.random() < 0.5 else random_.choice(list(PRESETS))
    gateways = 1 if router == SINGLE_GATEWAY else random_.randint(1, 4)
    engines = random_.randint(2, 6)
    name = random_.choice(_PROFILES)
    names = [engine_name(number) for number in range(engines)]
    script = _fleet_events(random_, names)
    partitions = _partitions(random_, names, gateways)
    return FaultScenario(
        seed=seed,
        router=router,
        preset=rule,
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
