"""One instance that an indexer reads, and what it shows of it."""

import asyncio
from dataclasses import dataclass, field

from fairlead.fleet.model import Instance
from fairlead_kvstore.blockstore.types import InstanceState
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index.instance_status import InstanceStatus
from fairlead_kvstore.reader.engine_subscription import EngineSubscription, SubscriptionCounters


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """One instance as status and metrics show it. ``trouble``: why it is not read, in words; empty when it is."""

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
    """Its line is there once it is known where it publishes. Times are monotonic seconds.

    ``position``: where an earlier indexer was in its stream, until the line has it.
    """

    model_key: str
    instance: Instance
    subscription: EngineSubscription | None = None
    position: StreamPosition | None = None
    discovery: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str = "it was not asked yet where it publishes"
    is_gone: bool = False
    has_adapters: bool = False
    is_querying_adapters: bool = False
    adapters_queried_at: float = 0.0
    adapters_due_at: float = 0.0
    adapters_pause_seconds: float = 1.0
    unsourced_adapters: frozenset[str] = frozenset()

    def instance_status(self, state: InstanceState) -> InstanceStatus:
        """What everybody may know of it, in Redis."""
        seen, line, evicted = self.status(state), self.subscription, state.evicted_age_seconds
        lag = seen.counters.lag_seconds
        return InstanceStatus(
            url=self.instance.url,
            block_size=state.block_size,
            events=seen.events,
            replay=None if line is None else line.endpoints.replay,
            connected=seen.connected,
            replaying=seen.replaying,
            trouble=seen.problem,
            blocks=state.blocks,
            orphans=state.orphans,
            following=None if line is None else line.next_number,
            lag_seconds=None if lag is None else round(lag, 3),
            evicted_age_seconds=None if evicted is None else round(evicted, 1),
        )

    def status(self, state: InstanceState) -> EngineStatus:
        """With what the truth knows of it."""
        line = self.subscription
        if line is None:
            return EngineStatus(
                self.instance.id, self.model_key, None, False, False, self.problem, state, SubscriptionCounters()
            )
        trouble = "" if line.is_connected else self.problem or line.problem
        where, replaying = line.endpoints.events, line.is_replaying
        return EngineStatus(
            self.instance.id, self.model_key, where, line.is_connected, replaying, trouble, state, line.counters
        )
