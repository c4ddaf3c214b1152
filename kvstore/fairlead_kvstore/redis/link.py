"""A link to Redis that never blocks and never fails its caller.

Redis contains hints and counters only. A caller therefore gets replies, or None while Redis is
unreachable. A task of the link connects and reconnects with growing, randomized pauses, so that
gateways do not reach a restarted Redis all at once. The state of the link is a value that can be
shown.

Two deadlines apply: ``redis_timeout_seconds`` to each reply (``backends.py``), and
``redis_connect_seconds`` to a whole call with a possible new connection.

Why: a caller that finds all connections in use opens one more. With a distant Redis, that takes
several times as long as a reply.

A server that refuses a write because it is read-only is left, and the link connects again.

Why: a master that was demoted keeps its connections. The address, such as that of a Service, leads
to the new master, but only for new connections.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar

from redis.exceptions import ReadOnlyError, RedisError, ResponseError

from fairlead.errors import first_line
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead.units import format_duration
from fairlead_kvstore.redis.address import parse_redis_url
from fairlead_kvstore.redis.backends import Command, create_backend

REDIS_SCAN_SECONDS: Final = 10.0
"""Limit: until a listing of a Redis' keys finds the next one."""

T = TypeVar("T")
FIRST_PAUSE_SECONDS: Final = 0.1
READ_ONLY_SECONDS: Final = 10.0
"""A read-only server is left at most so often: it may be one for good, and can be read."""


@dataclass(frozen=True, slots=True)
class LinkState:
    """The state of the link.

    connected: the last exchange succeeded.
    since: when the connection was made or lost, in monotonic seconds.
    reason: why it was lost, or is not made yet.
    """

    connected: bool
    since: float
    reason: str = ""


class RedisLink:
    """A link to one server, a master behind sentinels, or a cluster. Start and stop it on the loop
    that uses it.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        limits: Limits | None = None,
        name: str | None = None,
        random: Random | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._clock = clock
        self._random = random or Random()
        address = parse_redis_url(url)
        self.description = address.description
        self._server = create_backend(address, self._limits, name)
        self.state = LinkState(False, clock.now(), "not connected yet")
        self._left_at = float("-inf")
        self._lost_event = asyncio.Event()
        self._connected_event = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def describe(self) -> str:
        """Returns the state as text, without a password."""
        if self.state.connected:
            return f"connected to {self.description}"
        age = format_duration(max(0.0, self._clock.now() - self.state.since))
        return f"away for {age}: {self.description}: {self.state.reason}"

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._maintain(), name="redis link")

    async def stop(self) -> None:
        """Closes the connections; the link can be started again."""
        task, self._task = self._task, None
        await cancel_and_wait(task)
        if self.state.connected:
            self._on_lost("stopped")
        with suppress(RedisError, OSError):
            await self._server.close()

    async def wait_connected(self) -> None:
        while not self.state.connected:
            await self._connected_event.wait()

    async def wait_lost(self) -> None:
        await self._lost_event.wait()

    async def max_memory(self) -> int | ResponseError | None:
        """Returns Redis' ``maxmemory`` in bytes, 0 without one; None when Redis is unreachable. If
        Redis refuses, returns the ResponseError.

        Of a cluster, it is the smallest of all masters.
        """
        return await self._exchange(self._server.max_memory, self._limits.redis_connect_seconds)

    async def run(self, commands: Sequence[Command]) -> list[Any] | None:
        """Returns the replies in order; None when Redis is unreachable. A refused command's reply
        is its ResponseError.

        Connects again if the server is read-only, since it may have been demoted, unless it was
        left just now.
        """
        replies = await self._exchange(lambda: self._server.run(commands), self._limits.redis_connect_seconds)
        is_read_only = any(isinstance(reply, ReadOnlyError) for reply in replies or ())
        if is_read_only and self._clock.now() - self._left_at >= READ_ONLY_SECONDS:
            self._left_at = self._clock.now()
            self._on_lost("the server is read-only")
        return replies

    async def scan_keys(self, pattern: str, max_keys: int) -> set[bytes] | None:
        """Returns at most ``max_keys`` matching keys; None when Redis is unreachable.

        Redis reads every key for this, so it is for operators' tools only.
        """
        found: set[bytes] = set()
        names = self._server.scan_keys(pattern)
        while len(found) < max_keys:
            name = await self._exchange(lambda: anext(names, b""), REDIS_SCAN_SECONDS)
            if not name:
                return None if name is None else found
            found.add(name)
        return found

    async def _exchange(self, query: Callable[[], Awaitable[T]], seconds: float) -> T | None:
        """Returns the reply to a query; None when Redis is unreachable."""
        if not self.state.connected:
            return None
        try:
            async with asyncio.timeout(seconds):
                return await query()
        except (RedisError, OSError, TimeoutError) as error:
            self._on_lost(_describe_error(error))
            return None

    async def _maintain(self) -> None:
        failures = 0
        while True:
            if await self._ping():
                failures = 0
                self._on_connected()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.redis_ping_seconds):
                        await self._lost_event.wait()
            else:
                pause = min(self._limits.redis_pause_seconds, FIRST_PAUSE_SECONDS * 2.0**failures)
                failures = min(failures + 1, 16)
                await asyncio.sleep(pause * self._random.uniform(0.5, 1.0))

    async def _ping(self) -> bool:
        try:
            async with asyncio.timeout(self._limits.redis_connect_seconds):
                if not self.state.connected:
                    # Connections from before the failure may be half dead: drop them.
                    await self._server.drop_connections()
                await self._server.ping()
        except ResponseError as error:
            self._on_lost(f"refused: {error}")
            return False
        except (RedisError, OSError, TimeoutError) as error:
            self._on_lost(_describe_error(error))
            return False
        return True

    def _on_connected(self) -> None:
        if not self.state.connected:
            self.state = LinkState(True, self._clock.now())
        self._lost_event.clear()
        self._connected_event.set()

    def _on_lost(self, why: str) -> None:
        since = self._clock.now() if self.state.connected else self.state.since
        self.state = LinkState(False, since, why)
        self._connected_event.clear()
        self._lost_event.set()


def _describe_error(error: Exception) -> str:
    """Returns an error as one short line. Messages of Redis contain addresses, never values."""
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return "no answer in time"
    return first_line(error, 200) or type(error).__name__
