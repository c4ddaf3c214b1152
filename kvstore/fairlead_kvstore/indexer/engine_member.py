"""One instance that an indexer reads, and its status."""

import asyncio
from dataclasses import dataclass, field

from fairlead.fleet.model import Instance
from fairlead_kvstore.blockstore.types import InstanceState
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index.instance_status import InstanceStatus
from fairlead_kvstore.reader.engine_subscription import EngineSubscription, SubscriptionCounters


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The status of one instance for status pages and metrics.

    events: ZMQ address of its KV events; None while it is unknown, or if the engine dials.
    problem: why the instance is not read; empty when it is.
    """

    instance: str
    model_key: str
    events: str | None
    connected: bool
    replaying: bool
    problem: str
    state: InstanceState
    counters: SubscriptionCounters


@dataclass(slots=True)
class EngineMember:
    """One instance that an indexer reads. Times are monotonic seconds.

    subscription: None until the endpoint of its events is known.
    position: an earlier indexer's stream position, until the subscription takes it.
    """

    model_key: str
    instance: Instance
    subscription: EngineSubscription | None = None
    position: StreamPosition | None = None
    discovery: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str = "the endpoint of its events is not known yet"
    is_gone: bool = False
    has_adapters: bool = False
    is_querying_adapters: bool = False
    adapters_queried_at: float = 0.0
    adapters_due_at: float = 0.0
    adapters_pause_seconds: float = 1.0
    unsourced_adapters: frozenset[str] = frozenset()

    def instance_status(self, state: InstanceState) -> InstanceStatus:
        """Returns the status that is published in Redis."""
        status, subscription, evicted = self.status(state), self.subscription, state.evicted_age_seconds
        lag = status.counters.lag_seconds
        return InstanceStatus(
            url=self.instance.url,
            block_size=state.block_size,
            events=status.events,
            replay=None if subscription is None else subscription.endpoints.replay,
            connected=status.connected,
            replaying=status.replaying,
            trouble=status.problem,
            blocks=state.blocks,
            orphans=state.orphans,
            following=None if subscription is None else subscription.next_number,
            lag_seconds=None if lag is None else round(lag, 3),
            evicted_age_seconds=None if evicted is None else round(evicted, 1),
        )

    def status(self, state: InstanceState) -> EngineStatus:
        """Returns the status of the connection, together with ``state`` from the block store."""
        subscription = self.subscription
        if subscription is None:
            return EngineStatus(
                self.instance.id, self.model_key, None, False, False, self.problem, state, SubscriptionCounters()
            )
        problem = "" if subscription.is_connected else self.problem or subscription.problem
        events, replaying = subscription.endpoints.events, subscription.is_replaying
        return EngineStatus(
            self.instance.id,
            self.model_key,
            events,
            subscription.is_connected,
            replaying,
            problem,
            state,
            subscription.counters,
        )
