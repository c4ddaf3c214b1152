"""A cluster of gateways in front of one simulated fleet, with production's exchange of information.

Each gateway (``simulated_gateway``) is the production router with the pure cores around it:
outbox, peers' state, shared load row, counter of hot prefixes, KV-event translation and the queue
of assigned requests. Delays replace Redis and sockets:

- every ``round_seconds`` a gateway publishes its routed prompts and in-flight load; its peers
  receive them ``publish_seconds`` later
- every ``hot_prefix_poll_seconds`` the leader of the hot-prefix table publishes it if it changed,
  with the same delay
- ``index_seconds`` after a step gateways receive the engine's KV events

A restarted gateway finishes its requests in flight. Its successor takes new requests and starts
with the stream (the last ``dispatch_retention_seconds``), the hot-prefix table and the index. A
gateway reroutes requests that it loses before their first token. The requests of a killed gateway
return to any gateway.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from random import Random

import xxhash

from fairlead.errors import BadInput
from fairlead.limits import Limits
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_gateway.supervisor.peers.hot_prefix_lease import (
    HOT_PREFIX_LEASE_SECONDS,
    HOT_PREFIX_POLL_SECONDS,
    HOT_PREFIXES,
)
from fairlead_gateway.supervisor.peers.peer_messages import PeerBatch
from fairlead_kvstore.blockstore import changes as said
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.fleet.packet_simulator import NO_FAULTS, PacketSimulator
from fairlead_sim.fleet.simulation import Action, FleetOptions, SimulationContext
from fairlead_sim.gateways.simulated_gateway import ClusterOptions, ReportedIndex, SimulatedGateway
from fairlead_sim.gateways.single_gateway import RoutingOptions, instances_of, synthetic_chain
from fairlead_sim.workload.traces import TraceRequest

_LIMITS = Limits()


class GatewayCluster:
    """Several gateways as one router of a fleet simulation."""

    def __init__(
        self,
        fleet: FleetOptions,
        routing: RoutingOptions,
        options: ClusterOptions,
        *,
        network: PacketSimulator = NO_FAULTS,
    ) -> None:
        if options.gateways < 1:
            raise BadInput(f"{options.gateways} gateways: at least 1 is needed", field="gateways")
        self.fleet = fleet
        self.routing = routing
        self.options = options
        self.sharing = options.sharing
        self.live = fleet.engine_names
        self.index = ReportedIndex(fleet.engine_names)
        self._hot_table = _HotPrefixTable()
        self.stream: list[tuple[float, str, PeerBatch]] = []
        self.simulation: SimulationContext | None = None
        self._started = 0
        self._random = Random(f"which gateway {routing.seed}")
        self._network = network
        self._incarnations = Counter[str]()
        self._routed = 0
        self._chain = routing.prefix_chain or partial(
            synthetic_chain, secret=routing.secret, seed=routing.model.key.encode()
        )
        self._gateways = [self._start_gateway() for _ in range(options.gateways)]
        self._all = list(self._gateways)
        self._gateway_of: dict[str, SimulatedGateway] = {}
        self._last_gateway = self._gateways[0]
        self._last_lost: tuple[str, SimulatedGateway] | None = None  # the request lost last, and its gateway

    # --- RouterFront --------------------------------------------------------------------------------------------

    def start(self, simulation: SimulationContext) -> None:
        """Starts all gateways, spread over one round."""
        self.simulation = simulation
        has_peers = len(self._gateways) > 1
        for index, gateway in enumerate(self._gateways):
            gateway.start(self.sharing.round_seconds * (1 + index / len(self._gateways)), shares=has_peers)
        if self.sharing.hot and has_peers:
            simulation.schedule(HOT_PREFIX_POLL_SECONDS, self._publish_hot_prefixes)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Routes the request through one of the gateways."""
        restart = self.options.restart
        if restart is not None and self._routed == restart.at_request:
            self._replace_gateway(restart.gateway, now)
        self._routed += 1
        gateway = self._last_gateway = self._gateway_of_lost(request.id) or self._gateways[self._pick_gateway(request)]
        chosen, reason = gateway.route(request, self._chain(request), now)
        if chosen is not None:
            self._gateway_of[request.id] = gateway
        return chosen, reason

    def on_rejected(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        self._gateway_of[request].on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._gateway_of.pop(sequence.id).on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Delivers the events to every gateway after ``index_seconds``, if the index is shared."""
        if self.sharing.index:
            incarnation = self._incarnations[instance]
            for at in self._network.delivery_times(now, self.sharing.index_seconds):
                self._simulation().schedule(at, partial(self._deliver_kv_events, instance, incarnation, events))

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Updates every gateway, and forgets the cache of engines that left.

        Requests queued for those engines are rerouted.
        """
        left = [name for name in self.live if name not in live_engines]
        self.live = list(live_engines)
        self._incarnations.update(left)
        for name in left:
            self._publish_index_changes(self.index.remove_instance(name))
        for gateway in self._all:
            gateway.router.update(self.routing.model, instances_of(live_engines, self.fleet.profile))
        for gateway in self._all:
            self._reroute(gateway.remove_unreached(live_engines, now), now)

    def on_lost(self, request: str, now: float) -> None:
        """Drops the load of the request, and notes its gateway, which may reroute it."""
        gateway = self._gateway_of.pop(request)
        gateway.on_abandoned(request, now)
        self._last_lost = request, gateway

    def set_unreachable(self, gateway: int, names: frozenset[str], now: float) -> None:
        """Cuts one gateway off from these engines, and from no others.

        Its requests there without a first token are rerouted; answers in progress are cut.
        """
        cut_gateway = self._gateways[gateway]
        cut_gateway.unreachable = names
        simulation = self._simulation()
        self._reroute(cut_gateway.remove_unreached([name for name in self.live if name not in names], now), now)
        request_ids = [
            name
            for name, owner in self._gateway_of.items()
            if owner is cut_gateway and simulation.known_request(name).instance in names
        ]
        self._reroute(request_ids, now)

    def gateway_number(self, request: str) -> int | None:
        """Returns which gateway has the request; None if it has none."""
        gateway = self._gateway_of.get(request)
        return self._gateways.index(gateway) if gateway in self._gateways else None

    def unreachable_for(self, request: str) -> frozenset[str]:
        """Returns the engines that the request's gateway does not reach."""
        return self._gateway_of.get(request, self._last_gateway).unreachable

    def kill_gateway(self, gateway: int, now: float) -> None:
        """Kills one gateway and starts another in its place.

        Its answers are cut; requests without a first token arrive again.
        """
        old = self._gateways[gateway]
        old.is_gone = True
        old.remove_unreached((), now)  # drops what it queued
        self._replace_gateway(gateway, now)
        self._gateways[gateway].unreachable = old.unreachable
        self._reroute([name for name, owner in self._gateway_of.items() if owner is old], now)

    def _reroute(self, requests: Sequence[str], now: float) -> None:
        for request in requests:
            self.on_lost(request, now)
            self._simulation().interrupt_request(request, now)

    def loads(self) -> list[Mapping[str, InstanceLoad]]:
        """Returns the local load of each present gateway."""
        return [gateway.router.loads() for gateway in self._all if not gateway.is_gone]

    def believed_cached_tokens(self, request: TraceRequest) -> float:
        """Returns the largest cached prefix of the prompt, in tokens, that any gateway expects."""
        route_request = RouteRequest(request.id, self._chain(request), request.prompt_tokens)
        return max(request.prompt_tokens - gateway.router.uncached_tokens(route_request) for gateway in self._gateways)

    # --- between gateways -------------------------------------------------------------------------------------------------

    def publish(self, sender: str, batch: PeerBatch, now: float) -> None:
        """Delivers a gateway's batch to its peers after ``publish_seconds``."""
        arrivals = self._network.delivery_times(now, self.sharing.publish_seconds)
        if arrivals:
            self.stream.append((now, sender, batch))
        for at in arrivals:
            self._simulation().schedule(at, partial(self._deliver, sender, batch))

    def schedule(self, at: float, action: Action) -> None:
        self._simulation().schedule(at, action)

    def send_queued_request(self, request: str, instance: str, now: float) -> None:
        self._simulation().send_queued_request(request, instance, now)

    def _simulation(self) -> SimulationContext:
        assert self.simulation is not None, "the simulation has not started"
        return self.simulation

    def _deliver(self, name: str, batch: PeerBatch, now: float) -> None:
        for gateway in self._all:
            if gateway.name != name:
                gateway.receive(name, batch, now, live=True)

    def _deliver_kv_events(self, instance: str, incarnation: int, events: Sequence[KvEvent], now: float) -> None:
        if incarnation == self._incarnations[instance]:
            self._publish_index_changes(self.index.apply_events(instance, events))

    def _publish_index_changes(self, changes: Sequence[said.Change]) -> None:
        for gateway in self._all:
            gateway.translator.on_changes(changes)

    def _publish_hot_prefixes(self, now: float) -> None:
        if self._hot_table.refresh(self._gateways, now):
            for at in self._network.delivery_times(now, self.sharing.publish_seconds):
                self.schedule(at, partial(self._deliver_hot_prefixes, self._hot_table.epoch, self._hot_table.table))
        self.schedule(now + HOT_PREFIX_POLL_SECONDS, self._publish_hot_prefixes)

    def _deliver_hot_prefixes(self, epoch: int, table: frozenset[int], now: float) -> None:
        for gateway in self._all:
            gateway.router.set_hot_prefixes(epoch, table)

    def _pick_gateway(self, request: TraceRequest) -> int:
        if self.options.by_session and request.session is not None:
            return xxhash.xxh3_64_intdigest(request.session.encode(), self.routing.seed) % len(self._gateways)
        return self._random.randrange(len(self._gateways))

    def _gateway_of_lost(self, request: str) -> SimulatedGateway | None:
        """Returns the gateway that reroutes a lost request.

        Returns None if the client sends it again, to any gateway.
        """
        left, self._last_lost = self._last_lost, None
        return left[1] if left is not None and left[0] == request and not left[1].is_gone else None

    def _replace_gateway(self, index: int, now: float) -> None:
        """Lets a gateway finish its requests, and starts its successor with what the peers know."""
        old = self._gateways[index]
        old.is_leaving = True
        new = self._gateways[index] = self._start_gateway()
        self._all = [gateway for gateway in self._all if not gateway.is_gone] + [new]
        new.start(now + self.sharing.round_seconds, shares=len(self._gateways) > 1)
        new.read_history(now)

    def _start_gateway(self) -> SimulatedGateway:
        self._started += 1
        return SimulatedGateway(self, f"gateway {self._started}")

    def hot_prefixes(self) -> tuple[int, frozenset[int]]:
        return self._hot_table.epoch, self._hot_table.table

    def engine_cores(self) -> Mapping[str, EngineCore]:
        return self._simulation().engine_cores


class _HotPrefixTable:
    """The table of hot prefixes and its leader; without a leader, the first gateway becomes it."""

    def __init__(self) -> None:
        self.epoch = 0
        self.table: frozenset[int] = frozenset()
        self._owner: SimulatedGateway | None = None
        self._lease_until = 0.0

    def refresh(self, gateways: Sequence[SimulatedGateway], now: float) -> bool:
        """Updates the table by its leader's counts. Returns whether the table has changed.

        While the lease of a leader that left has not expired, nothing changes.
        """
        if self._owner is None or self._owner.is_leaving:
            if self._owner is not None and now < self._lease_until:
                return False
            self._owner = gateways[0]
            if self.epoch:
                self._owner.hot_prefixes.start_from_table(self.table)
        self._lease_until = now + HOT_PREFIX_LEASE_SECONDS
        table = frozenset(self._owner.hot_prefixes.top_prefixes(HOT_PREFIXES))
        if self.epoch and table == self.table:
            return False
        self.table = table  # type: ignore[assignment]
        self.epoch += 1
        return True
