"""An outside tool in front of simulated engines: it drives cores through the router seam.

Each gateway has its own core. A core sees what an outside tool would know of an endpoint:

- the counters of this gateway, exact
- those of the other gateways, ``loads_seconds`` late
- the cache by KV events and by the decisions of all gateways, ``sent_seconds`` late

Gateways that share nothing see their own counters and no cached prefix.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from xxhash import xxh3_64_intdigest

from fairlead_sim.adapters.external_request import ExternalRequest
from fairlead_sim.engine.block_pool import BlockEvicted, BlocksStored, CacheCleared, KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.packet_simulator import NO_FAULTS, PacketSimulator
from fairlead_sim.fleet.simulation import QUEUED, SimulationContext
from fairlead_sim.gateways.late_binding import LateBindingQueue
from fairlead_sim.workload.trace_prompts import trace_keys
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

_INFLIGHT_COUNTER: Final = 0
_WAITING_COUNTER: Final = 1
_PENDING_PREFILL_COUNTER: Final = 2
_TOKENS_COUNTER: Final = 3


@dataclass(frozen=True, slots=True)
class SharingDelays:
    """The delays of what gateways share.

    sent_seconds: of decisions and KV events; ``loads_seconds``: of loads.
    """

    sent_seconds: float = 0.0
    loads_seconds: float = 0.0


class ExternalEndpoint:
    """An engine as one gateway offers it to its core."""

    def __init__(
        self,
        id: str,
        counters: Sequence[float],
        kv_tokens: int,
        matched_tokens: int | None,
        held: Sequence[ExternalRequest],
    ) -> None:
        self.id = id
        self.up = True
        self.inflight = int(counters[_INFLIGHT_COUNTER])
        self.waiting = int(counters[_WAITING_COUNTER])
        self.running = self.inflight - self.waiting
        self.held = held
        self.pending_prefill_tokens = counters[_PENDING_PREFILL_COUNTER]
        self.inflight_tokens = counters[_TOKENS_COUNTER]
        self.kv_util = min(1.0, self.inflight_tokens / kv_tokens)
        self.matched_tokens = matched_tokens


class _CoreOrder:
    """The late-binding interface of a core behind the seam."""

    def __init__(self, gateway: "ExternalGateway") -> None:
        self._gateway = gateway

    def queue_sort_key(self, request_id: str) -> Any:
        return self._gateway.core.order_key(self._gateway.router.requests[request_id])

    def rebalance(self, queued_ids: Mapping[str, Sequence[str]], now: float) -> list[tuple[str, str]]:
        gateway, requests = self._gateway, self._gateway.router.requests
        endpoints = gateway.endpoints(
            (), {name: [requests[request_id] for request_id in queued] for name, queued in queued_ids.items()}
        )
        moves = [(request.id, to) for request, to in gateway.core.rebalance(endpoints, now)]
        for request, to in moves:
            gateway.move(request, to, now)
        return moves


class ExternalGateway:
    """A simulated gateway: one core, and the load counters of its requests by engine."""

    def __init__(self, router: "ExternalRouter", core: Any) -> None:
        self.router = router
        self.core = core
        self.queue: LateBindingQueue | None = None
        self.counters: dict[str, list[float]] = {}
        self.published: dict[str, list[float]] = {}
        self.unreachable: frozenset[str] = frozenset()
        self._inflight: dict[str, tuple[str, list[float]]] = {}

    def inflight_requests(self, engines: frozenset[str] | None = None) -> list[str]:
        return [request for request, (to, _) in self._inflight.items() if engines is None or to in engines]

    def endpoints(self, blocks: Sequence[int], held: Mapping[str, Sequence[ExternalRequest]]) -> list[ExternalEndpoint]:
        """Returns the engines in service that this gateway reaches."""
        endpoints, sharing = [], self.router.sharing
        for name in self.router.live:
            if name in self.unreachable:
                continue
            counters = list(self.counters.get(name, (0.0, 0.0, 0.0, 0.0)))
            if sharing is not None:
                for peer in self.router.gateways:
                    if peer is not self and name in peer.published:
                        counters = [own + theirs for own, theirs in zip(counters, peer.published[name], strict=True)]
            matched = None if sharing is None else self.router.matched_blocks(name, blocks) * TRACE_BLOCK_TOKENS
            endpoints.append(ExternalEndpoint(name, counters, self.router.kv_tokens, matched, held.get(name, ())))
        return endpoints

    def count_sent(self, request: ExternalRequest, to: str, now: float) -> None:
        """Adds a request to the counters of engine ``to``."""
        hit = self.router.matched_blocks(to, request.blocks) * TRACE_BLOCK_TOKENS
        counted = [1.0, 1.0, float(max(0, request.prompt_tokens - hit)), float(request.prompt_tokens)]
        self._inflight[request.id] = to, counted
        self._add(to, counted, now)

    def move(self, request: str, to: str, now: float) -> None:
        """Moves a queued request to another engine, in the counters and in the shared decisions."""
        self.count_ended(request, now)
        self.count_sent(self.router.requests[request], to, now)
        self.router.forget_decision(request, now)
        self.router.publish_decision(request, to, now)

    def count_first_token(self, request: str, now: float) -> str | None:
        """Removes the prefill of a request from the counters.

        Returns its engine; None if it is not in flight.
        """
        entry = self._inflight.get(request)
        if entry is None:
            return None
        to, counted = entry
        self._add(to, [0.0, -counted[_WAITING_COUNTER], -counted[_PENDING_PREFILL_COUNTER], 0.0], now)
        counted[_WAITING_COUNTER] = counted[_PENDING_PREFILL_COUNTER] = 0.0
        return to

    def count_ended(self, request: str, now: float) -> str | None:
        """Removes a request from the counters. Returns its engine; None if it is not in flight."""
        entry = self._inflight.pop(request, None)
        if entry is None:
            return None
        self._add(entry[0], [-value for value in entry[1]], now)
        return entry[0]

    def _add(self, to: str, delta: list[float], now: float) -> None:
        _add_counters(self.counters, to, delta)
        sharing = self.router.sharing
        if sharing is not None and len(self.router.gateways) > 1:
            published = tuple(delta)
            self.router.schedule(now + sharing.loads_seconds, lambda _: _add_counters(self.published, to, published))


class ExternalRouter:
    """An outside tool as the router of a fleet simulation.

    - cores: one per gateway; ``seed`` draws the gateway of each request.
    - sharing: None if neither gateways nor engines share anything.
    """

    def __init__(
        self,
        cores: Sequence[Any],
        engine_names: Sequence[str],
        *,
        kv_tokens: int,
        sharing: SharingDelays | None,
        seed: int = 0,
        network: PacketSimulator = NO_FAULTS,
    ) -> None:
        self.sharing = sharing
        self._network = network
        self.kv_tokens = kv_tokens
        self.live = list(engine_names)
        self.requests: dict[str, ExternalRequest] = {}
        self.gateways = [ExternalGateway(self, core) for core in cores]
        self._seed = seed
        self._gateway_of: dict[str, ExternalGateway] = {}
        self._cached: dict[str, Counter[int]] = {name: Counter() for name in engine_names}
        self._routed: dict[str, Counter[int]] = {name: Counter() for name in engine_names}
        self._engine_of: dict[str, str] = {}
        self._simulation: SimulationContext | None = None

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation
        for gateway in self.gateways:
            self._set_queue(gateway, simulation)

    def schedule(self, at: float, action: Callable[[float], None]) -> None:
        assert self._simulation is not None
        self._simulation.schedule(at, action)

    def matched_blocks(self, name: str, blocks: Sequence[int]) -> int:
        """Returns how many leading blocks of a prompt an engine has cached or was sent.

        Only what the gateways share by now counts.
        """
        reported, routed, count = self._cached[name], self._routed[name], 0
        for block in blocks:
            if block not in reported and block not in routed:
                break
            count += 1
        return count

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Routes a request by the core of its gateway.

        Returns the engine or ``QUEUED``; None and a reason if the core chose no engine.
        """
        external_request = self.requests.get(request.id)
        if external_request is None:
            blocks = trace_keys(request.blocks, request.prompt_tokens, TRACE_BLOCK_TOKENS)
            external_request = self.requests[request.id] = ExternalRequest(request, blocks)
            digest = xxh3_64_intdigest(f"{self._seed} {request.id}".encode())
            self._gateway_of[request.id] = self.gateways[digest % len(self.gateways)]
        gateway = self._gateway_of[request.id]
        chosen = gateway.core.pick(external_request, gateway.endpoints(external_request.blocks, {}), now)
        if chosen is None:
            return None, "the core chose no endpoint"
        gateway.count_sent(external_request, chosen, now)
        self.publish_decision(request.id, chosen, now)
        if gateway.queue is not None and not gateway.queue.assign(request.id, chosen, now):
            return QUEUED, ""
        return chosen, ""

    def on_rejected(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        gateway = self._gateway_of[request]
        to = gateway.count_first_token(request, now)
        assert self._simulation is not None
        if to is not None and hasattr(gateway.core, "on_first_token"):
            sequence = self._simulation.known_request(request).sequence
            cached = sequence.cached_tokens if sequence is not None else None
            gateway.core.on_first_token(self.requests[request], to, now, cached)
        if gateway.queue is not None:
            gateway.queue.on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        gateway = self._gateway_of[sequence.id]
        to = gateway.count_ended(sequence.id, now)
        if to is not None and hasattr(gateway.core, "on_complete"):
            gateway.core.on_complete(self.requests[sequence.id], to, now, sequence.generated)
        self.forget_decision(sequence.id, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Delivers the events with the delay of all shared information."""
        if self.sharing is not None:
            for at in self._network.delivery_times(now, self.sharing.sent_seconds):
                self.schedule(at, lambda _: self._apply_events(instance, events))

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Updates all cores and reroutes requests queued for engines that left."""
        for name in live_engines:
            if name not in self.live:
                self._cached[name], self._routed[name] = Counter(), Counter()
        self.live = list(live_engines)
        assert self._simulation is not None
        for gateway in self.gateways:
            if hasattr(gateway.core, "on_endpoints"):
                gateway.core.on_endpoints(list(live_engines), now)
            for request in [] if gateway.queue is None else gateway.queue.retain(live_engines):
                gateway.count_ended(request, now)
                self.forget_decision(request, now)
                self._simulation.interrupt_request(request, now)

    def on_lost(self, request: str, now: float) -> None:
        gateway = self._gateway_of[request]
        gateway.count_ended(request, now)
        if gateway.queue is not None:
            gateway.queue.on_first_token(request, now)
        self.forget_decision(request, now)

    def set_unreachable(self, gateway: int, names: frozenset[str], now: float) -> None:
        """Cuts one gateway off from these engines, and from no others.

        Its requests there without a first token are rerouted; answers in progress are cut.
        """
        cut_gateway = self.gateways[gateway]
        cut_gateway.unreachable = names
        self._reroute(cut_gateway, names, now)

    def gateway_number(self, request: str) -> int | None:
        """Returns which gateway has the request; None if it has none."""
        gateway = self._gateway_of.get(request)
        return self.gateways.index(gateway) if gateway in self.gateways else None

    def unreachable_for(self, request: str) -> frozenset[str]:
        return self._gateway_of[request].unreachable

    def kill_gateway(self, gateway: int, core: Any, now: float) -> None:
        """Kills one gateway and replaces it by one with ``core``.

        Its answers are cut; requests without a first token are rerouted.
        """
        assert self._simulation is not None
        old = self.gateways[gateway]
        new = self.gateways[gateway] = ExternalGateway(self, core)
        new.unreachable = old.unreachable
        self._set_queue(new, self._simulation)
        if hasattr(core, "on_endpoints"):
            core.on_endpoints(list(self.live), now)
        for request, owner in self._gateway_of.items():
            if owner is old:
                self._gateway_of[request] = new
        self._reroute(old, None, now)

    def _reroute(self, gateway: "ExternalGateway", engines: frozenset[str] | None, now: float) -> None:
        """Reroutes all requests of a gateway, or those on ``engines``."""
        assert self._simulation is not None
        for request in gateway.inflight_requests(engines):
            to = gateway.count_ended(request, now)
            if to is not None and engines is not None and hasattr(gateway.core, "on_complete"):
                gateway.core.on_complete(self.requests[request], to, now, None)
            if gateway.queue is not None:
                gateway.queue.on_first_token(request, now)
            self.forget_decision(request, now)
            self._simulation.interrupt_request(request, now)

    def _set_queue(self, gateway: "ExternalGateway", simulation: SimulationContext) -> None:
        if hasattr(gateway.core, "order_key"):
            gateway.queue = LateBindingQueue(_CoreOrder(gateway), self._send, simulation.schedule)

    def _send(self, request: str, to: str, now: float) -> None:
        assert self._simulation is not None
        self._simulation.send_queued_request(request, to, now)

    def publish_decision(self, request: str, to: str, now: float) -> None:
        """Shares the engine of a sent or queued request with the other gateways."""
        self._engine_of[request] = to
        if self.sharing is not None:
            blocks = self.requests[request].blocks
            self.schedule(now + self.sharing.sent_seconds, lambda _: self._routed[to].update(blocks))

    def forget_decision(self, request: str, now: float) -> None:
        """Withdraws a shared decision. After a finish, KV events report the request's blocks."""
        to = self._engine_of.pop(request, None)
        if self.sharing is not None and to is not None:
            self.schedule(
                now + self.sharing.sent_seconds, partial(self._remove_routed, to, self.requests[request].blocks)
            )

    def _remove_routed(self, to: str, blocks: Sequence[int], now: float) -> None:
        del now
        routed = self._routed[to]
        for block in blocks:
            _decrement(routed, block)

    def _apply_events(self, instance: str, events: Sequence[KvEvent]) -> None:
        cached = self._cached[instance]
        for event in events:
            match event:
                case BlocksStored():
                    cached.update(event.keys)
                case BlockEvicted():
                    _decrement(cached, event.key)
                case CacheCleared():
                    cached.clear()


def _decrement(counts: Counter[int], key: int) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


def _add_counters(sums: dict[str, list[float]], to: str, delta: Sequence[float]) -> None:
    counters = sums.setdefault(to, [0.0, 0.0, 0.0, 0.0])
    for index, value in enumerate(delta):
        counters[index] += value
