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
from fairlead_sim.autoscaling.fleet_plant.conversations import FleetPlantOptions
from fairlead_sim.autoscaling.fleet_plant.replica_fleet import ReplicaFleet
from fairlead_sim.autoscaling.plant import FOREVER, AutoscalingScenario, SimulatedPlant
from fairlead_sim.autoscaling.request_table import RequestTable


class FleetPlant(SimulatedPlant):
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
        requests = RequestTable(scenario.load, scenario.model.patience_seconds or FOREVER)
        self._fleet = ReplicaFleet(scenario, requests, options or FleetPlantOptions(), foresight=foresight)
        super().__init__(scenario, self._fleet.pools, requests)
        self._waiting_from = 0  # no request before this one waits for a first token

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
            arrival = arrivals[self._arrived] if self._arrived < len(arrivals) else FOREVER
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

    def _next_deadline(self) -> float:
        """Returns when the next client without a first token gives up."""
        requests = self.requests
        while self._waiting_from < self._arrived and requests.first[self._waiting_from] >= 0.0:
            self._waiting_from += 1
        if self._waiting_from >= self._arrived:
            return FOREVER
        return requests.arrival[self._waiting_from] + requests.patience_seconds

    def _apply_changes(self, now: float) -> None:
        self._apply_due(now)
        self._fleet.synchronize(now)

    def _settle(self, now: float) -> None:
        self._fleet.simulation.settle(now)

    def _held_count(self) -> int:
        return self._fleet.gateway.held_count()

    def scale(self, pool: str, desired: int, asleep: int = 0) -> bool:
        """Sets the desired replicas, which the simulation then follows."""
        is_changed = super().scale(pool, desired, asleep)
        if is_changed:
            self._fleet.synchronize(self._now)
        return is_changed

    def _has_unfinished(self) -> bool:
        return bool(self._fleet.simulation.open_requests)
