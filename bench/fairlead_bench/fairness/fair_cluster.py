"""Gateways of a simulated cluster that serve tenants fairly, and share what they served.

Each gateway runs the cores of a live one: router, count of service, bounds of a queue, free
sequences, and exchange with peers. A request waits for its chosen engine. There, the tenants with
credit go first, and of their requests the first in the preset's order. Memory is not planned.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from fairlead.limits import Limits
from fairlead_gateway.admission.admission_policy import MIN_BACKLOG_SECONDS, POLL_SECONDS
from fairlead_gateway.admission.fair_share import FairShare, decode_seconds
from fairlead_gateway.admission.kv_capacity import MAX_WAITING_STEP_SHARE, EngineLoad
from fairlead_gateway.admission.request_queue import (
    TIER_WEIGHTS,
    CallerBounds,
    CallerClass,
    has_credit,
    waits_behind,
)
from fairlead_gateway.peers.peer_messages import PeerBatch
from fairlead_gateway.routing import PrefixChain, RouteRequest
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.simulation import QUEUED, FleetOptions
from fairlead_sim.gateways.admission_gate import TenantClass
from fairlead_sim.gateways.gateway_cluster import ClusterOptions, GatewayCluster, SimulatedGateway
from fairlead_sim.gateways.late_binding import Dispatcher
from fairlead_sim.gateways.single_gateway import MODEL, RoutingOptions
from fairlead_sim.workload.traces import TraceRequest

_LIMITS = Limits()
_Entry = tuple[tuple[float, float, str], int, str]


class FairCluster(GatewayCluster):
    """Several gateways that serve tenants fairly.

    classes: tier and weight by tenant.
    on_end: called with each request that has ended, and the time.
    """

    def __init__(
        self,
        fleet: FleetOptions,
        routing: RoutingOptions,
        options: ClusterOptions,
        *,
        classes: Mapping[str, TenantClass],
    ) -> None:
        self.classes = classes
        self.on_end: Callable[[TraceRequest, float], None] = lambda *_: None
        super().__init__(fleet, routing, options)

    def _start_gateway(self) -> SimulatedGateway:
        self._started += 1
        return FairGateway(self, f"gateway {self._started}")

    def refuse(self, request: str, now: float) -> None:
        self._gateway_of.pop(request, None)
        self._simulation().refuse(request, "the queue is full", now)


class _Assigned:
    """A request that waits for its engine, or that was sent without a first token."""

    __slots__ = ("decode_seconds", "instance", "prefill_seconds", "request", "tenant", "weight")

    def __init__(self, request: TraceRequest, instance: str, prefill_seconds: float, weight: float) -> None:
        self.request = request
        self.tenant = request.tenant or ""
        self.instance = instance
        self.prefill_seconds = prefill_seconds
        self.weight = weight
        self.decode_seconds = 0.0


class FairGateway(SimulatedGateway):
    """One gateway of the cluster."""

    def __init__(self, cluster: FairCluster, name: str) -> None:
        super().__init__(cluster, name)
        self._fair_cluster = cluster
        profile = self._profile = cluster.fleet.profile
        self._dispatcher = Dispatcher(
            self.router, profile, cluster.send_queued_request, cluster.schedule, never_queues=True
        )
        self._room_seconds = max(
            MAX_WAITING_STEP_SHARE * profile.prefill_time(profile.step_tokens), MIN_BACKLOG_SECONDS
        )
        self._fair_share = FairShare(reports=True)
        self._bounds = CallerBounds(_LIMITS.queued_requests, 0)
        self._requests: dict[str, _Assigned] = {}
        self._queues: dict[str, dict[str, list[_Entry]]] = {engine: {} for engine in cluster.fleet.engine_names}
        self._sent_seconds = dict.fromkeys(cluster.fleet.engine_names, 0.0)
        self._waiting: set[str] = set()
        self._numbers = count()
        self._has_timer = False

    def route(self, request: TraceRequest, chain: PrefixChain, now: float) -> tuple[str | None, str]:
        """Chooses an engine, and sends the request or queues it for the engine."""
        tenant = request.tenant or ""
        its = self._fair_cluster.classes.get(tenant, TenantClass())
        weight = its.weight * TIER_WEIGHTS[its.tier]
        caller_class = CallerClass(its.tier, weight)
        if self._bounds.requests >= _LIMITS.queued_requests:
            if self._bounds.has_most(tenant, caller_class):
                return None, "the queue is full"
            self._displace(self._bounds.newest_of_largest(), now)
        route_request = RouteRequest(request.id, chain, request.prompt_tokens, request.output_tokens, request.session)
        decision = self.router.choose_instance(route_request, now, deferred=self._deferred(tenant, weight))
        chosen = decision.chosen
        if chosen is None:
            return None, decision.reason
        endpoint = self.router.endpoint(chosen)
        before = 0.0 if endpoint is None else endpoint.load.backlog_seconds
        self._dispatcher.dispatch(route_request, chosen, now)
        prefill_seconds = 0.0 if endpoint is None else endpoint.load.backlog_seconds - before
        assigned = self._requests[request.id] = _Assigned(request, chosen, prefill_seconds, weight)
        assigned.decode_seconds = decode_seconds(self._profile, request.prompt_tokens, request.output_tokens, 1)
        self.router.on_queued(chosen, 1)
        goes_ahead = not self._queues[chosen] or self._fair_share.has_small_share(tenant)
        if goes_ahead and self._has_room(chosen) and self._has_sequence(chosen, tenant):
            self._on_sent(assigned, now)
            return chosen, ""
        if not self._bounds.requests_of(tenant):
            self._fair_share.on_join(tenant, weight)
        self._bounds.add(request.id, tenant, 0, caller_class)
        self._waiting.add(request.id)
        heap = self._queues[chosen].setdefault(tenant, [])
        heapq.heappush(heap, (self.router.queue_sort_key(request.id), next(self._numbers), request.id))
        self._start_timer(now)
        return QUEUED, ""

    def on_first_token(self, request: str, now: float) -> None:
        super().on_first_token(request, now)
        assigned = self._requests[request]
        self._sent_seconds[assigned.instance] -= assigned.prefill_seconds
        self._release(assigned.instance, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        super().on_finished(sequence, now)
        assigned = self._requests.pop(sequence.id)
        seconds = decode_seconds(self._profile, sequence.prompt_tokens, sequence.generated, 1)
        self._fair_share.settle(assigned.tenant, seconds - assigned.decode_seconds, assigned.weight)
        self._release(assigned.instance, now)
        self._fair_cluster.on_end(assigned.request, now)

    def _publish(self, now: float) -> None:
        self.outbox.add_service(MODEL, self._fair_share.take_unreported())
        super()._publish(now)

    def receive(self, name: str, batch: PeerBatch, now: float, *, live: bool) -> None:
        super().receive(name, batch, now, live=live)
        if live and batch.service:
            self._fair_share.add_reported(batch.service)

    def _has_room(self, instance: str) -> bool:
        return self._sent_seconds[instance] <= 0.0 or self._sent_seconds[instance] < self._room_seconds

    def _has_sequence(self, instance: str, tenant: str) -> bool:
        endpoint = self.router.endpoint(instance)
        if endpoint is None:
            return True
        local = endpoint.load
        total = self.router.total_load(local)
        engine = EngineLoad(instance, 0.0, 0.0, other_tokens=local.tokens_of_others(total))
        engine.limit_sequences(self._profile.max_sequences, total.sent)
        return engine.has_free_sequence(small_share=self._fair_share.has_small_share(tenant))

    def _start_timer(self, now: float) -> None:
        """Arms a check of all queues, since requests of other gateways end unseen."""
        if not self._has_timer:
            self._has_timer = True
            self._fair_cluster.schedule(now + POLL_SECONDS, self._on_timer)

    def _on_timer(self, now: float) -> None:
        self._has_timer = False
        for instance in self._queues:
            self._release(instance, now)
        if self._waiting:
            self._start_timer(now)

    def _release(self, instance: str, now: float) -> None:
        queues = self._queues[instance]
        while queues and self._has_room(instance):
            entry, tenant = self._next(queues)
            if entry[2] in self._waiting and not self._has_sequence(instance, tenant):
                return
            heapq.heappop(queues[tenant])
            if not queues[tenant]:
                del queues[tenant]
            name = entry[2]
            if name not in self._waiting:
                continue
            assigned = self._requests[name]
            self._leave(name, assigned, now)
            self._on_sent(assigned, now)
            self._cluster.send_queued_request(name, instance, now)

    def _next(self, queues: dict[str, list[_Entry]]) -> tuple[_Entry, str]:
        """Returns the next request of an engine, which may have been displaced, and its tenant."""
        served = self._fair_share.served_seconds
        classes = self._fair_cluster.classes
        least = min(map(served, queues))
        near = []
        for tenant in queues:
            its = classes.get(tenant, TenantClass())
            if has_credit(served(tenant), least, its.weight * TIER_WEIGHTS[its.tier]):
                near.append(tenant)
        tenant = min(near, key=lambda name: queues[name][0])
        return queues[tenant][0], tenant

    def _leave(self, name: str, assigned: _Assigned, now: float) -> None:
        self._waiting.discard(name)
        self._bounds.remove(name, assigned.tenant)
        if not self._bounds.requests_of(assigned.tenant):
            self._fair_share.on_leave(assigned.tenant)

    def _on_sent(self, assigned: _Assigned, now: float) -> None:
        self.router.on_queued(assigned.instance, -1)
        self._sent_seconds[assigned.instance] += assigned.prefill_seconds
        self._fair_share.charge(assigned.tenant, assigned.prefill_seconds + assigned.decode_seconds, assigned.weight)

    def _deferred(self, tenant: str, weight: float) -> dict[str, float]:
        """Returns the prefill that waits behind a tenant's next request, by engine."""
        share, classes = self._fair_share, self._fair_cluster.classes
        least = share.seconds_at_join(tenant, weight)
        behind: list[str] = []
        for other in {name for queues in self._queues.values() for name in queues} - {tenant}:
            its = classes.get(other, TenantClass())
            if waits_behind(share.served_seconds(other), least, its.weight * TIER_WEIGHTS[its.tier]):
                behind.append(other)
        return {engine: self._queued_seconds(engine, behind) for engine in self._queues} if behind else {}

    def _queued_seconds(self, engine: str, tenants: Sequence[str]) -> float:
        queues = self._queues[engine]
        waiting = [name for tenant in tenants for _, _, name in queues.get(tenant, ()) if name in self._waiting]
        return sum(self._requests[name].prefill_seconds for name in waiting)

    def _displace(self, name: str, now: float) -> None:
        assigned = self._requests.pop(name)
        self._leave(name, assigned, now)
        self.router.on_queued(assigned.instance, -1)
        self._dispatcher.on_abandoned(name, now)
        self._fair_cluster.refuse(name, now)
