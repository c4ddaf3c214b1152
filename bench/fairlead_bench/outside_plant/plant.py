"""The plant: traffic through a gateway to engines, under a controller or a schedule."""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from fairlead_bench.outside_plant.core_seam import Controller, GatewayCounters, pool_observation
from fairlead_bench.outside_plant.engine import Engine, Role
from fairlead_bench.outside_plant.gateway_rules import GATEWAY_RULES, least_reserved
from fairlead_bench.outside_plant.replica_pool import Replica, ReplicaPool
from fairlead_bench.outside_plant.scenario import (
    GAP_EDGES,
    INTERVAL_SECONDS,
    TTFT_EDGES,
    Crash,
    PoolSetup,
    Scenario,
    Slowdown,
)

_PATIENCE_CHECK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class ScheduledSize:
    """The ready replicas of a pool from a time on, ordered ahead."""

    time: float
    pool: str
    replicas: int


@dataclass(frozen=True, slots=True)
class PlantOptions:
    """Choices of the plant that the scenario leaves open.

    gateway_rule: a name in GATEWAY_RULES
    is_per_gap: the histograms hold each single gap; else the mean gap of each answer
    """

    gateway_rule: str = "work"
    is_per_gap: bool = False


@dataclass(slots=True)
class PlantRecord:
    """Costs and counts of a run; its requests are in the scenario.

    desired: after each look, by pool
    """

    replica_hours: float = 0.0
    changes: int = 0
    lost: int = 0
    abandoned: int = 0
    max_ready: int = 0
    desired: list[tuple[int, ...]] = field(default_factory=list)


class Plant:
    """One run of a scenario. The results are in the scenario's requests and in ``record``."""

    def __init__(self, scenario: Scenario, options: PlantOptions) -> None:
        self._scenario, self._log = scenario, scenario.requests
        self._log.reset()
        self._rule = GATEWAY_RULES[options.gateway_rule]
        self._random = random.Random(f"gateway/{scenario.family}/{scenario.seed}")
        self._heap: list[tuple[float, int, Callable[..., None], Any, int]] = []
        self._sequence = 0
        self._owners: dict[Engine, tuple[ReplicaPool, Replica]] = {}
        self._places: list[Engine | None] = [None] * len(self._log)
        self._held: deque[int] = deque()
        self._handed_over: deque[int] = deque()
        self._gateway = GatewayCounters()
        self._deadline_pointer = 0
        self._controller: Controller | None = None
        self.record = PlantRecord()
        edges = (TTFT_EDGES, GAP_EDGES)
        self.pools = {
            setup.name: ReplicaPool(setup, scenario.seed, self._engine_factory(setup, edges, options), scenario.seconds)
            for setup in scenario.pools
        }
        self._entry = next(pool for pool in self.pools.values() if pool.setup.role is not Role.DECODE)
        self._decode = next((pool for pool in self.pools.values() if pool.setup.role is Role.DECODE), None)
        for pool in self.pools.values():
            for replica in pool.replicas:
                self._owners[replica.engine] = (pool, replica)

    def run(self, controller: Controller | None, schedule: Iterable[ScheduledSize] = ()) -> PlantRecord:
        """Runs until every request has ended; costs count to the end of the scenario."""
        self._controller = controller
        for size in schedule:
            self._push(size.time, self._on_schedule, size)
        for crash in self._scenario.crashes:
            self._push(crash.time, self._on_crash, crash)
        for slowdown in self._scenario.slowdowns:
            self._push(slowdown.start, self._on_slowdown, slowdown)
        if controller is not None:
            self._push(INTERVAL_SECONDS, self._on_look, None)
        self._push(_PATIENCE_CHECK_SECONDS, self._on_patience_check, None)
        self._run_events()
        seconds = sum(pool.paid_seconds() for pool in self.pools.values())
        self.record.replica_hours = seconds / 3600.0
        return self.record

    def _run_events(self) -> None:
        heap, arrivals, prompts, gateway = self._heap, self._log.arrivals, self._log.prompts, self._gateway
        next_request, count = 0, len(self._log)
        on_phase_end = self._on_phase_end
        while heap or next_request < count:
            if next_request < count and (not heap or arrivals[next_request] <= heap[0][0]):
                now = arrivals[next_request]
                gateway.arrivals += 1
                gateway.prompt_tokens += prompts[next_request]
                self._route(next_request, now)
                next_request += 1
                continue
            now, _, handler, subject, version = heappop(heap)
            if version < 0:
                handler(subject, now)
            elif version == subject.version:
                on_phase_end(subject, now)

    def _engine_factory(
        self, setup: PoolSetup, edges: tuple[list[float], list[float]], options: PlantOptions
    ) -> Callable[[], Engine]:
        return lambda: Engine(setup.profile, setup.role, self._log, edges, is_per_gap=options.is_per_gap)

    def _push(self, time: float, handler: Callable[..., None], subject: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (time, self._sequence, handler, subject, -1))

    def _plan(self, engine: Engine) -> None:
        if engine.phase_end != math.inf:
            self._sequence += 1
            heappush(self._heap, (engine.phase_end, self._sequence, self._on_phase_end, engine, engine.version))

    def _route(self, request: int, now: float) -> None:
        routable = self._entry.routable
        if not routable:
            self._held.append(request)
            return
        engine = self._rule(routable, now, self._random)
        self._places[request] = engine
        if engine.enqueue(request, now):
            self._plan(engine)

    def _deliver(self, request: int, now: float) -> None:
        """Sends a request whose prompt is computed to a decode engine."""
        assert self._decode is not None
        if not self._decode.routable:
            self._handed_over.append(request)
            return
        engine = least_reserved(self._decode.routable, now, self._random)
        self._places[request] = engine
        if engine.enqueue(request, now):
            self._plan(engine)

    def _on_phase_end(self, engine: Engine, now: float) -> None:
        engine.end_phase()
        for request in engine.outgoing:
            delay = self._scenario.transfer_per_token * self._log.prompts[request]
            self._push(now + delay, self._deliver, request)
        engine.outgoing.clear()
        engine.begin_phase(now)
        if engine.is_idle:
            pool, replica = self._owners[engine]
            if replica.state == "draining":
                self._remove(pool, replica, now)
        else:
            self._plan(engine)

    def _on_ready(self, owner: tuple[ReplicaPool, Replica], now: float) -> None:
        pool, replica = owner
        if replica.state != "pending":
            return
        pool.become_ready(replica)
        self.record.max_ready = max(self.record.max_ready, len(pool.routable))
        waiting, send = (self._handed_over, self._deliver) if pool is self._decode else (self._held, self._route)
        for _ in range(len(waiting)):
            request = waiting.popleft()
            if not self._log.is_over[request]:
                send(request, now)

    def _on_look(self, _: None, now: float) -> None:
        fault = next((window.fault for window in self._scenario.windows if window.start < now <= window.end), None)
        observation = {
            "t": now,
            "gateway": self._gateway.observation(len(self._held), fault),
            "pools": {name: pool_observation(pool, now, fault) for name, pool in self.pools.items()},
        }
        assert self._controller is not None
        desired = self._controller.step(observation)
        has_changed = False
        for name, pool in self.pools.items():
            wanted = min(max(desired.get(name, pool.desired), pool.setup.minimum), pool.setup.maximum)
            has_changed = has_changed or wanted != pool.desired
            self._scale(pool, wanted, now)
        self.record.changes += has_changed
        self.record.desired.append(tuple(pool.desired for pool in self.pools.values()))
        if now + INTERVAL_SECONDS <= self._scenario.seconds:
            self._push(now + INTERVAL_SECONDS, self._on_look, None)

    def _scale(self, pool: ReplicaPool, desired: int, now: float) -> None:
        pool.desired = desired
        active = sum(replica.state != "draining" for replica in pool.replicas)
        for _ in range(desired - active):
            self._start(pool, now)
        if active > desired:
            pool.shrink(active - desired, now)

    def _start(self, pool: ReplicaPool, now: float) -> None:
        replica = pool.order(now)
        self._owners[replica.engine] = (pool, replica)
        self._push(now + (replica.startup or 0.0), self._on_ready, (pool, replica))

    def _on_schedule(self, size: ScheduledSize, now: float) -> None:
        pool = self.pools[size.pool]
        pool.desired = size.replicas
        active = sum(replica.state != "draining" for replica in pool.replicas)
        for _ in range(size.replicas - active):
            replica = pool.order_ahead(now)
            self._owners[replica.engine] = (pool, replica)
            self._on_ready((pool, replica), now)
        if active > size.replicas:
            pool.shrink(active - size.replicas, now)

    def _on_crash(self, crash: Crash, now: float) -> None:
        pool = self._entry
        if not pool.routable:
            return
        engine = pool.routable[int(crash.draw * len(pool.routable))]
        _, replica = self._owners[engine]
        without_token, answering = engine.requests()
        engine.version += 1
        self._remove(pool, replica, now)
        for request in answering:
            self._log.is_over[request] = True
            self.record.lost += 1
        for request in without_token:
            if not self._log.is_over[request]:
                self._route(request, now)
        self._scale(pool, pool.desired, now)

    def _on_slowdown(self, slowdown: Slowdown, now: float) -> None:
        if not self._entry.routable:
            return
        engine = self._entry.routable[0]
        engine.slowness = slowdown.factor
        self._push(slowdown.end, self._on_slowdown_end, engine)

    def _on_slowdown_end(self, engine: Engine, now: float) -> None:
        engine.slowness = 1.0

    def _on_patience_check(self, _: None, now: float) -> None:
        """Ends the requests whose clients have gone; deadlines come in the order of arrivals."""
        log, patience = self._log, self._scenario.patience
        pointer, count = self._deadline_pointer, len(log)
        while pointer < count and log.arrivals[pointer] + patience <= now:
            if not log.is_over[pointer] and log.first_at[pointer] == math.inf:
                log.is_over[pointer] = True
                self._gateway.abandoned += 1
                self.record.abandoned += 1
                engine = self._places[pointer]
                if engine is not None:
                    engine.abandon(pointer)
                else:
                    self._held.remove(pointer)
            pointer += 1
        self._deadline_pointer = pointer
        if pointer < count:
            self._push(now + _PATIENCE_CHECK_SECONDS, self._on_patience_check, None)

    def _remove(self, pool: ReplicaPool, replica: Replica, now: float) -> None:
        pool.remove(replica, now)
        self._owners.pop(replica.engine, None)


def steady_schedule(pools: Sequence[PoolSetup], sizes: Mapping[str, int]) -> list[ScheduledSize]:
    """Returns the schedule of a fleet that never changes."""
    return [ScheduledSize(0.0, setup.name, sizes.get(setup.name, setup.initial)) for setup in pools]
