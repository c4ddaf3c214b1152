"""The search in Redis for indexes of which the fleet says nothing."""

from collections.abc import Sequence
from typing import Final

from fairlead.runtime.clock import Clock
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index.format import decode_value
from fairlead_kvstore.index.instance_status import STATUSES_FIELD, InstanceStatuses, secret_fingerprint
from fairlead_kvstore.index.redis_keys import index_keys
from fairlead_kvstore.redis.link import RedisLink

INDEX_ABANDONED_SECONDS: Final = 60.0
"""Limit: age of the last word of an indexer from which on its index does not count as found."""

_MODELS_PER_READ: Final = 64


class RedisIndexFinder:
    """Finds models that have an index in Redis.

    Why: the fleet need not say that engines publish KV events. The indexer asks them.

    mismatched: models whose index was written with another secret, so its hashes match nothing.
    """

    def __init__(self, link: RedisLink, clock: Clock, *, secret: bytes) -> None:
        self._link = link
        self._clock = clock
        self._fingerprint = secret_fingerprint(secret)
        self.mismatched: frozenset[str] = frozenset()

    async def find(self, model_keys: Sequence[str]) -> set[str] | None:
        """Returns the models of which an indexer reads an engine, or did within a minute.

        Waits until Redis is there. Returns None if it is lost meanwhile.
        """
        await self._link.wait_connected()
        found: set[str] = set()
        mismatched: set[str] = set()
        for start in range(0, len(model_keys), _MODELS_PER_READ):
            batch = model_keys[start : start + _MODELS_PER_READ]
            replies = await self._link.run([("HGET", index_keys(key)[1], STATUSES_FIELD) for key in batch])
            if replies is None:
                return None
            for key, reply in zip(batch, replies, strict=True):
                statuses = self._live_statuses(reply)
                if statuses is not None:
                    (found if statuses.mark == self._fingerprint else mismatched).add(key)
        self.mismatched = frozenset(mismatched)
        return found

    def _live_statuses(self, reply: object) -> InstanceStatuses | None:
        """Returns the statuses that an indexer has written lately; None if it reads no engine."""
        if not isinstance(reply, bytes):
            return None
        try:
            statuses = decode_value(reply, InstanceStatuses)
        except UnreadableError:
            return None
        is_live = self._clock.wall() - statuses.wall < INDEX_ABANDONED_SECONDS
        reads = any(status.connected or status.blocks for status in statuses.instances.values())
        return statuses if is_live and reads else None
