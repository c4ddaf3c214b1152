"""Several gateways in front of one simulated fleet, and what each of them knows of what the others do.

A gateway here (``gateway_run``) is the production router and the pure cores around it: what it tells (``exchange.outgoing``), what
it hears of others (``exchange.peers``), the row of memory in which their load lies (``others_row``), the count of hot prefixes, the
bridge from what engines tell to what the router believes (``links.bridge``), and the requests that it keeps until their engines can
begin (``holding``). Redis and sockets are replaced by delays:

    every ``round_seconds``      a gateway tells what it sent and what it has in flight; ``told_seconds`` later the others know
    every ``hot_ask_seconds``    the keeper of the table of hot prefixes tells it; it is known just as much later
    ``index_seconds``            after the end of a step gateways hear what the engine stored and removed

A gateway that is restarted in good order goes on with what it has in flight; a new one takes what arrives, and knows what it
finds in the stream (the last ``sent_kept_seconds``), the table, and what engines tell from then on of prompts that it has seen.
A gateway chooses anew for what it loses before a first token; what a killed one had or kept comes back to any.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import xxhash

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import Model, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_gateway.supervisor.peers.peer_messages import PeerBatch
from fairlead_kvstore.blockstore import changes as said
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.fleet.packet_simulator import NO_FAULTS, PacketSimulator
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.cluster_options import InformationDelays
from fairlead_sim.gateways.reported_index import ReportedIndex
from fairlead_sim.gateways.simulated_gateway import SimulatedGateway
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, instances_of, synthetic_chain
from fairlead_sim.workload.traces import TraceRequest

_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class GatewayRestart:
    """Gateway number ``gateway`` is restarted when the request with this number (in the order of arrival) arrives."""

    gateway: int
    at_request: int


class GatewayCluster:
    """``count`` gateways of one fleet as one ``Front``. Requests go to one of them by chance, or where ``by_session`` all of a
    session go to one. ``engines`` are the names of equal engines, those that
    come later included (``members`` says who is there). ``weather`` is what becomes of all that is told.
    ``chain`` replaces the made-up prefix chains where the prompts' real text is known; ``choices`` (request id → engine) overrule
    the routers: what the same fleet makes of decisions taken elsewhere."""

    def __init__(
        self,
        count: int,
        engine_names: Sequence[str],
        profile: EngineProfile,
        *,
        delays: InformationDelays,
        objectives: SloTargets,
        secret: bytes,
        seed: int,
        block_tokens: int,
        by_session: bool = False,
        restart: GatewayRestart | None = None,
        network: PacketSimulator = NO_FAULTS,
        preset: str = "dual-hash",
        chain: Callable[[TraceRequest], PrefixChain] | None = None,
        choices: Mapping[str, str] | None = None,
    ) -> None:
        if count < 1:
            raise BadInput(f"{count} gateways cannot answer anything", field="gateways")
        self.delays = delays
        self.engines = tuple(engine_names)
        self.live: Sequence[str] = self.engines
        self.profile = profile
        self.choices = choices or {}
        self.model = Model(NAMESPACE, MODEL, objectives, preset)
        self.secret = secret
        self.block_tokens = block_tokens
        self.index = ReportedIndex(self.engines)
        self.hot = _HotPrefixTable()
        self.stream: list[tuple[float, str, PeerBatch]] = []
        self.simulation: FleetSimulation | None = None
        self._seed = seed
        self._started = 0
        self._random = Random(f"which gateway {seed}")
        self._by_session = by_session
        self._restart = restart
        self._network = network
        self._incarnations = Counter[str]()
        self._routed = 0
        self._epoch = 1
        self._chain = chain or partial(synthetic_chain, secret=secret, seed=self.model.key.encode())
        self._gateways = [self._start_gateway() for _ in range(count)]
        self._all = list(self._gateways)
        self._gateway_of: dict[str, SimulatedGateway] = {}
        self._last_gateway = self._gateways[0]
        self._last_lost: tuple[str, SimulatedGateway] | None = None  # who was lost just now, and where

    # --- the front of a course --------------------------------------------------------------------------------------------

    def start(self, simulation: FleetSimulation) -> None:
        """Everybody begins to tell and to listen, not all at the same moment."""
        self.simulation = simulation
        has_peers = len(self._gateways) > 1
        for index, gateway in enumerate(self._gateways):
            gateway.start(self.delays.round_seconds * (1 + index / len(self._gateways)), shares=has_peers)
        if self.delays.hot and has_peers:
            simulation.schedule(_LIMITS.hot_prefix_poll_seconds, self._publish_hot_prefixes)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """One of the gateways chooses."""
        if self._restart is not None and self._routed == self._restart.at_request:
            self._replace_gateway(self._restart.gateway, now)
        self._routed += 1
        gateway = self._last_gateway = self._gateway_of_lost(request.id) or self._gateways[self._pick_gateway(request)]
        chosen, reason = gateway.route(request, self._chain(request), now)
        if chosen is not None:
            self._gateway_of[request.id] = gateway
        return chosen, reason

    def on_rejected(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self.on_lost(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        """The gateway that sent it hears of it."""
        self._gateway_of[request].on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """The same."""
        self._gateway_of.pop(sequence.id).on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Every gateway hears of it a little later, in the order in which engines tell."""
        if self.delays.index:
            incarnation = self._incarnations[instance]
            for at in self._network.delivery_times(now, self.delays.index_seconds):
                self._simulation().schedule(at, partial(self._deliver_kv_events, instance, incarnation, events))

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Every gateway's watch tells it. Of an engine that left nothing is believed any more."""
        self._epoch += 1
        left = [name for name in self.live if name not in live_engines]
        self.live = list(live_engines)
        self._incarnations.update(left)
        for name in left:
            self._publish_index_changes(self.index.remove_instance(name))
        for gateway in self._all:
            gateway.router.update(self.model, instances_of(live_engines, self.profile), self._epoch)
        for gateway in self._all:
            self._reroute(gateway.remove_unreached(live_engines, now), now)

    def on_lost(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        gateway = self._gateway_of.pop(request)
        gateway.on_abandoned(request, now)
        self._last_lost = request, gateway

    def set_unreachable(self, gateway: int, names: frozenset[str], now: float) -> None:
        """One gateway does not reach these engines from now on, and no others: what it has there without a first token arrives
        anew, the other answers are cut."""
        cut_gateway = self._gateways[gateway]
        cut_gateway.unreachable = names
        simulation = self._simulation()
        self._reroute(cut_gateway.remove_unreached([name for name in self.live if name not in names], now), now)
        request_ids = [
            name
            for name, owner in self._gateway_of.items()
            if owner is cut_gateway and simulation.inflight_request(name).instance in names
        ]
        self._reroute(request_ids, now)

    def unreachable_for(self, request: str) -> frozenset[str]:
        """The engines that the gateway does not reach which has, or just refused, the request."""
        return self._gateway_of.get(request, self._last_gateway).unreachable

    def kill_gateway(self, gateway: int, now: float) -> None:
        """One gateway is killed and its answers are cut; what had no first token arrives anew, at a new gateway."""
        old = self._gateways[gateway]
        old.is_gone = True
        old.remove_unreached((), now)  # what it kept goes nowhere any more
        self._replace_gateway(gateway, now)
        self._gateways[gateway].unreachable = old.unreachable
        self._reroute([name for name, owner in self._gateway_of.items() if owner is old], now)

    def _reroute(self, requests: Sequence[str], now: float) -> None:
        for request in requests:
            self.on_lost(request, now)
            self._simulation().reroute(request, now)

    def loads(self) -> list[Mapping[str, InstanceLoad]]:
        """What each gateway that is there counts as its own."""
        return [gateway.router.loads() for gateway in self._all if not gateway.is_gone]

    def believed_cached_tokens(self, request: TraceRequest) -> float:
        """Tokens of a prompt that some instance holds, as the gateway believes that believes most."""
        route_request = RouteRequest(request.id, self._chain(request), request.prompt_tokens)
        return max(request.prompt_tokens - gateway.router.uncached_tokens(route_request) for gateway in self._gateways)

    # --- between gateways -------------------------------------------------------------------------------------------------

    def publish(self, sender: SimulatedGateway, batch: PeerBatch, now: float) -> None:
        """The others know it a little later."""
        arrivals = self._network.delivery_times(now, self.delays.publish_seconds)
        if arrivals:
            self.stream.append((now, sender.name, batch))
        for at in arrivals:
            self._simulation().schedule(at, partial(self._deliver, sender.name, batch))

    def schedule(self, at: float, action: Callable[[float], None]) -> None:
        """As the course's."""
        self._simulation().schedule(at, action)

    def send(self, request: str, instance: str, now: float) -> None:
        """As the course's."""
        self._simulation().send(request, instance, now)

    def _simulation(self) -> FleetSimulation:
        assert self.simulation is not None, "nothing happens before the course begins"
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
        if self.hot.refresh(self._gateways, now):
            for at in self._network.delivery_times(now, self.delays.publish_seconds):
                self.schedule(at, partial(self._deliver_hot_prefixes, self.hot.epoch, self.hot.table))
        self.schedule(now + _LIMITS.hot_prefix_poll_seconds, self._publish_hot_prefixes)

    def _deliver_hot_prefixes(self, epoch: int, table: frozenset[int], now: float) -> None:
        for gateway in self._all:
            gateway.router.set_hot_prefixes(epoch, table)

    def _pick_gateway(self, request: TraceRequest) -> int:
        if self._by_session and request.session is not None:
            return xxhash.xxh3_64_intdigest(request.session.encode(), self._seed) % len(self._gateways)
        return self._random.randrange(len(self._gateways))

    def _gateway_of_lost(self, request: str) -> SimulatedGateway | None:
        """A gateway that is there chooses anew itself; a client whose gateway is gone comes back to any."""
        left, self._last_lost = self._last_lost, None
        return left[1] if left is not None and left[0] == request and not left[1].is_gone else None

    def _replace_gateway(self, index: int, now: float) -> None:
        """What it has in flight goes on; who comes in its place has only what others know."""
        old = self._gateways[index]
        old.is_leaving = True
        new = self._gateways[index] = self._start_gateway()
        self._all = [gateway for gateway in self._all if not gateway.is_gone] + [new]
        new.start(now + self.delays.round_seconds, shares=len(self._gateways) > 1)
        new.read_history(now)

    def _start_gateway(self) -> SimulatedGateway:
        self._started += 1
        return SimulatedGateway(self, f"gateway {self._started}")

    def cores(self) -> Mapping[str, EngineCore]:
        """The engines, for perfect knowledge."""
        return self._simulation().cores


class _HotPrefixTable:
    """The table of hot prefixes and who keeps it; who finds it kept by nobody keeps it from then on."""

    def __init__(self) -> None:
        self.epoch = 0
        self.table: frozenset[int] = frozenset()
        self._owner: SimulatedGateway | None = None
        self._lease_until = 0.0

    def refresh(self, gateways: Sequence[SimulatedGateway], now: float) -> bool:
        """Whether the table has changed; a keeper that has left is followed when its lease is over."""
        if self._owner is None or self._owner.is_leaving:
            if self._owner is not None and now < self._lease_until:
                return False
            self._owner = gateways[0]
            if self.epoch:
                self._owner.hot_prefixes.start_from_table(self.table)
        self._lease_until = now + _LIMITS.hot_prefix_lease_seconds
        table = frozenset(self._owner.hot_prefixes.top_prefixes(_LIMITS.hot_prefixes))
        if self.epoch and table == self.table:
            return False
        self.table = table  # type: ignore[assignment]
        self.epoch += 1
        return True
