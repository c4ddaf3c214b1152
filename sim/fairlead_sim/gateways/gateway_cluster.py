"""Several simulated gateways that share what they know, as one router of a fleet simulation.

Like a live gateway, each queues a request only behind its own requests and never moves one to
another engine. The cluster decides when each message reaches it. A gateway is the production router
with the pure cores around it: outbox, peers' state, shared load row,
KV-event translation and the queue of assigned requests. Delays replace Redis and sockets:

- every ``round_seconds`` a gateway publishes its routed prompts and in-flight load; its peers
  receive them ``publish_seconds`` later
- ``index_seconds`` after a step gateways receive the engine's KV events

A restarted gateway finishes its requests in flight. Its successor takes new requests and starts
with the stream (the last ``dispatch_retention_seconds``) and the index. A gateway reroutes requests
that it loses before their first token. The requests of a killed gateway return to any gateway.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final

import xxhash

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead_gateway.kv_index.links import estimate_links
from fairlead_gateway.kv_index.messages import PREFIX_MAP_CORRECTION_SECONDS
from fairlead_gateway.kv_index.translator import PrefixTranslator
from fairlead_gateway.peers.peer_messages import PeerBatch, PeerLoad, PeerLoadRow, SentPrompt
from fairlead_gateway.peers.peer_outbox import HEARTBEAT_SECONDS, PeerOutbox
from fairlead_gateway.peers.peer_state import PeerState
from fairlead_gateway.peers.supervisor.peer_exchange import DISPATCH_RETENTION_SECONDS
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable, table_bytes
from fairlead_gateway.routing.prefix.cache_view import SHARED_STORE
from fairlead_gateway.routing.prefix.prefix_hash import block_ends, shared_bytes
from fairlead_gateway.routing.router import DispatchHooks
from fairlead_kvstore.blockstore import changes as index_changes
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, shared_store_id
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent
from fairlead_sim.engine.lower_tiers import LowerTier, find_tiers
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.fleet.packet_simulator import NO_FAULTS, PacketSimulator
from fairlead_sim.fleet.simulation import Action, FleetOptions, SimulationContext
from fairlead_sim.gateways.late_binding import Dispatcher
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, RoutingOptions, instances_of, synthetic_chain
from fairlead_sim.workload.trace_prompts import BYTES_PER_TOKEN, trace_keys
from fairlead_sim.workload.traces import TraceRequest

_MODEL_KEY: Final = f"{NAMESPACE}/{MODEL}"
_SHARED_STORE: Final = shared_store_id(_MODEL_KEY)

_SECRET_FINGERPRINT = b"one secret for all"


class ReportedIndex:
    """The blocks of engines by their KV events (`ReportedBlocks`), and events as index changes.

    Only the first and the last copy of a block in a tier change the index. Blocks of a store that
    all engines reach are hints without end.
    """

    def __init__(self, engines: Sequence[str]) -> None:
        self._copies: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in engines}
        self._shared: set[int] = set()
        self._epoch = 0

    def instances(self) -> Sequence[str]:
        return list(self._copies)

    def tiers(self, instance: str, block_hash: int) -> int:
        """Returns where an engine, or the store that all reach, has a block: a bit for each tier;
        0: nowhere.
        """
        if instance == _SHARED_STORE:
            return int(block_hash in self._shared)
        copies = self._copies.get(instance, ())
        return ((block_hash, 0) in copies) | ((block_hash, 1) in copies) << 1 | ((block_hash, 2) in copies) << 2

    def completeness(self, instance: str) -> tuple[bool, str, float] | None:
        return (True, "", 0.0) if instance in self._copies else None

    def block_size(self, instance: str) -> int | None:
        """Returns None, since prompts are linked with the block size of the fleet."""
        return None

    def touch(self, instance: str, hashes: Sequence[int], now: float) -> None:
        """Does nothing, since no age of a block is needed."""

    def remove_instance(self, instance: str) -> list[index_changes.Change]:
        """Drops the cache of an instance that left. Returns the index changes."""
        self._copies[instance].clear()
        self._epoch += 1
        return [
            index_changes.InstanceCleared(instance, self._epoch, "left"),
            index_changes.CompletenessChanged(instance, True, "", 0.0),
        ]

    def apply_events(self, instance: str, events: Sequence[KvEvent]) -> list[index_changes.Change]:
        """Applies the KV events of an instance. Returns the index changes in order."""
        copies = self._copies[instance]
        changes: list[index_changes.Change] = []
        for event in events:
            match event:
                case BlocksStored() if (tier := StorageTier[event.tier.upper()]) is StorageTier.REMOTE:
                    self._shared.update(event.keys)
                    stored = index_changes.BlocksStored(_SHARED_STORE, StorageTier.GPU, list(event.keys))
                    changes.append(stored)
                case BlocksStored():
                    new = [key for key in event.keys if not copies[key, tier.value]]
                    copies.update([(key, tier.value) for key in event.keys])
                    changes.append(index_changes.BlocksStored(instance, tier, new))
                case BlockEvicted():
                    tier = StorageTier[event.tier.upper()]
                    copies[event.key, tier.value] -= 1
                    if copies[event.key, tier.value] <= 0:
                        del copies[event.key, tier.value]
                        changes.append(index_changes.BlocksRemoved(instance, tier, [event.key]))
                case CacheCleared():
                    copies.clear()
                    changes.append(index_changes.InstanceCleared(instance, 0, "cleared"))
        return changes


def cached_or_pending_blocks(core: EngineCore, keys: Sequence[int], tiers: Sequence[LowerTier]) -> int:
    """Returns how many blocks of a prompt an engine has cached, in its KV memory or these tiers, or
    is about to compute.
    """
    matched = core.matched_blocks(keys, tiers)
    for sequence in core.sequences():
        shared = 0
        for key, wanted in zip(sequence.keys[matched:], keys[matched:], strict=False):
            if key != wanted:
                break
            shared += 1
        if shared:
            matched += shared
    return matched


@dataclass(frozen=True, slots=True)
class SharingOptions:
    """The information that simulated gateways have of one another and of the engines.

    - sent: prompts that other gateways routed.
    - loads: in-flight load of other gateways, as expected by now. ``raw_loads``: as last published.
    - pins: the engine that served a session last, for clients that name their session.
    - index: KV events of the engines.
    - perfect: before each choice, what every engine has cached, or is about to compute for requests
      of all gateways. It replaces all other knowledge of caches.
    - round_seconds: interval of publication; ``publish_seconds`` and ``index_seconds``: delays.
    """

    sent: bool = True
    loads: bool = True
    pins: bool = False
    index: bool = False
    raw_loads: bool = False
    perfect: bool = False
    round_seconds: float = 0.05
    publish_seconds: float = 0.05
    index_seconds: float = 0.05


NO_SHARING = SharingOptions(sent=False, loads=False)
PERFECT_KNOWLEDGE = SharingOptions(sent=False, loads=True, perfect=True)


@dataclass(frozen=True, slots=True)
class GatewayRestart:
    """A restart of one gateway at the arrival of the request with this number."""

    gateway: int
    at_request: int


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """A cluster of gateways.

    by_session: all requests of a session go to one gateway; otherwise each goes to a random one.
    stated_profile: what gateways take for the engines' profile; None: the real one.
    """

    gateways: int = 1
    sharing: SharingOptions = SharingOptions()
    by_session: bool = False
    restart: GatewayRestart | None = None
    stated_profile: EngineProfile | None = None


class SimulatedGateway:
    """One gateway process of a simulated cluster."""

    def __init__(self, cluster: "GatewayCluster", name: str) -> None:
        self.name = name
        self._cluster = cluster
        self._slots = {engine: slot for slot, engine in enumerate(cluster.fleet.engine_names)}
        cells = memoryview(bytearray(table_bytes(2, len(self._slots)))).cast("q")
        rows = SharedLoadTable(cells, len(self._slots), 0)
        rows.set_slots(self._slots)
        self._peer_row = PeerLoadRow(cells, len(self._slots), 1)
        self._peer_row.set_slots(self._slots)
        rows.set_active_rows([1])
        self.outbox = PeerOutbox(_SECRET_FINGERPRINT)
        self.peers = PeerState(_SECRET_FINGERPRINT)
        self.translator = PrefixTranslator(cluster.routing.model.key, cluster.index, secret=cluster.routing.secret)
        self._inflight: dict[str, tuple[str, int]] = {}
        self.is_leaving = False
        self.is_gone = False
        self.unreachable: frozenset[str] = frozenset()
        self._last_beat = float("-inf")
        self.router = ModelRouter(
            secret=cluster.routing.secret,
            seed=0,
            shared_loads=rows,
            hooks=DispatchHooks(self._on_routed, lambda *_: None, is_shared=True),
        )
        profile = cluster.stated_profile
        self.router.update(cluster.routing.model, instances_of(cluster.live, profile, cluster.fleet.pull))
        self._dispatcher = Dispatcher(
            self.router, profile, cluster.send_queued_request, cluster.schedule, rebalances=False
        )

    def start(self, at: float, *, shares: bool) -> None:
        """Starts the rounds of publication and correction."""
        sharing = self._cluster.sharing
        if shares and (sharing.sent or sharing.loads):
            self._cluster.schedule(at, self._publish)
        if sharing.index:
            self._cluster.schedule(at, self._apply_corrections)

    def read_history(self, now: float) -> None:
        """Reads the stream and the index, as a new gateway reads Redis."""
        for at, name, batch in self._cluster.stream:
            if now - at <= DISPATCH_RETENTION_SECONDS:
                self.receive(name, batch, now, live=False)
        self.translator.resend_all()

    # --- requests -------------------------------------------------------------------------------------------------------

    def route(self, request: TraceRequest, chain: PrefixChain, now: float) -> tuple[str | None, str]:
        """Chooses an engine and sends or queues the request.

        Returns the engine or ``QUEUED``, without a reason; None and the reason if none was chosen.
        """
        pin = None
        if self._cluster.sharing.pins and request.session is not None:
            pin = xxhash.xxh3_64_intdigest(request.session.encode())
        tokens, output = request.prompt_tokens, request.output_tokens
        route_request = RouteRequest(request.id, chain, tokens, output, request.session, session_hash=pin)
        if self._cluster.sharing.perfect:
            self._learn_true_cache(request, chain)
        decision = self.router.choose_instance(route_request, now, excluded=self.unreachable)
        chosen = self._cluster.routing.choices.get(request.id, decision.chosen)
        if chosen is None:
            return None, decision.reason
        if decision.source is not None and chosen == decision.chosen:
            self._cluster.pull_prefix(request.id, decision.source)
        to = self._dispatcher.dispatch(route_request, chosen, now)
        if self._cluster.sharing.perfect:
            self._cluster.assigned[request.id] = (chosen, chain)
        if self._cluster.sharing.index:
            self._link_prefix(request, chain, chosen, now)
        return to, ""

    def on_first_token(self, request: str, now: float) -> None:
        self._dispatcher.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._dispatcher.on_finished(sequence, now)
        self._on_request_ended(sequence.id, now)

    def on_abandoned(self, request: str, now: float) -> None:
        self._dispatcher.on_abandoned(request, now)
        self._on_request_ended(request, now)

    def remove_unreached(self, reached: Sequence[str], now: float) -> list[str]:
        """Drops and returns the requests queued for engines other than ``reached``."""
        queued = self._dispatcher.retain(reached, now)
        for request in queued:
            self._on_request_ended(request, now)
        return queued

    def _on_request_ended(self, request: str, now: float) -> None:
        self._cluster.assigned.pop(request, None)
        sent = self._inflight.pop(request, None)
        if sent is not None:
            self.translator.on_finish(*sent, now)

    def _learn_true_cache(self, request: TraceRequest, chain: PrefixChain) -> None:
        block_tokens = self._cluster.fleet.block_tokens
        keys = trace_keys(request.blocks, request.prompt_tokens, block_tokens)
        assigned = Counter[str]()
        for engine, other in self._cluster.assigned.values():
            assigned[engine] = max(assigned[engine], shared_bytes(chain, other))

        def chain_of(blocks: int, size: int = 0) -> list[tuple[Hashable, ...]]:
            cached = bisect_left(chain.ends, max(blocks * block_tokens * BYTES_PER_TOKEN, size) + 1)
            return [chain.hashes[:cached]] if cached else []

        for name, core in self._cluster.engine_cores().items():
            cached = chain_of(cached_or_pending_blocks(core, keys, []), assigned[name])
            self.router.apply_correction(name, "told", chain.hashes[:1], cached)
            own = [tier for tier in core.lower_tiers if not tier.is_shared]
            for number, tier in enumerate(own):
                blocks = cached_or_pending_blocks(core, keys, own[: number + 1])
                self.router.apply_correction(name, "", (), chain_of(blocks), StorageTier[tier.name.upper()].value)
            shared = [tier for tier in core.lower_tiers if tier.is_shared]
            self.router.apply_correction(SHARED_STORE, "", (), chain_of(len(find_tiers(shared, keys))))

    def _link_prefix(self, request: TraceRequest, chain: PrefixChain, chosen: str, now: float) -> None:
        block_tokens = self._cluster.fleet.block_tokens
        self._inflight[request.id] = (chosen, chain.tail)
        self.translator.on_dispatch(chosen, chain.tail, chain.hashes, now, reports_end=True)
        self.translator.add_links(
            estimate_links(
                chain.hashes,
                chain.ends,
                trace_keys(request.blocks, request.prompt_tokens, block_tokens),
                size=request.prompt_tokens * BYTES_PER_TOKEN,
                tokens=request.prompt_tokens,
                block_size=block_tokens,
            )
        )

    # --- exchange with peers --------------------------------------------------------------------------------------------

    def _on_routed(self, model: str, request: RouteRequest, instance: str, is_indexed: bool) -> None:
        chain, pin = request.chain, request.session_hash
        if self._cluster.sharing.sent:
            self.outbox.add(
                MODEL, instance, array("Q", chain.hashes).tobytes(), chain.tail, pin if isinstance(pin, int) else 0
            )

    def _publish(self, now: float) -> None:
        if self.is_gone:
            return
        loads: dict[str, PeerLoad] = {}
        if self._cluster.sharing.loads:
            for name, load in self.router.loads().items():
                if load.inflight:
                    loads[name] = (
                        load.inflight,
                        load.waiting,
                        load.backlog_seconds,
                        load.inflight_tokens,
                        load.queued,
                    )
        is_beat = now - self._last_beat >= HEARTBEAT_SECONDS / 2
        if is_beat:
            self._last_beat = now
        for model, batch in self.outbox.take_due([MODEL], {MODEL: loads} if loads else {}, now, is_beat=is_beat):
            self.outbox.on_written(model, batch, now)
            self._cluster.publish(self.name, batch, now)
        if self.is_leaving and not any(load.inflight for load in self.router.loads().values()):
            for _, batch in self.outbox.farewell_batches():
                self._cluster.publish(self.name, batch, now)
            self.is_gone = True
        else:
            self._cluster.schedule(now + self._cluster.sharing.round_seconds, self._publish)
        self._refresh_peer_loads(now)

    def receive(self, name: str, batch: PeerBatch, now: float, *, live: bool) -> None:
        """Applies a batch of another gateway.

        live: False for a batch from before this gateway started.
        """
        sharing = self._cluster.sharing
        for item in self.peers.apply_batch(MODEL, name, batch, now, is_live=live):
            self._apply_routed(item, now)
        if live and sharing.loads:
            self._refresh_peer_loads(now)

    def _apply_routed(self, item: SentPrompt, now: float) -> None:
        sharing = self._cluster.sharing
        instance, packed, tail, pin = item
        hashes = tuple(array("Q", packed))
        chain = PrefixChain(hashes, block_ends(len(hashes)), tail)
        if sharing.sent:
            self.router.on_peer_dispatch(instance, chain, now, pin or None)
            if sharing.index:
                self.translator.on_dispatch(instance, tail, hashes, now, reports_end=False)

    def _refresh_peer_loads(self, now: float) -> None:
        self.peers.expire(now)
        uses_reported = self._cluster.sharing.raw_loads
        self._peer_row.set_loads(
            self.peers.reported_loads() if uses_reported else self.peers.expected_loads({MODEL: (self._cluster.live,)})
        )

    def _apply_corrections(self, now: float) -> None:
        if self.is_gone:
            return
        for correction in self.translator.take_corrections(now):
            cached = [tuple(array("Q", chain)) for chain in correction.cached]
            self.router.apply_correction(
                correction.instance, correction.forget.value, array("Q", correction.removed), cached, correction.tier
            )
        self._cluster.schedule(now + PREFIX_MAP_CORRECTION_SECONDS, self._apply_corrections)


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
        self.stated_profile = options.stated_profile or fleet.profile
        self.live = fleet.engine_names
        self.index = ReportedIndex(fleet.engine_names)
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
        self.assigned: dict[str, tuple[str, PrefixChain]] = {}  # by request in flight, for perfect knowledge
        self._last_gateway = self._gateways[0]
        self._last_lost: tuple[str, SimulatedGateway] | None = None  # the request lost last, and its gateway

    # --- RouterFront --------------------------------------------------------------------------------------------

    def start(self, simulation: SimulationContext) -> None:
        """Starts all gateways, spread over one round."""
        self.simulation = simulation
        has_peers = len(self._gateways) > 1
        for index, gateway in enumerate(self._gateways):
            gateway.start(self.sharing.round_seconds * (1 + index / len(self._gateways)), shares=has_peers)

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Routes the request through one of the gateways."""
        restart = self.options.restart
        if restart is not None and self._routed == restart.at_request:
            self.restart_gateway(restart.gateway, now)
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
            gateway.router.update(self.routing.model, instances_of(live_engines, self.stated_profile, self.fleet.pull))
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
        return self._gateway_of.get(request, self._last_gateway).unreachable

    def restart_gateway(self, index: int, now: float) -> None:
        """Lets a gateway finish its requests, and starts its successor with what the peers know."""
        old = self._gateways[index]
        old.is_leaving = True
        new = self._gateways[index] = self._start_gateway()
        self._all = [gateway for gateway in self._all if not gateway.is_gone] + [new]
        new.start(now + self.sharing.round_seconds, shares=len(self._gateways) > 1)
        new.read_history(now)

    def kill_gateway(self, gateway: int, now: float) -> None:
        """Kills one gateway and starts another in its place.

        Its answers are cut; requests without a first token arrive again.
        """
        old = self._gateways[gateway]
        old.is_gone = True
        old.remove_unreached((), now)  # drops what it queued
        self.restart_gateway(gateway, now)
        self._gateways[gateway].unreachable = old.unreachable
        self._reroute([name for name, owner in self._gateway_of.items() if owner is old], now)

    def _reroute(self, requests: Sequence[str], now: float) -> None:
        for request in requests:
            self.on_lost(request, now)
            self._simulation().interrupt_request(request, now)

    def loads(self) -> list[Mapping[str, InstanceLoad]]:
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

    def pull_prefix(self, request: str, source: str) -> None:
        self._simulation().pull_prefix(request, source)

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

    def _publish_index_changes(self, changes: Sequence[index_changes.Change]) -> None:
        for gateway in self._all:
            gateway.translator.on_changes(changes)

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

    def _start_gateway(self) -> SimulatedGateway:
        self._started += 1
        return SimulatedGateway(self, f"gateway {self._started}")

    def engine_cores(self) -> Mapping[str, EngineCore]:
        return self._simulation().engine_cores
