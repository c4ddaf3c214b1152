"""The exchange between this gateway's workers and other gateways, in the supervisor.

Three things are exchanged in both directions:

- dispatches, which workers apply to their approximate prefix indexes like those of siblings,
- loads, in a row of the shared memory that workers read for a decision,
- the service of each tenant, which counts in the queues of all gateways.

No request waits for it: workers read memory and messages, and only the supervisor talks to Redis.
"""

import secrets
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead.runtime.clock import Clock
from fairlead_gateway.peers.messages import Dispatch, PeerUpdates
from fairlead_gateway.peers.peer_messages import PeerLoad as Shared
from fairlead_gateway.peers.peer_messages import SentPrompt, secret_fingerprint
from fairlead_gateway.peers.peer_state import InstanceGroups
from fairlead_gateway.peers.supervisor.peer_exchange import ExchangeHooks, PeerExchange
from fairlead_gateway.telemetry import LoadView
from fairlead_kvstore.redis.link import RedisLink


class GatewayWorkers(Protocol):
    """The workers of this gateway, as the exchange with other gateways uses them."""

    def applied_fleet(self) -> Fleet:
        """Returns the newest fleet that all workers route by."""

    def loads(self) -> Mapping[str, LoadView]:
        """Returns the in-flight load by instance."""

    def broadcast_peer_updates(self, updates: PeerUpdates) -> None:
        """Sends what other gateways did to all workers; a full channel drops it."""

    def set_peer_loads(self, loads: Mapping[str, Shared]) -> None:
        """Sets the total load of other gateways, by instance."""


class PeerSync:
    """The exchange of dispatches, loads and service with other gateways.

    link: started and stopped by the caller.
    """

    def __init__(
        self,
        link: RedisLink,
        workers: GatewayWorkers,
        *,
        gateway_id: str,
        secret: bytes,
        clock: Clock,
    ) -> None:
        self._workers = workers
        self._clock = clock
        self.on_peer_dispatch: Callable[[str, str, int, Sequence[int]], None] | None = None
        """Called for each prompt that another gateway sent: model, instance, hash of its end,
        hashes of its blocks.
        """
        self._applied_fleet: Fleet | None = None
        self._model_of: dict[str, str] = {}
        self._ready_groups: dict[str, InstanceGroups] = {}
        name = f"{gateway_id}/{secrets.token_hex(4)}"  # another run of the same gateway is another peer
        hooks = ExchangeHooks(
            self._models, self._own_loads, self._on_peer_dispatches, workers.set_peer_loads, self._on_peer_service
        )
        self.exchange = PeerExchange(link, name, clock, hooks, secret_fingerprint=secret_fingerprint(secret))

    def start(self) -> None:
        self.exchange.start()

    async def stop(self) -> None:
        await self.exchange.stop()

    # --- reports of local workers

    def on_worker_report(
        self, dispatches: Sequence[Dispatch], service: Mapping[str, Mapping[str, float]], has_loads: bool
    ) -> None:
        """Called with a report of a worker; publishes its dispatches, loads and service."""
        for model, seconds in service.items():
            self.exchange.outbox.add_service(model, seconds)
        for item in dispatches:
            self.exchange.add_dispatch(item.model, item.instance, item.hashes, item.tail, item.session_hash)
        if has_loads:
            self.exchange.on_loads_changed()

    def _models(self) -> Mapping[str, InstanceGroups]:
        self._update_fleet()
        return self._ready_groups

    def _own_loads(self) -> dict[str, dict[str, Shared]]:
        self._update_fleet()
        found: dict[str, dict[str, Shared]] = {}
        for instance, load in self._workers.loads().items():
            model = self._model_of.get(instance)
            if model is not None and load.inflight > 0:
                seconds, tokens = max(0.0, load.backlog_seconds), max(0.0, load.inflight_tokens)
                queued = max(0, load.queued)
                found.setdefault(model, {})[instance] = (load.inflight, max(0, load.waiting), seconds, tokens, queued)
        return found

    def _update_fleet(self) -> None:
        fleet = self._workers.applied_fleet()
        if fleet is self._applied_fleet:
            return
        self._applied_fleet = fleet
        self._model_of = {instance.id: key for key, instances in fleet.instances.items() for instance in instances}
        self._ready_groups = {key: _ready_by_role(fleet.instances.get(key, ())) for key in fleet.models}

    # --- messages of peers

    def _on_peer_dispatches(self, model: str, items: Sequence[SentPrompt]) -> None:
        if self.on_peer_dispatch is not None:
            for instance, packed, tail, _ in items:
                self.on_peer_dispatch(model, instance, tail, array("Q", packed))
        self._workers.broadcast_peer_updates(PeerUpdates([Dispatch(model, *item) for item in items]))

    def _on_peer_service(self, model: str, service: Mapping[str, float]) -> None:
        self._workers.broadcast_peer_updates(PeerUpdates(service={model: dict(service)}))

    # --- status

    def warnings(self) -> list[str]:
        return self.exchange.warnings()

    def present_peers(self) -> list[tuple[str, float]]:
        """Returns the known peers, and the seconds since the last message of each."""
        return [(peer.name.rpartition("/")[0], peer.age_seconds) for peer in self.exchange.known_peers()]

    def counters(self) -> dict[str, float]:
        """Returns counters and gauges for the metrics page."""
        exchange = self.exchange
        peers = exchange.known_peers()
        found: dict[str, float] = {
            "peers": len(peers),
            "peer_in_flight": sum(load[0] for load in exchange.peer_state.reported_loads().values()),
            "peer_sent_total": exchange.stats.sent,
            "peer_heard_total": exchange.stats.received,
            "peer_limited_total": exchange.budget.dropped,
            "peer_dropped_total": exchange.outbox.dropped,
            "peer_missed_total": exchange.peer_state.missed_batches,
            "peer_poisoned_total": exchange.stats.undecodable,
        }
        if peers:
            found["peer_age_seconds"] = round(max(peer.age_seconds for peer in peers), 3)
        return found


def _ready_by_role(instances: Sequence[Instance]) -> InstanceGroups:
    """Returns the ready instances in a group for each role: roles do not replace each other."""
    groups: dict[str, list[str]] = {}
    for instance in instances:
        if instance.state is InstanceState.READY:
            groups.setdefault(instance.role, []).append(instance.id)
    return list(groups.values())
