"""Placement of LoRA adapters: the gateway's rule and published ones, on a virtual clock.

    python -m fairlead_bench adapters [--out out/bench/adapters.json] [--seeds 11,12,13]

16 engines with 8 slots serve 1,000 adapters with Zipf popularity (exponent 1). A prompt takes
0.1 s, an answer holds the slot for 2 s more, and a load takes 0.4 s in the median. Load times are
drawn, since none are recorded. The SLO is a first token within 1 s. The first minute does not
count.

The seeds differ from those of the development.

Engines with slots for LoRA adapters, on a virtual clock.

An engine computes one prompt after another, and answers in parallel. Meanwhile it loads one adapter
at a time. A request waits for its adapter, then for the prompts before it. It keeps the adapter's
slot until its answer has ended.

The rules of placement that are compared.

- ours: the gateway's functions, with rates and load times that are learned in the run.
- random: any engine; the adapter that was used least recently goes.
- AIBrix: a controller gives each adapter the engine with the fewest adapters, once. Its requests go
  there. Source: ``pkg/controller/modeladapter/scheduling`` (leastAdapters).
- S-LoRA: any engine can load any adapter on demand, and evicts the least recently used. Requests
  go to the engine with the fewest. Source: arXiv 2311.03285, behind a balancer.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from typing import Protocol

from fairlead_bench.results import Goals, ResultRow, load_goals, parse_options, write_results
from fairlead_gateway.adapters.placement import (
    AdapterCandidate,
    AdapterDemand,
    ResidentValue,
    choose_eviction,
    home_count,
    place_adapter,
    rank_homes,
    slot_seconds,
)


@dataclass(frozen=True, slots=True)
class AdapterTraffic:
    """Poisson arrivals with Zipf popularity; times in seconds.

    load_seconds: median of the adapters' load times, which are lognormal.
    """

    adapters: int = 1_000
    zipf: float = 1.0
    rate: float = 60.0
    seconds: float = 600.0
    prefill_seconds: float = 0.1
    decode_seconds: float = 2.0
    load_seconds: float = 0.4
    load_spread: float = 0.6


@dataclass(slots=True)
class AdapterRequest:
    """A request. ``first_at``: when its first token came; None until then."""

    adapter: int
    at: float
    prefill_seconds: float
    decode_seconds: float
    engine: int = -1
    first_at: float | None = None


@dataclass(slots=True)
class Slot:
    """A loaded adapter."""

    inflight: int = 0
    used_at: float = 0.0


@dataclass(slots=True)
class SlottedEngine:
    """One engine.

    waiting: requests by the adapter that they wait for; the first adapter is loaded next.
    busy_until: when its prompts so far are computed.
    """

    slots: dict[int, Slot] = field(default_factory=dict)
    waiting: dict[int, deque[AdapterRequest]] = field(default_factory=dict)
    loading: int | None = None
    busy_until: float = 0.0
    inflight: int = 0


class PlacementRule(Protocol):
    """A rule that is compared."""

    def place(self, request: AdapterRequest, engines: Sequence[SlottedEngine], now: float) -> int:
        """Returns the number of the engine that gets the request."""

    def evict(self, engine: SlottedEngine, now: float) -> int | None:
        """Returns the adapter to unload, which has no requests; None if there is none."""


def draw_requests(traffic: AdapterTraffic, seed: int) -> tuple[list[AdapterRequest], list[float]]:
    """Returns the requests of a run, and the load time of each adapter."""
    draw = random.Random(seed)
    loads = [traffic.load_seconds * draw.lognormvariate(0.0, traffic.load_spread) for _ in range(traffic.adapters)]
    weights = list(accumulate(1.0 / (rank + 1) ** traffic.zipf for rank in range(traffic.adapters)))
    names = list(range(traffic.adapters))
    draw.shuffle(names)
    requests, at = [], draw.expovariate(traffic.rate)
    while at < traffic.seconds:
        (adapter,) = draw.choices(names, cum_weights=weights)
        prefill = traffic.prefill_seconds * draw.uniform(0.5, 1.5)
        requests.append(AdapterRequest(adapter, at, prefill, draw.expovariate(1.0 / traffic.decode_seconds)))
        at += draw.expovariate(traffic.rate)
    return requests, loads


class AdapterFleet:
    """A fleet of engines, and the rule that places requests."""

    def __init__(self, engines: int, slots: int, loads: Sequence[float], rule: PlacementRule) -> None:
        self.engines = [SlottedEngine() for _ in range(engines)]
        self.loads_done = 0
        self._slots = slots
        self._loads = loads
        self._rule = rule
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = count()

    def run(self, requests: Sequence[AdapterRequest]) -> None:
        """Serves all requests; each has its first token then."""
        for request in requests:
            self._run_until(request.at)
            self._arrive(request, request.at)
        self._run_until(float("inf"))

    def _run_until(self, at: float) -> None:
        while self._events and self._events[0][0] <= at:
            now, _, happen = heapq.heappop(self._events)
            happen(now)

    def _schedule(self, at: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._events, (at, next(self._number), happen))

    def _arrive(self, request: AdapterRequest, now: float) -> None:
        request.engine = self._rule.place(request, self.engines, now)
        engine = self.engines[request.engine]
        engine.inflight += 1
        if request.adapter in engine.slots:
            self._start(engine, request, now)
        else:
            engine.waiting.setdefault(request.adapter, deque()).append(request)
            self._load_next(engine, now)

    def _start(self, engine: SlottedEngine, request: AdapterRequest, now: float) -> None:
        slot = engine.slots[request.adapter]
        slot.inflight, slot.used_at = slot.inflight + 1, now
        engine.busy_until = max(engine.busy_until, now) + request.prefill_seconds
        request.first_at = engine.busy_until

        def end(at: float) -> None:
            slot.inflight -= 1
            engine.inflight -= 1
            if not slot.inflight:
                self._load_next(engine, at)

        self._schedule(engine.busy_until + request.decode_seconds, end)

    def _load_next(self, engine: SlottedEngine, now: float) -> None:
        if engine.loading is not None or not engine.waiting:
            return
        if len(engine.slots) >= self._slots:
            victim = self._rule.evict(engine, now)
            if victim is None:
                return
            del engine.slots[victim]
        adapter = engine.loading = next(iter(engine.waiting))

        def loaded(at: float) -> None:
            engine.loading = None
            engine.slots[adapter] = Slot(used_at=at)
            self.loads_done += 1
            for request in engine.waiting.pop(adapter):
                self._start(engine, request, at)
            self._load_next(engine, at)

        self._schedule(now + self._loads[adapter], loaded)


_SECRET = b"bench"


class LeastRecentlyUsed:
    """Evicts the idle adapter that was used least recently."""

    def evict(self, engine: SlottedEngine, now: float) -> int | None:
        """Returns the adapter to unload; None if all have requests."""
        idle = [(slot.used_at, adapter) for adapter, slot in engine.slots.items() if not slot.inflight]
        return min(idle)[1] if idle else None


class RandomPlacement(LeastRecentlyUsed):
    """Any engine."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def place(self, request: AdapterRequest, engines: Sequence[SlottedEngine], now: float) -> int:
        """Returns the number of an engine."""
        return self._draw.randrange(len(engines))


class FewestAdapters(LeastRecentlyUsed):
    """AIBrix's rule: each adapter has one engine, the one with the fewest adapters at that time."""

    def __init__(self) -> None:
        self._engine_of: dict[int, int] = {}
        self._counts: dict[int, int] = {}

    def place(self, request: AdapterRequest, engines: Sequence[SlottedEngine], now: float) -> int:
        """Returns the adapter's engine."""
        engine = self._engine_of.get(request.adapter)
        if engine is None:
            engine = min(range(len(engines)), key=lambda number: (self._counts.get(number, 0), number))
            self._engine_of[request.adapter] = engine
            self._counts[engine] = self._counts.get(engine, 0) + 1
        return engine


class LeastRequests(LeastRecentlyUsed):
    """S-LoRA's engines behind a balancer: the engine with the fewest requests."""

    def place(self, request: AdapterRequest, engines: Sequence[SlottedEngine], now: float) -> int:
        """Returns the number of the engine."""
        return min(range(len(engines)), key=lambda number: (engines[number].inflight, number))


class GatewayPlacement:
    """The gateway's rule.

    loads: by adapter, of which the rule learns those that were loaded.
    """

    def __init__(self, engines: int, slots: int, loads: Sequence[float]) -> None:
        self._weights = {f"e-{number}": 1.0 for number in range(engines)}
        self._numbers = {name: number for number, name in enumerate(self._weights)}
        self._slots = slots
        self._loads = loads
        self._demand = AdapterDemand()
        self._homes: dict[int, tuple[str, ...]] = {}

    def place(self, request: AdapterRequest, engines: Sequence[SlottedEngine], now: float) -> int:
        """Returns the number of the engine."""
        adapter, demand = request.adapter, self._demand
        name = f"{adapter}"
        demand.on_request(name, now)
        order = self._homes.get(adapter)
        if order is None:
            order = self._homes[adapter] = rank_homes(f"default/tiny\0{name}", self._weights, _SECRET)
        homes = home_count(demand.share(name, now), len(order))
        candidates: list[AdapterCandidate] = []
        for instance_id in order:
            engine = engines[self._numbers[instance_id]]
            is_warm = adapter in engine.slots
            if len(candidates) >= homes and not is_warm:
                continue
            backlog = max(0.0, engine.busy_until - now)
            slot = 0.0 if is_warm else self._slot_seconds(engine, adapter, now)
            candidates.append(AdapterCandidate(instance_id, is_warm, backlog, slot))
        backlogs = {candidate.instance_id: candidate.backlog_seconds for candidate in candidates}
        placement = place_adapter(candidates, demand.load_seconds(name))
        return self._numbers[min(placement.instances, key=backlogs.__getitem__)]

    def evict(self, engine: SlottedEngine, now: float) -> int | None:
        """Returns the adapter to unload; None if all have requests."""
        eviction = choose_eviction(self._values(engine, now))
        if eviction.name is None or eviction.must_wait:
            return None
        loading = next(iter(engine.waiting))
        self._demand.on_loaded(f"{loading}", self._loads[loading])
        return int(eviction.name)

    def _slot_seconds(self, engine: SlottedEngine, adapter: int, now: float) -> float:
        if adapter in engine.waiting:
            return 0.0
        queued = [self._demand.load_seconds(f"{waiting}") for waiting in engine.waiting]
        return slot_seconds(self._values(engine, now), queued, self._slots)

    def _values(self, engine: SlottedEngine, now: float) -> list[ResidentValue]:
        demand = self._demand
        return [
            ResidentValue(
                f"{adapter}", demand.rate(f"{adapter}", now), demand.load_seconds(f"{adapter}"), slot.inflight > 0
            )
            for adapter, slot in engine.slots.items()
        ]


ENGINES, SLOTS = 16, 8
SLO_SECONDS = 1.0
WARM_UP_SECONDS = 60.0
RATES = (30.0, 45.0)
RULES: Mapping[str, Callable[[int, Sequence[float]], PlacementRule]] = {
    "ours": lambda seed, loads: GatewayPlacement(ENGINES, SLOTS, loads),
    "random": lambda seed, loads: RandomPlacement(seed),
    "AIBrix": lambda seed, loads: FewestAdapters(),
    "S-LoRA": lambda seed, loads: LeastRequests(),
}


def attainment(rule: str, traffic: AdapterTraffic, seed: int) -> tuple[float, float]:
    """Returns the share of requests within the SLO, and the loads per request."""
    requests, loads = draw_requests(traffic, seed)
    fleet = AdapterFleet(ENGINES, SLOTS, loads, RULES[rule](seed, loads))
    fleet.run(requests)
    counted = [request for request in requests if request.at >= WARM_UP_SECONDS]
    within = sum(request.first_at is not None and request.first_at - request.at <= SLO_SECONDS for request in counted)
    return within / len(counted), fleet.loads_done / len(requests)


def rows(wanted: Goals, seeds: Sequence[int], seconds: float) -> Iterator[ResultRow]:
    """Yields a row for each rule and rate, and for what the gateway's rule gains."""
    for rate in RATES:
        traffic = AdapterTraffic(rate=rate, seconds=seconds)
        found = {rule: [attainment(rule, traffic, seed) for seed in seeds] for rule in RULES}
        means = {rule: sum(share for share, _ in runs) / len(runs) for rule, runs in found.items()}
        at = f"at {rate:g} requests/s"
        for rule, runs in found.items():
            yield wanted.value(f"within the SLO {at}, {rule}", "share", means[rule])
            loads = sum(loads for _, loads in runs) / len(runs)
            yield wanted.value(f"loads per request {at}, {rule}", "loads", loads)
        for rule in tuple(RULES)[1:]:
            yield wanted.ratio(f"within the SLO {at}: ours ÷ {rule}", "share", means["ours"], rule, means[rule])


def main(arguments: list[str]) -> int:
    """Measures, writes and prints. A goal that does not hold stays in the table."""
    given = parse_options("adapters", "Placement of LoRA adapters.", arguments, seconds=600.0, seeds=[11, 12, 13])
    found = list(rows(load_goals("adapters"), given.seeds, given.seconds))
    write_results("adapters", found, seed=given.seeds[0], file=given.out)
    return 0
