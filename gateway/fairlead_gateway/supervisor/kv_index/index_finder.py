"""The search in Redis for indexes of which the fleet says nothing."""

from collections.abc import Sequence
from typing import Final

from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index.format import decode_value
from fairlead_kvstore.index.instance_status import STATUSES_FIELD, InstanceStatuses, secret_fingerprint
from fairlead_kvstore.index.redis_keys import index_keys
from fairlead_kvstore.redis.link import RedisLink

_MODELS_PER_READ: Final = 64


class RedisIndexFinder:
    """Finds models that have an index in Redis.

    Why: the fleet need not say that engines publish KV events. The indexer asks them.

    mismatched: models whose index was written with another secret, so its hashes match nothing.
    """

    def __init__(self, link: RedisLink, *, secret: bytes) -> None:
        self._link = link
        self._fingerprint = secret_fingerprint(secret)
        self.mismatched: set[str] = set()

    async def find(self, model_keys: Sequence[str]) -> set[str] | None:
        """Returns those of the models of which an engine is read, or was; None while Redis is
        away.
        """
        found: set[str] = set()
        for start in range(0, len(model_keys), _MODELS_PER_READ):
            batch = model_keys[start : start + _MODELS_PER_READ]
            commands = [("HGET", index_keys(key)[1], STATUSES_FIELD) for key in batch]
            replies = await self._link.run(commands)
            if replies is None:
                return None
            found.update(key for key, reply in zip(batch, replies, strict=True) if self._has_index(key, reply))
        return found

    def _has_index(self, key: str, reply: object) -> bool:
        self.mismatched.discard(key)
        if not isinstance(reply, bytes):
            return False
        try:
            statuses = decode_value(reply, InstanceStatuses)
        except UnreadableError:
            return False
        if not any(status.connected or status.blocks for status in statuses.instances.values()):
            return False
        if statuses.mark != self._fingerprint:
            self.mismatched.add(key)
            return False
        return True
