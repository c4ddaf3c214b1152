"""One gateway of a simulated cluster: the production router and the pure cores around it.

Like a live gateway, it queues a request only behind its own requests and never moves one to another
engine. The cluster decides when each message reaches it.

The KV-cache index that gateways build from simulated engines' events, and the true cache.

The size of a simulated gateway cluster, and the information that its gateways share.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import xxhash

from fairlead.limits import Limits
from fairlead_gateway.ipc.messages import PREFIX_MAP_CORRECTION_SECONDS
from fairlead_gateway.prefix_map.prompt_alignment import estimate_alignment
from fairlead_gateway.prefix_map.translator import PrefixTranslator
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable, table_bytes
from fairlead_gateway.routing.prefix.hot_prefixes import HotPrefixes
from fairlead_gateway.routing.prefix.prefix_hash import block_ends
from fairlead_gateway.routing.router import DispatchHooks
from fairlead_gateway.supervisor.peers.peer_exchange import DISPATCH_RETENTION_SECONDS
from fairlead_gateway.supervisor.peers.peer_messages import PeerBatch, PeerLoad, PeerLoadRow, SentPrompt
from fairlead_gateway.supervisor.peers.peer_outbox import HEARTBEAT_SECONDS, PeerOutbox
from fairlead_gateway.supervisor.peers.peer_state import PeerState
from fairlead_kvstore.blockstore import changes as said
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.fleet.simulation import Action, FleetOptions
from fairlead_sim.gateways.late_binding import Dispatcher
from fairlead_sim.gateways.single_gateway import MODEL, RoutingOptions, instances_of
from fairlead_sim.workload.trace_prompts import BYTES_PER_TOKEN, trace_keys
from fairlead_sim.workload.traces import TraceRequest


class ReportedIndex:
    """A translator of engines' KV events to index changes, with the resulting index replica.

    Only the first and the last copy of a block change the index.
    """

    def __init__(self, engines: Sequence[str]) -> None:
        self.mirror = IndexReplica()
        self._copies: dict[str, Counter[int]] = {name: Counter() for name in engines}
        self._epoch = 0
        self.mirror.apply([said.CompletenessChanged(name, True, "", 0.0) for name in engines])

    def remove_instance(self, instance: str) -> list[said.Change]:
        """Drops the cache of an instance that left. Returns the index changes."""
        self._copies[instance].clear()
        self._epoch += 1
        changes: list[said.Change] = [
            said.InstanceCleared(instance, self._epoch, "left"),
            said.CompletenessChanged(instance, True, "", 0.0),
        ]
        self.mirror.apply(changes)
        return changes

    def apply_events(self, instance: str, events: Sequence[KvEvent]) -> list[said.Change]:
        """Applies the KV events of an instance. Returns the index changes in order."""
        copies = self._copies[instance]
        changes: list[said.Change] = []
        for event in events:
            match event:
                case BlocksStored():
                    new = [key for key in event.keys if not copies[key]]
                    copies.update(event.keys)
                    changes.append(said.BlocksStored(instance, StorageTier.GPU, event.parent or 0, new))
                case BlockEvicted():
                    copies[event.key] -= 1
                    if copies[event.key] <= 0:
                        del copies[event.key]
                        changes.append(said.BlocksRemoved(instance, StorageTier.GPU, [event.key]))
                case CacheCleared():
                    copies.clear()
                    changes.append(said.InstanceCleared(instance, 0, "cleared"))
        self.mirror.apply(changes)
        return changes


def cached_or_pending_blocks(core: EngineCore, keys: Sequence[int]) -> int:
    """Returns how many blocks of a prompt an engine has cached or is about to compute."""
    matched = len(core.pool.match(keys, len(keys)))
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
    - hot: one table of hot prefixes for all gateways.
    - pins: the engine that served a session last, for clients that name their session.
    - index: KV events of the engines.
    - perfect: before each choice, what every engine has cached or is about to compute. It replaces
      all other knowledge of caches.
    - round_seconds: interval of publication; ``publish_seconds`` and ``index_seconds``: delays.
    """

    sent: bool = True
    loads: bool = True
    hot: bool = True
    pins: bool = False
    index: bool = False
    raw_loads: bool = False
    perfect: bool = False
    round_seconds: float = 0.05
    publish_seconds: float = 0.05
    index_seconds: float = 0.05


NO_SHARING = SharingOptions(sent=False, loads=False, hot=False)
PERFECT_KNOWLEDGE = SharingOptions(sent=False, loads=True, hot=True, perfect=True)


@dataclass(frozen=True, slots=True)
class GatewayRestart:
    """A restart of one gateway at the arrival of the request with this number."""

    gateway: int
    at_request: int


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """A cluster of gateways.

    by_session: all requests of a session go to one gateway; otherwise each goes to a random one.
    """

    gateways: int = 1
    sharing: SharingOptions = SharingOptions()
    by_session: bool = False
    restart: GatewayRestart | None = None


_LIMITS = Limits()
_SECRET_FINGERPRINT = b"one secret for all"


class GatewayContext(Protocol):
    """The cluster, as one of its gateways sees it.

    - live: engines in service.
    - stream: published batches (time, sender, batch), as Redis keeps them.
    """

    fleet: FleetOptions
    routing: RoutingOptions
    sharing: SharingOptions
    index: ReportedIndex
    live: Sequence[str]
    stream: list[tuple[float, str, PeerBatch]]

    def schedule(self, at: float, action: Action) -> None: ...

    def send_queued_request(self, request: str, instance: str, now: float) -> None: ...

    def publish(self, sender: str, batch: PeerBatch, now: float) -> None:
        """Delivers a gateway's batch to its peers after ``publish_seconds``."""

    def hot_prefixes(self) -> tuple[int, frozenset[int]]:
        """Returns the epoch and the entries of the hot-prefix table."""

    def engine_cores(self) -> Mapping[str, EngineCore]:
        """Returns the engines, for perfect sharing."""


class SimulatedGateway:
    """One gateway process of a simulated cluster."""

    def __init__(self, cluster: GatewayContext, name: str) -> None:
        self.name = name
        self._cluster = cluster
        self._slots = {engine: slot for slot, engine in enumerate(cluster.fleet.engine_names)}
        cells = memoryview(bytearray(table_bytes(2, len(self._slots)))).cast("q")
        rows = SharedLoadTable(cells, len(self._slots), 0)
        rows.set_slots(self._slots)
        self._peer_row = PeerLoadRow(cells, len(self._slots), 1)
        self._peer_row.set_slots(self._slots)
        rows.set_active_rows([1])
        self.outbox = PeerOutbox(_SECRET_FINGERPRINT, _LIMITS)
        self.peers = PeerState(_SECRET_FINGERPRINT, _LIMITS)
        self.hot_prefixes = HotPrefixes()
        self.translator = PrefixTranslator(
            cluster.routing.model.key, cluster.index.mirror, secret=cluster.routing.secret
        )
        self._inflight: dict[str, tuple[str, int]] = {}
        self.is_leaving = False
        self.is_gone = False
        self.unreachable: frozenset[str] = frozenset()
        self._last_beat = float("-inf")
        self.router = ModelRouter(
            secret=cluster.routing.secret,
            seed=0,
            shared_loads=rows,
            hooks=DispatchHooks(self._on_routed, lambda *_: None, is_shared=True, has_index=False),
        )
        profile = cluster.fleet.profile
        self.router.update(cluster.routing.model, instances_of(cluster.live, profile))
        self._dispatcher = Dispatcher(
            self.router, profile, cluster.send_queued_request, cluster.schedule, rebalances=False
        )

    def start(self, at: float, *, shares: bool) -> None:
        """Starts the rounds of publication and correction."""
        sharing = self._cluster.sharing
        if shares and (sharing.sent or sharing.loads or sharing.hot):
            self._cluster.schedule(at, self._publish)
        if sharing.index:
            self._cluster.schedule(at, self._apply_corrections)

    def read_history(self, now: float) -> None:
        """Reads the stream, the hot-prefix table and the index, as a new gateway reads Redis."""
        for at, name, batch in self._cluster.stream:
            if now - at <= DISPATCH_RETENTION_SECONDS:
                self.receive(name, batch, now, live=False)
        epoch, table = self._cluster.hot_prefixes()
        if self._cluster.sharing.hot and epoch:
            self.router.set_hot_prefixes(epoch, table)
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
        to = self._dispatcher.dispatch(route_request, chosen, now)
        if self._cluster.sharing.index:
            self._link_prefix(request, chain, chosen, now)
        return to, ""

    def on_first_token(self, request: str, now: float) -> None:
        self._dispatcher.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._dispatcher.on_finished(sequence, now)
        self._on_request_ended(sequence.id, now)

    def on_abandoned(self, request: str, now: float) -> None:
        """Drops a request that was rejected, or whose engine was lost or is unreachable."""
        self._dispatcher.on_abandoned(request, now)
        self._on_request_ended(request, now)

    def remove_unreached(self, reached: Sequence[str], now: float) -> list[str]:
        """Drops and returns the requests queued for engines other than ``reached``."""
        queued = self._dispatcher.retain(reached, now)
        for request in queued:
            self._on_request_ended(request, now)
        return queued

    def _on_request_ended(self, request: str, now: float) -> None:
        sent = self._inflight.pop(request, None)
        if sent is not None:
            self.translator.on_finish(*sent, now)

    def _learn_true_cache(self, request: TraceRequest, chain: PrefixChain) -> None:
        keys = trace_keys(request.blocks, request.prompt_tokens, self._cluster.fleet.block_tokens)
        for name, core in self._cluster.engine_cores().items():
            blocks = cached_or_pending_blocks(core, keys)
            cached = bisect_left(chain.ends, blocks * self._cluster.fleet.block_tokens * BYTES_PER_TOKEN + 1)
            self.router.apply_correction(name, "all", (), [chain.hashes[:cached]] if cached else [])

    def _link_prefix(self, request: TraceRequest, chain: PrefixChain, chosen: str, now: float) -> None:
        block_tokens = self._cluster.fleet.block_tokens
        self._inflight[request.id] = (chosen, chain.tail)
        self.translator.on_dispatch(chosen, chain.tail, chain.hashes, now, reports_end=True)
        self.translator.add_alignment(
            estimate_alignment(
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
        sharing, chain, pin = self._cluster.sharing, request.chain, request.session_hash
        if sharing.hot:
            self.hot_prefixes.observe(chain, len(self._slots))
        if sharing.sent or sharing.hot:
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
        if sharing.hot:
            self.hot_prefixes.observe(chain, len(self._slots))
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
                correction.instance, correction.forget.value, array("Q", correction.removed), cached
            )
        self._cluster.schedule(now + PREFIX_MAP_CORRECTION_SECONDS, self._apply_corrections)
