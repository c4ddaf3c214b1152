"""The store of limits in Redis."""

import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec
from redis.exceptions import NoScriptError

from fairlead.errors import first_line
from fairlead_gateway.limits.exchange import Exchange, ExchangeReply
from fairlead_gateway.limits.redis_script import SCRIPT
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink

_SCRIPT_HASH: Final = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()


class RedisLimitStore:
    """The store in Redis: one call of a script for each tenant, all in one round trip."""

    def __init__(self, link: RedisLink) -> None:
        self.problem: str | None = None
        self._link = link

    async def apply(self, exchanges: Sequence[tuple[str, Exchange]]) -> list[ExchangeReply | None]:
        """Sends exchanges, and returns the replies."""
        commands: list[Command] = []
        for tenant, exchange in exchanges:
            packed = msgspec.msgpack.encode(exchange)
            commands.append(("EVALSHA", _SCRIPT_HASH, 1, redis_keys.tenant_limits(tenant), packed, "", ""))
        replies = await self._link.run(commands)
        if replies is None:
            self.problem = self._link.describe()
            return [None] * len(exchanges)
        missing = [index for index, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if missing:
            again = [("EVAL", SCRIPT, *commands[index][2:]) for index in missing]
            for index, reply in zip(missing, await self._link.run(again) or [None] * len(missing), strict=True):
                replies[index] = reply
        self.problem = None
        return [self._decode(reply) for reply in replies]

    def _decode(self, reply: object) -> ExchangeReply | None:
        if isinstance(reply, bytes):
            try:
                return msgspec.msgpack.decode(reply, type=ExchangeReply)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                self.problem = f"Redis answered what no gateway wrote: {error}"
                return None
        self.problem = f"Redis refused: {first_line(reply)}" if isinstance(reply, Exception) else "no reply of Redis"
        return None
