"""The plant: traffic through a gateway to engines, under a controller or a schedule.

The replicas of one pool: starts that are paid from the order, drains and crashes.

Rules by which the gateway chooses an engine for a request.

The seam between plant and core: observations for a core, and what chooses the sizes of pools.
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Protocol

from fairlead_bench.outside_plant.engine import Engine, EngineCounters
from fairlead_bench.outside_plant.scenario import (
    GAP_EDGES,
    INTERVAL_SECONDS,
    MAX_REPLICAS,
    STARTUP_P50,
    STARTUP_P90,
    TTFT_EDGES,
    Crash,
    MetricFault,
    PoolSetup,
    Role,
    Scenario,
    Slowdown,
    startup_times,
)
from fairlead_sim.seams import autoscaler

_MAX_ORDERS = 20_000

GatewayRule = Callable[[Sequence[Engine], float, random.Random], Engine]
"""Chooses one of at least one engine, at a time in seconds."""

TOKENS_PER_REQUEST = 220
"""Prompt tokens that weigh as much as one request in flight."""

RESCUE_SECONDS = 330.0
"""Length of the help after a sudden change: the longest start, and half a minute."""

_SMOOTHING_SECONDS = 60.0
_STABLE_LOOKS = 60
_USUAL_BATCH = 16

_PATIENCE_CHECK_SECONDS = 1.0


class Replica:
    """One replica with its engine.

    ordered_at: seconds; before 0 where the offline optimum orders ahead
    startup: None for a replica of the first moment
    """

    __slots__ = ("engine", "number", "ordered_at", "startup", "state")

    def __init__(self, number: int, engine: Engine, ordered_at: float, startup: float | None) -> None:
        self.number, self.engine = number, engine
        self.ordered_at, self.startup = ordered_at, startup
        self.state = "pending"


class ReplicaPool:
    """Replicas by state. Times are seconds.

    routable: engines of the ready replicas
    replica_seconds: of the replicas that are gone
    """

    def __init__(self, setup: PoolSetup, seed: int, make_engine: Callable[[], Engine], end: float) -> None:
        self.setup = setup
        self.desired = setup.initial
        self.replicas: list[Replica] = []
        self.routable: list[Engine] = []
        self.replica_seconds = 0.0
        self.orders = 0
        self._make_engine, self._end = make_engine, end
        self._startups: Sequence[float] = startup_times(seed, setup.name, _MAX_ORDERS)
        self._numbers = 0
        for _ in range(setup.initial):
            self.become_ready(self._add(0.0, None))

    def count(self, state: str) -> int:
        return sum(replica.state == state for replica in self.replicas)

    def order(self, now: float) -> Replica:
        startup = self._next_startup()
        return self._add(now, startup)

    def order_ahead(self, now: float) -> Replica:
        startup = self._next_startup()
        return self._add(now - startup, startup)

    def become_ready(self, replica: Replica) -> None:
        replica.state = "ready"
        self.routable.append(replica.engine)

    def shrink(self, surplus: int, now: float) -> None:
        """Takes replicas away: first the youngest that start, then the least busy ready ones."""
        pending = [replica for replica in self.replicas if replica.state == "pending"]
        for replica in pending[::-1][:surplus]:
            self.remove(replica, now)
        surplus -= min(surplus, len(pending))
        ready = sorted(
            (replica for replica in self.replicas if replica.state == "ready"),
            key=lambda replica: (replica.engine.inflight, -replica.number),
        )
        for replica in ready[:surplus]:
            self.routable.remove(replica.engine)
            replica.state = "draining"
            if replica.engine.is_idle:
                self.remove(replica, now)

    def remove(self, replica: Replica, now: float) -> None:
        """Ends a replica and counts what it has cost."""
        if replica.state == "ready":
            self.routable.remove(replica.engine)
        replica.state = "gone"
        self.replicas.remove(replica)
        self.replica_seconds += max(min(now, self._end) - replica.ordered_at, 0.0)

    def paid_seconds(self) -> float:
        """Returns the replica-seconds until the end of the run."""
        return self.replica_seconds + sum(max(self._end - replica.ordered_at, 0.0) for replica in self.replicas)

    def _next_startup(self) -> float:
        self.orders += 1
        return self._startups[(self.orders - 1) % _MAX_ORDERS]

    def _add(self, ordered_at: float, startup: float | None) -> Replica:
        self._numbers += 1
        replica = Replica(self._numbers, self._make_engine(), ordered_at, startup)
        self.replicas.append(replica)
        return replica


def least_work(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the engine with the fewest prompt tokens to compute, plus 220 for each request."""
    scores = [
        engine.backlog_tokens + TOKENS_PER_REQUEST * engine.inflight - engine.prompt_rate * (now - engine.phase_start)
        for engine in engines
    ]
    return engines[scores.index(min(scores))]


def least_resident(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the engine with the fewest tokens in its memory and in its queue."""
    scores = [engine.resident_tokens + engine.backlog_tokens for engine in engines]
    return engines[scores.index(min(scores))]


def random_two(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the one of two random engines that has fewer requests in flight."""
    count = len(engines)
    first, second = engines[int(random_source.random() * count)], engines[int(random_source.random() * count)]
    return first if first.inflight <= second.inflight else second


def least_reserved(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the decode engine with the fewest reserved tokens, plus 1,000 for each that waits."""
    scores = [engine.reserved_tokens + 1000 * len(engine.waiting) for engine in engines]
    return engines[scores.index(min(scores))]


GATEWAY_RULES: Mapping[str, GatewayRule] = {
    "work": least_work,
    "resident": least_resident,
    "random-two": random_two,
}


class Controller(Protocol):
    """Chooses the desired replicas of each pool."""

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        """Returns desired replicas by pool; a pool that is missing stays as it is."""


ControllerFactory = Callable[[Scenario], Controller]
"""Makes the controller of a run."""


def core_info(scenario: Scenario) -> Mapping[str, Any]:
    """Returns the ``info`` of the autoscaler seam."""
    return {
        "slo": {"ttft": scenario.ttft, "itl": scenario.gap},
        "timeout": scenario.patience,
        "interval": INTERVAL_SECONDS,
        "ttft_le": TTFT_EDGES,
        "itl_le": GAP_EDGES,
        "pools": {setup.name: _pool_info(setup) for setup in scenario.pools},
    }


def _pool_info(setup: PoolSetup) -> Mapping[str, Any]:
    return {
        "role": setup.role.value,
        "cost": 1.0,
        "min": setup.minimum,
        "max": setup.maximum,
        "max_num_seqs": setup.profile.max_seqs,
        "kv_tokens": setup.profile.kv_tokens,
        "startup_p50": STARTUP_P50,
        "startup_p90": STARTUP_P90,
        "profile": setup.profile.described(),
    }


def pool_observation(pool: ReplicaPool, now: float, fault: MetricFault | None) -> dict[str, Any]:
    """Returns a pool as a core sees it, and starts new counters."""
    replicas = [_replica_observation(replica, now, fault) for replica in pool.replicas]
    pending = [now - replica.ordered_at for replica in pool.replicas if replica.state == "pending"]
    return {
        "desired": pool.desired,
        "ready": pool.count("ready"),
        "pending": len(pending),
        "draining": pool.count("draining"),
        "pending_age": pending,
        "replicas": None if fault is MetricFault.MISSING else replicas,
    }


def _replica_observation(replica: Replica, now: float, fault: MetricFault | None) -> dict[str, Any]:
    engine = replica.engine
    engine.synchronize(now)
    counters = engine.take_counters()
    if fault is not None:
        counters = EngineCounters(len(counters.ttft_histogram), len(counters.gap_histogram))
    is_blank = fault is MetricFault.ZERO_ALL
    return {
        "id": replica.number,
        "state": replica.state,
        "age": now - replica.ordered_at,
        "startup_s": None if replica.state == "pending" else replica.startup,
        "running": 0 if is_blank else engine.running,
        "waiting": 0 if is_blank else len(engine.waiting),
        "kv": 0.0 if is_blank else engine.kv_share(now),
        "d_prompt": counters.prompt,
        "d_gen": counters.generated,
        "d_gen_time": counters.generated_seconds,
        "d_finished": counters.finished,
        "d_first": counters.first,
        "d_ttft_sum": counters.ttft_sum,
        "ttft_hist": counters.ttft_histogram,
        "itl_hist": counters.gap_histogram,
    }


class GatewayCounters:
    """Counts of the gateway since the last look."""

    def __init__(self) -> None:
        self.arrivals = self.prompt_tokens = self.abandoned = 0

    def observation(self, held: int, fault: MetricFault | None) -> dict[str, int] | None:
        """Returns the ``gateway`` of an observation, and resets the counts."""
        seen = {
            "d_arrivals": self.arrivals,
            "d_prompt": self.prompt_tokens,
            "held": held,
            "d_abandoned": self.abandoned,
        }
        self.arrivals = self.prompt_tokens = self.abandoned = 0
        if fault is MetricFault.MISSING:
            return None
        return seen if fault is None else dict.fromkeys(seen, 0)


def core_controller(scenario: Scenario, settings: Mapping[str, Any]) -> Controller:
    controller: Controller = autoscaler(core_info(scenario), **settings)
    return controller


class RescuedReplay:
    """A recorded run that orders the whole maximum at the first look after each sudden change.

    Why: what is late even so, no start ordered at that look could have served.
    """

    def __init__(self, scenario: Scenario, desired: Sequence[tuple[int, ...]]) -> None:
        self._scenario, self._desired = scenario, desired
        self._looks = 0

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        """Returns the recorded sizes, or the maximum soon after a sudden change."""
        now = observation["t"]
        sizes = self._desired[min(self._looks, len(self._desired) - 1)]
        self._looks += 1
        is_rescue = any(shock < now <= shock + RESCUE_SECONDS for shock in self._scenario.shocks)
        names = [setup.name for setup in self._scenario.pools]
        return {name: MAX_REPLICAS if is_rescue else size for name, size in zip(names, sizes, strict=True)}


class WorkRule:
    """A plain rule for comparison: the work that arrives, divided by a target load of a replica.

    Work is seconds of an engine: prompt tokens as they arrive, and generated tokens at a batch of
    16. It is smoothed over a minute; the most of the last five minutes counts. Requests that the
    gateway holds ask for a replica per 20. Without metrics a pool stays as it is.
    """

    def __init__(self, scenario: Scenario, target: float) -> None:
        self._setups = scenario.pools
        self._target = target
        self._smoothed: dict[str, float] = {}
        self._wanted: dict[str, deque[int]] = {setup.name: deque(maxlen=_STABLE_LOOKS) for setup in scenario.pools}

    def step(self, observation: Mapping[str, Any]) -> Mapping[str, int]:
        """Returns the sizes by the work that arrives."""
        gateway = observation["gateway"]
        if gateway is None:
            return {}
        desired = {}
        generated = sum(
            replica["d_gen"] for pool in observation["pools"].values() for replica in pool["replicas"] or ()
        )
        for setup in self._setups:
            profile = setup.profile
            work = 0.0
            if setup.role is not Role.DECODE:
                work += gateway["d_prompt"] * (profile.per_prompt_token + profile.base / profile.chunk)
            if setup.role is not Role.PREFILL:
                work += generated * (profile.base / _USUAL_BATCH + profile.per_seq)
            load = work / INTERVAL_SECONDS
            before = self._smoothed.get(setup.name, load)
            smoothed = before + (load - before) * INTERVAL_SECONDS / _SMOOTHING_SECONDS
            self._smoothed[setup.name] = smoothed
            wanted = self._wanted[setup.name]
            wanted.append(math.ceil(smoothed / self._target - 0.02) + math.ceil(gateway["held"] / 20))
            desired[setup.name] = max(wanted)
        return desired


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
