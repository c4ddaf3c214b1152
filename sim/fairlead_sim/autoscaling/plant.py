"""The plant of an autoscaling run: the gateway, its pools, and faults.

The gateway sends each request on arrival to the ready replica with the least load. The scenario's
``LoadPolicy`` says what counts as load (``routing``). A scenario may route by shape
instead, by the gateway's rule (``ShapeRouter``). Requests wait in the gateway only while no
replica is ready. They leave in order of arrival; each replica receives as many as its batch takes.

A client gives up without a first token after its patience. A crash cuts the answers in progress
(those requests are lost); other requests are sent again.

With a prefill and a decode pool the scenario's ``PrefillPolicy`` chooses where a prompt is computed
(``PrefillPlacement``). After a prefill the decode engine gets the request ``base + tokens
· per token`` seconds later, and the client's first token comes from there.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import heappop, heappush
from random import Random

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import GatewayTraffic, ModelSpec, Observation, ShapeCount, has_pool_choice
from fairlead_sim.autoscaling.plant_engine import AggregatedEngine, PlantEngine, StepTotals, TokenEngine
from fairlead_sim.autoscaling.pool import Pool, PoolSetup, Replica
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable
from fairlead_sim.autoscaling.routing import LoadBalancer, LoadPolicy, PrefillPlacement, PrefillPolicy, ShapeRouter

FOREVER = float("inf")
_FINISH_SLICE_SECONDS = 5.0
_MAX_ANSWER_SECONDS = 600.0
_POLL_SECONDS = 0.25
_TRANSFER_POLL_SECONDS = 0.02


class EngineModelKind(Enum):
    """The engine model of a plant.

    - AGGREGATED: closed form.
    - TOKEN_LEVEL: token by token; the same results at 30 times the run time.
    - PREEMPTING: token by token, admitting without reserved output as vLLM does, so that it
      preempts.
    """

    AGGREGATED = auto()
    TOKEN_LEVEL = auto()
    PREEMPTING = auto()


@dataclass(frozen=True, slots=True)
class PlantFaults:
    """The faults of a scenario, in seconds from the start.

    - crashes: times at which a replica crashes.
    - slow: (time, factor) for the duration of steps.
    - missing, zeroed: intervals without metrics, and with metrics of 0.
    """

    crashes: tuple[float, ...] = ()
    slow: tuple[tuple[float, float], ...] = ()
    missing: tuple[tuple[float, float], ...] = ()
    zeroed: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class KvTransferCost:
    """The duration of a KV transfer from prefill to decode."""

    base_seconds: float = 0.02
    token_seconds: float = 131e3 / 12e9


@dataclass(frozen=True, slots=True)
class AutoscalingScenario:
    """A load, its pools, the SLO and the faults; a seed draws startup times and crashes.

    by_shape: the gateway routes requests by their shape if pools differ.
    load_policy: what the gateway compares among replicas.
    sudden_changes: times at which much more load arrives than any tick before could show.
    random_name: seeds random numbers in place of the name; recorded results of a renamed scenario
        depend on it.
    """

    name: str
    seed: int
    seconds: float
    model: ModelSpec
    pools: tuple[PoolSetup, ...]
    load: ArrivalTrace
    faults: PlantFaults = field(default_factory=PlantFaults)
    transfer: KvTransferCost = field(default_factory=KvTransferCost)
    prefill_policy: PrefillPolicy = PrefillPolicy.APART
    by_shape: bool = False
    load_policy: LoadPolicy = LoadPolicy.RESIDENT_KV
    sudden_changes: tuple[float, ...] = ()
    random_name: str = ""

    def random_source(self, purpose: str) -> Random:
        return Random(f"{self.random_name or self.name} {self.seed} {purpose}")


class SimulatedPlant(ABC):
    """A plant: the pools and the requests of one run, with the faults of its scenario.

    A plant is made for one scenario and one run.
    """

    def __init__(self, scenario: AutoscalingScenario, pools: dict[str, Pool], requests: RequestTable) -> None:
        self.scenario = scenario
        self.requests = requests
        self.pools = pools
        self._random = scenario.random_source("troubles")
        crashes = [(at, 0, 0.0) for at in scenario.faults.crashes]
        slowdowns = [(at, 1, factor) for at, factor in scenario.faults.slow]
        self._fault_events = sorted([*crashes, *slowdowns], reverse=True)
        self._now = 0.0
        self._arrived = 0
        self._reported_arrivals = 0
        self._reported_abandoned = 0
        self._has_choice = has_pool_choice(scenario.model)
        self._shape_router: ShapeRouter | None = None
        self._unfinished_requests: list[int] = []  # only for controllers that read shapes

    @abstractmethod
    def run(self, until: float) -> None:
        """Simulates all events before ``until``."""

    @abstractmethod
    def _settle(self, now: float) -> None:
        """Brings engines and requests up to date before an observation."""

    @abstractmethod
    def _held_count(self) -> int:
        """Returns the requests that wait in the gateway."""

    @abstractmethod
    def _has_unfinished(self) -> bool:
        """Returns whether a request has not ended."""

    def _kept_at_decode(self, arrived: range) -> tuple[float | None, float | None]:
        """Returns the number and the prompt tokens of arrivals that a decode engine computes.

        Returns (None, None) without decode pools.
        """
        return None, None

    def _on_evicted(self, request: int, now: float) -> None:
        self.requests.lost += 1

    def _next_change(self) -> float:
        change = self._fault_events[-1][0] if self._fault_events else FOREVER
        for pool in self.pools.values():
            change = min(change, pool.next_change)
        return change

    def _apply_due(self, now: float) -> None:
        """Applies due startups and faults."""
        while self._fault_events and self._fault_events[-1][0] <= now:
            _, kind, factor = self._fault_events.pop()
            if kind:
                for pool in self.pools.values():
                    pool.slow(factor)
            else:
                for request in self._random.choice(list(self.pools.values())).crash(now):
                    self._on_evicted(request, now)
        for pool in self.pools.values():
            if pool.next_change <= now:
                pool.apply_due(now)

    def observe(self) -> Observation:
        """Returns the observation of this tick and resets the counters."""
        now, faults = self._now, self.scenario.faults
        missing, zeroed = _is_during(faults.missing, now), _is_during(faults.zeroed, now)
        self._settle(now)
        arrived = range(self._reported_arrivals, self._arrived)
        abandoned = self.requests.abandoned - self._reported_abandoned
        self._reported_arrivals, self._reported_abandoned = self._arrived, self.requests.abandoned
        gateway = None
        if zeroed:
            gateway = GatewayTraffic(0, 0)
        elif not missing:
            tokens = sum([self.requests.prompt[request] for request in arrived])
            kept = self._kept_at_decode(arrived)
            gateway = GatewayTraffic(len(arrived), tokens, self._held_count(), abandoned, *kept)
        pools = {name: pool.observe(now, missing=missing, zeroed=zeroed) for name, pool in self.pools.items()}
        ended = self._finished_shapes(arrived) if self._has_choice else ()
        return Observation(now, gateway, pools, shapes=None if missing or zeroed or not self._has_choice else ended)

    def _finished_shapes(self, arrived: range) -> tuple[ShapeCount, ...]:
        """Returns the shapes of requests that finished since the last observation."""
        requests, staying, shapes = self.requests, [], []
        for request in (*self._unfinished_requests, *arrived):
            if 0.0 <= requests.end[request] <= self._now:
                shapes.append(ShapeCount(requests.prompt[request], requests.output[request], 1.0))
                if self._shape_router is not None:  # it learns the lengths of answers
                    self._shape_router.on_finished(requests.prompt[request], requests.output[request])
            elif not requests.has_given_up(request, self._now):
                staying.append(request)
        self._unfinished_requests = staying
        return tuple(shapes)

    def scale(self, pool: str, desired: int, asleep: int = 0) -> bool:
        """Sets the desired awake and sleeping replicas of a pool, within its bounds. Returns
        whether these are others than before.
        """
        scaled_pool = self.pools[pool]
        facts = scaled_pool.setup.facts
        desired = max(facts.minimum, min(facts.maximum, desired))
        asleep = min(asleep, facts.maximum - desired)
        if (desired, asleep) == (scaled_pool.desired, scaled_pool.asleep_desired):
            return False
        scaled_pool.scale(desired, self._now, asleep)
        return True

    def finish(self) -> None:
        """Stops counting cost, and simulates until all requests have ended.

        This takes at most the patience of a client and 600 s.
        """
        for pool in self.pools.values():
            pool.close(self._now)
        end = self._now + (self.scenario.model.patience_seconds or 0.0) + _MAX_ANSWER_SECONDS
        while self._now < end and self._has_unfinished():
            self.run(min(end, self._now + _FINISH_SLICE_SECONDS))


class Plant(SimulatedPlant):
    """The gateway, the pools and the requests of one run.

    foresight: see ``Pool``.
    """

    def __init__(
        self,
        scenario: AutoscalingScenario,
        *,
        engine_model: EngineModelKind = EngineModelKind.AGGREGATED,
        foresight: bool = False,
    ) -> None:
        requests = RequestTable(scenario.load, scenario.model.patience_seconds or FOREVER)
        super().__init__(scenario, {}, requests)
        totals = StepTotals(scenario.model.ttft_bounds, scenario.model.itl_bounds)
        for setup in scenario.pools:
            name = setup.facts.name
            factory = EngineFactory(setup, requests, totals, engine_model)
            self.pools[name] = Pool(setup, factory, scenario.random_source(name), foresight=foresight)
        pools = list(self.pools.values())
        self._decode_pools = [pool for pool in pools if pool.setup.facts.role is Role.DECODE]
        self._entry_pools = [pool for pool in pools if pool.setup.facts.role is not Role.DECODE]
        self._queued: list[int] = []  # at the gateway, in order of arrival
        self._queued_decode: list[int] = []
        self._transfers: list[tuple[float, int]] = []  # heap of (arrival of the KV, request)
        self._prefill_placement = PrefillPlacement(scenario.prefill_policy, scenario.model)
        self._load_balancer = LoadBalancer(scenario.load_policy)
        if scenario.by_shape:
            self._shape_router = ShapeRouter(scenario.model)

    # Time ----------------------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Simulates all events before ``until``."""
        arrivals = self.requests.arrival
        count = len(arrivals)
        while True:
            arrival = arrivals[self._arrived] if self._arrived < count else FOREVER
            change = self._next_change()
            if self._queued or self._queued_decode:
                change = min(change, self._now + _POLL_SECONDS)
            if self._decode_pools:
                change = min(
                    change, self._transfers[0][0] if self._transfers else FOREVER, self._now + _TRANSFER_POLL_SECONDS
                )
            if min(arrival, change) >= until:
                break
            if arrival < change:
                self._now = arrival
                request = self._arrived
                self._arrived += 1
                if self._queued or not self._admit(request, arrival):
                    self._queued.append(request)
            else:
                self._now = max(self._now, change)
                self._apply_changes(self._now)
        self._now = until
        self._apply_changes(until)
        for pool in self.pools.values():
            for replica in pool.draining:
                replica.engine.advance(until)
            pool.apply_due(until)

    def _apply_changes(self, now: float) -> None:
        """Advances the engines, and applies due startups, faults, transfers and releases."""
        self._advance(now)
        self._apply_due(now)
        self._transfer_kv(now)
        self._queued = self._release(self._queued, self._entry_pools, now)
        if self._decode_pools:
            self._queued_decode = self._release(self._queued_decode, self._decode_pools, now)

    def _advance(self, now: float) -> None:
        for pool in self.pools.values():
            for replica in pool.ready:
                replica.engine.advance(now)
            if self._decode_pools:  # their KV must not wait for the end of a tick
                for replica in pool.draining:
                    replica.engine.advance(now)

    # The gateway ---------------------------------------------------------------------------------------------------------

    def _admit(self, request: int, now: float) -> bool:
        """Sends the request to where its prompt is computed. Returns False if no replica is
        ready.
        """
        self.requests.computed_at_decode[request] = self._computes_at_decode(request, now)
        return self._send(
            request, self._decode_pools if self.requests.computed_at_decode[request] else self._entry_pools, now
        )

    def _computes_at_decode(self, request: int, now: float) -> bool:
        """Returns whether a decode engine computes the prompt itself."""
        scenario, decoder = self.scenario, None
        if scenario.prefill_policy is not PrefillPolicy.APART and not self._queued_decode:
            decoder = self._load_balancer.pick(self._decode_pools, now)
        if decoder is None:
            return False
        prompt, transfer = self.requests.prompt[request], scenario.transfer
        transfer_seconds = transfer.base_seconds + transfer.token_seconds * prompt
        prefiller = self._load_balancer.pick(self._entry_pools, now)
        return self._prefill_placement.stays_at_decode(decoder, prefiller, prompt, transfer_seconds, now)

    def _send(self, request: int, pools: list[Pool], now: float) -> bool:
        """Sends the request to the least loaded ready replica, or to one that fits its shape.

        Returns False if no replica is ready.
        """
        if self._shape_router is None:
            best = self._load_balancer.pick(pools, now)
        else:
            best = self._shape_router.pick(
                self.requests.prompt[request], pools, lambda some: self._load_balancer.pick(some, now)
            )
        if best is None:
            return False
        self.requests.sent[request] = now
        best[1].engine.add(request, now)
        return True

    def _release(self, queued: list[int], pools: list[Pool], now: float) -> list[int]:
        """Sends as many queued requests as the batches take, and drops abandoned ones.

        Returns the requests that stay queued.
        """
        if not queued:
            return queued
        requests = self.requests
        staying = [request for request in queued if not requests.has_given_up(request, now)]
        requests.abandoned += len(queued) - len(staying)
        room = sum([_free_slots(replica, pool) for pool in pools for replica in pool.ready])
        for request in staying[:room]:
            self._send(request, pools, now)
        return staying[room:]

    def _transfer_kv(self, now: float) -> None:
        """Starts KV transfers, and sends the requests of completed ones to decode engines."""
        requests, transfer = self.requests, self.scenario.transfer
        for done, request in requests.prefilled:
            heappush(
                self._transfers,
                (done + transfer.base_seconds + transfer.token_seconds * requests.prompt[request], request),
            )
        requests.prefilled.clear()
        while self._transfers and self._transfers[0][0] <= now:
            request = heappop(self._transfers)[1]
            if self._queued_decode or not self._send(request, self._decode_pools, now):
                self._queued_decode.append(request)

    def _on_evicted(self, request: int, now: float) -> None:
        if self.requests.first[request] >= 0.0:
            self.requests.lost += 1
        elif not self._admit(request, now):
            self._queued.append(request)

    # The controller's side -----------------------------------------------------------------------------------------------

    def _settle(self, now: float) -> None:
        for pool in self.pools.values():
            for replica in [*pool.ready, *pool.draining]:
                replica.engine.drop_abandoned(now)

    def _held_count(self) -> int:
        return len(self._queued)

    def _kept_at_decode(self, arrived: range) -> tuple[float | None, float | None]:
        if not self._decode_pools:
            return None, None
        computed_at_decode = [request for request in arrived if self.requests.computed_at_decode[request]]
        return float(len(computed_at_decode)), float(
            sum([self.requests.prompt[request] for request in computed_at_decode])
        )

    def _has_unfinished(self) -> bool:
        replicas = [replica for pool in self.pools.values() for replica in [*pool.ready, *pool.draining]]
        return bool(
            self._queued
            or self._queued_decode
            or self._transfers
            or any(replica.engine.running() or replica.engine.waiting() for replica in replicas)
        )


class EngineFactory:
    """The factory of a pool's engines."""

    def __init__(
        self, setup: PoolSetup, requests: RequestTable, totals: StepTotals, engine_model: EngineModelKind
    ) -> None:
        self._setup = setup
        self._requests = requests
        self._totals = totals
        self._engine_model = engine_model

    def __call__(self) -> PlantEngine:
        arguments = self._setup.profile, self._setup.facts.role, self._requests, self._totals.empty_copy()
        if self._engine_model is EngineModelKind.AGGREGATED:
            return AggregatedEngine(*arguments)
        return TokenEngine(*arguments, preempting=self._engine_model is EngineModelKind.PREEMPTING)


def _free_slots(replica: Replica, pool: Pool) -> int:
    engine = replica.engine
    return max(0, pool.setup.profile.max_sequences - engine.running() - engine.waiting())


def _is_during(stretches: tuple[tuple[float, float], ...], now: float) -> bool:
    return any(begin <= now < end for begin, end in stretches)
