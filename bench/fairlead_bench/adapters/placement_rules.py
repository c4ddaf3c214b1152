"""The rules of placement that are compared.

- ours: the gateway's functions, with rates and load times that are learned in the run.
- random: any engine; the adapter that was used least recently goes.
- AIBrix: a controller gives each adapter the engine with the fewest adapters, once. Its requests go
  there. Source: ``pkg/controller/modeladapter/scheduling`` (leastAdapters).
- S-LoRA: any engine can load any adapter on demand, and evicts the least recently used. Requests
  go to the engine with the fewest. Source: arXiv 2311.03285, behind a balancer.
"""

import random
from collections.abc import Sequence

from fairlead_bench.adapters.adapter_fleet import AdapterRequest, SlottedEngine
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
