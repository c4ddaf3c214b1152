"""The plant that is made of the fleet simulator: engines with caches behind the gateway's router.

It differs from ``autoscaling.plant.Plant`` in what it simulates:

- Engines keep the KV of earlier prompts, and requests are turns of conversations
  (``conversations``). So the work of a load depends on where its requests go.
- The router is the gateway's, with its default preset and late binding (``replica_fleet``). Its
  homes move when the number of replicas changes, and the cache of a new replica is empty.
- Engines run step by step and block by block.

Replicas, their starts, crashes and costs are those of ``Pool``, with the same draws as on the other
plant. Pools that share the load are supported, prefill and decode pools are not. Of a scenario,
``transfer``, ``prefill_policy`` and ``by_shape`` do not apply: the router decides.
"""

from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import GatewayTraffic, Observation, ShapeCount, has_pool_choice
from fairlead_sim.autoscaling.fleet_plant.options import FleetPlantOptions
from fairlead_sim.autoscaling.fleet_plant.replica_fleet import ReplicaFleet
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import Pool
from fairlead_sim.autoscaling.request_table import RequestTable

_FOREVER = float("inf")
_FINISH_SLICE_SECONDS = 5.0
_MAX_ANSWER_SECONDS = 600.0


class FleetPlant:
    """The fleet, the gateway and the requests of one run.

    foresight: see ``Pool``.

    Raises BadInput for a scenario with prefill or decode pools.
    """

    def __init__(
        self, scenario: AutoscalingScenario, options: FleetPlantOptions | None = None, *, foresight: bool = False
    ) -> None:
        if any(setup.facts.role is not Role.SERVE for setup in scenario.pools):
            raise BadInput(
                f"scenario {scenario.name!r} has prefill or decode pools, which the fleet simulator cannot run",
                field="role",
                hint="use the aggregated plant",
            )
        self.scenario = scenario
        self.requests = RequestTable(scenario.load, scenario.model.patience_seconds or _FOREVER)
        self._fleet = ReplicaFleet(scenario, self.requests, options or FleetPlantOptions(), foresight=foresight)
        self._random = scenario.random_source("troubles")
        crashes = [(at, 0, 0.0) for at in scenario.faults.crashes]
        slowdowns = [(at, 1, factor) for at, factor in scenario.faults.slow]
        self._fault_events = sorted([*crashes, *slowdowns], reverse=True)
        self._now = 0.0
        self._arrived = 0
        self._waiting_from = 0  # no request before this one waits for a first token
        self._reported_arrivals = 0
        self._reported_abandoned = 0
        self._has_choice = has_pool_choice(scenario.model)
        self._unfinished_requests: list[int] = []  # only for controllers that read shapes

    @property
    def pools(self) -> dict[str, Pool]:
        """Returns the pools by name."""
        return self._fleet.pools

    @property
    def cached_share(self) -> float:
        """Returns the share (0..1) of prompt tokens so far that engines had cached."""
        caches = self._fleet.caches
        return caches.cached_tokens / caches.prompt_tokens if caches.prompt_tokens else 0.0

    @property
    def ideal_cached_share(self) -> float:
        """Returns the share (0..1) of prompt tokens that an endless cache would have."""
        return self._fleet.ideal_cached_share

    # Time ----------------------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Simulates all events before ``until``."""
        arrivals, simulation = self.requests.arrival, self._fleet.simulation
        while True:
            arrival = arrivals[self._arrived] if self._arrived < len(arrivals) else _FOREVER
            change, deadline = self._next_change(), self._next_deadline()
            at = min(arrival, change, deadline)
            if at >= until:
                break
            at = max(at, self._now)
            simulation.run_until(at)
            self._now = at
            if change <= at:
                self._apply_changes(at)
            elif deadline <= at:
                simulation.abandon_request(str(self._waiting_from), at)
                self._waiting_from += 1
            else:
                self._arrived += 1
                self._fleet.arrive(self._arrived - 1, at)
        simulation.run_until(until)
        self._now = until
        self._apply_changes(until)
        for pool in self.pools.values():
            pool.apply_due(until)
        self._fleet.synchronize(until)

    def _next_change(self) -> float:
        change = self._fault_events[-1][0] if self._fault_events else _FOREVER
        for pool in self.pools.values():
            change = min(change, pool.next_change)
        return change

    def _next_deadline(self) -> float:
        """Returns when the next client without a first token gives up."""
        requests = self.requests
        while self._waiting_from < self._arrived and requests.first[self._waiting_from] >= 0.0:
            self._waiting_from += 1
        if self._waiting_from >= self._arrived:
            return _FOREVER
        return requests.arrival[self._waiting_from] + requests.patience_seconds

    def _apply_changes(self, now: float) -> None:
        """Applies due startups and faults."""
        while self._fault_events and self._fault_events[-1][0] <= now:
            _, kind, factor = self._fault_events.pop()
            if kind:
                for pool in self.pools.values():
                    pool.slow(factor)
            else:
                self._random.choice(list(self.pools.values())).crash(now)
        for pool in self.pools.values():
            if pool.next_change <= now:
                pool.apply_due(now)
        self._fleet.synchronize(now)

    # The controller's side -----------------------------------------------------------------------------------------------

    def observe(self) -> Observation:
        """Returns the observation of this tick and resets the counters."""
        now, faults = self._now, self.scenario.faults
        missing, zeroed = _is_during(faults.missing, now), _is_during(faults.zeroed, now)
        self._fleet.simulation.settle(now)
        arrived = range(self._reported_arrivals, self._arrived)
        abandoned = self.requests.abandoned - self._reported_abandoned
        self._reported_arrivals, self._reported_abandoned = self._arrived, self.requests.abandoned
        gateway = None
        if zeroed:
            gateway = GatewayTraffic(0, 0)
        elif not missing:
            tokens = sum([self.requests.prompt[request] for request in arrived])
            gateway = GatewayTraffic(len(arrived), tokens, self._fleet.gateway.held_count(), abandoned)
        pools = {name: pool.observe(now, missing=missing, zeroed=zeroed) for name, pool in self.pools.items()}
        ended = self._finished_shapes(arrived) if self._has_choice else ()
        return Observation(now, gateway, pools, shapes=None if missing or zeroed or not self._has_choice else ended)

    def _finished_shapes(self, arrived: range) -> tuple[ShapeCount, ...]:
        """Returns the shapes of requests that finished since the last observation."""
        requests, staying, shapes = self.requests, [], []
        for request in (*self._unfinished_requests, *arrived):
            if 0.0 <= requests.end[request] <= self._now:
                shapes.append(ShapeCount(requests.prompt[request], requests.output[request], 1.0))
            elif not requests.has_given_up(request, self._now):
                staying.append(request)
        self._unfinished_requests = staying
        return tuple(shapes)

    def scale(self, pool: str, desired: int, asleep: int = 0) -> None:
        """Sets the desired awake and sleeping replicas of a pool, within its bounds."""
        scaled_pool = self.pools[pool]
        facts = scaled_pool.setup.facts
        desired = max(facts.minimum, min(facts.maximum, desired))
        asleep = min(asleep, facts.maximum - desired)
        if (desired, asleep) != (scaled_pool.desired, scaled_pool.asleep_desired):
            scaled_pool.scale(desired, self._now, asleep)
            self._fleet.synchronize(self._now)

    def finish(self) -> None:
        """Stops counting cost, and simulates until all requests have ended.

        This takes at most the patience of a client and 600 s.
        """
        for pool in self.pools.values():
            pool.close(self._now)
        end = self._now + (self.scenario.model.patience_seconds or 0.0) + _MAX_ANSWER_SECONDS
        while self._now < end and self._fleet.simulation.open_requests:
            self.run(min(end, self._now + _FINISH_SLICE_SECONDS))


def _is_during(stretches: tuple[tuple[float, float], ...], now: float) -> bool:
    return any(begin <= now < end for begin, end in stretches)
