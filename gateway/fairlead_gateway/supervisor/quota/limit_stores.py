"""The store of limits: in Redis, or in the memory of a gateway without Redis."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from fairlead.runtime.clock import Clock
from fairlead_gateway.quota.exchange import Exchange, ExchangeReply
from fairlead_gateway.quota.store import QuotaStore

if TYPE_CHECKING:  # without Redis, its client is not loaded
    from fairlead_kvstore.redis.link import RedisLink


class LimitStore(Protocol):
    """A store of limits.

    problem: why the last exchange failed; None if it did not.
    """

    problem: str | None

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        """Applies exchanges, each of another tenant; None for one that may not have arrived."""
        ...


class MemoryLimitStore:
    """The store of a gateway without Redis, which has no peers."""

    def __init__(self, clock: Clock) -> None:
        self.problem: str | None = None
        self._clock = clock
        self._wall_offset = clock.wall() - clock.now()
        self._store = QuotaStore("memory", has_peers=False)

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        """Applies exchanges at once."""
        now_ms = int((self._clock.now() + self._wall_offset) * 1000)
        return [self._store.apply(tenant, exchange, now_ms) for tenant, exchange in exchanges]


def create_limit_store(link: "RedisLink | None", clock: Clock) -> LimitStore:
    """Returns the store behind a link to Redis; without a link, one in memory."""
    if link is None:
        return MemoryLimitStore(clock)
    from fairlead_gateway.supervisor.quota.redis_limit_store import RedisLimitStore

    return RedisLimitStore(link)
