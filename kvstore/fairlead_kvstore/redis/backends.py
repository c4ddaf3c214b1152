"""Clients of the three kinds of Redis with one interface: ping, run commands, scan keys, drop
connections.

redis-py supports all three. Here they get deadlines, no retries (the link retries), and the same
exceptions. The caller sets the deadline of each call. Sentinels and cluster nodes are queried in
turn, and each may take only a part of that deadline. A connection begins with as few exchanges as
possible: the password, and a client name for operators. The library's own name is not sent.

Why: a node that hangs would otherwise block the others, and each exchange takes a round trip.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeAlias

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.connection import DefaultParser
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException, ResponseError

from fairlead.errors import BadInput, first_line
from fairlead.limits import Limits
from fairlead_kvstore.redis.address import CLUSTER, SINGLE, RedisAddress

Command: TypeAlias = tuple[str | bytes | int | float, ...]
_SHORTEST_SECONDS: Final = 0.1
_SCAN_COUNT: Final = 1_000
_UNKNOWN_CLUSTER_ERROR: Final = "part of the cluster does not answer"


class BoundedReplyParser(DefaultParser):  # type: ignore[misc,valid-type]  # redis-py is typed in part only
    """A parser of replies with a bound for the bytes of one.

    Why: who has the password of Redis can write values of 512 MB, and streams of many.
    """

    def __init__(self, socket_read_size: int, *, max_bytes: int) -> None:
        super().__init__(socket_read_size=socket_read_size)
        self._max_bytes = max_bytes
        self._taken = 0

    async def read_from_socket(self) -> bool:
        """Reads what has arrived. Raises redis-py's ConnectionError if the reply is too large."""
        data = await self._stream.read(self._read_size)
        if not data:
            raise RedisConnectionError("the server closed the connection")
        self._taken += len(data)
        if self._taken > self._max_bytes:
            raise RedisConnectionError(f"a reply has more than {self._max_bytes} bytes")
        self._reader.feed(data)
        return True

    async def read_response(self, *args: Any, **more: Any) -> Any:
        self._taken = 0
        return await super().read_response(*args, **more)


class RedisBackend:
    """A client of one server, as ``RedisLink`` uses it.

    Methods raise RedisError, OSError or TimeoutError on failure.
    """

    _to_masters: Mapping[str, Any] = {}
    """Options that send a command to all masters."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis  # Any: redis-py is typed in part only

    async def ping(self) -> None:
        with self._described_errors():
            await self._redis.execute_command("PING", **self._to_masters)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        """Runs commands and returns their replies in order; a refused command's is its
        ResponseError.
        """
        with self._described_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies = list(await pipe.execute(raise_on_error=False))
            for reply in replies:
                if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                    raise reply  # an unreachable node of a cluster is not a refusal
        return replies

    async def max_memory(self) -> int | ResponseError:
        """Returns ``maxmemory`` in bytes, 0 without one; of a cluster, the smallest one. It is the
        ResponseError if the user may not read it.
        """
        try:
            with self._described_errors():
                pages = await self._redis.execute_command("INFO", "memory", **self._to_masters)
        except ResponseError as error:
            return error
        # The reply of a single master is its page; several come by node.
        is_one = not isinstance(pages, dict) or "maxmemory" in pages
        return min(filter(None, map(_max_memory, [pages] if is_one else pages.values())), default=0)

    async def scan_keys(self, pattern: str) -> AsyncIterator[bytes]:
        """Yields the keys that match a pattern, each once or more; for a cluster, those of all
        masters.
        """
        with self._described_errors():
            async for name in self._redis.scan_iter(match=pattern, count=_SCAN_COUNT):
                yield name

    async def drop_connections(self) -> None:
        """Drops every connection.

        Why: after a failure, a connection may be broken or lead to a former master.
        """
        await self._redis.connection_pool.disconnect()

    async def close(self) -> None:
        await self._redis.aclose()

    @contextmanager
    def _described_errors(self) -> Iterator[None]:
        yield


class _SentinelMaster(RedisBackend):
    """The master as sentinels report it; each new connection queries them again."""

    def __init__(self, sentinels: Any, address: RedisAddress, redis: Any) -> None:
        super().__init__(redis)
        self._sentinels = sentinels
        self._unknown = f"no reachable sentinel knows a running master {address.service!r}"

    @contextmanager
    def _described_errors(self) -> Iterator[None]:
        try:
            yield
        except MasterNotFoundError:
            raise RedisConnectionError(self._unknown) from None

    async def close(self) -> None:
        await super().close()
        await self._sentinels.aclose()


class _ClusterBackend(RedisBackend):
    """All masters of a cluster. Slots are queried at the start and after each failure."""

    _to_masters: Mapping[str, Any] = {"target_nodes": RedisCluster.PRIMARIES}

    def __init__(self, address: RedisAddress, options: dict[str, Any], parser: Any) -> None:
        nodes = [ClusterNode(host, port) for host, port in address.hosts]
        # Always query the URL's hosts: reported addresses may be gone after a restart.
        cluster: Any = RedisCluster(startup_nodes=nodes, dynamic_startup_nodes=False, **options)
        super().__init__(cluster)
        manager = cluster.nodes_manager  # there is no argument for it
        for kwargs in (manager.connection_kwargs, *(node.connection_kwargs for node in manager.startup_nodes.values())):
            kwargs["parser_class"] = parser

    async def drop_connections(self) -> None:
        await self._redis.aclose()

    @contextmanager
    def _described_errors(self) -> Iterator[None]:
        try:
            yield
        except RedisClusterException as error:
            raise RedisConnectionError(first_line(error, 200) or _UNKNOWN_CLUSTER_ERROR) from None


def create_backend(address: RedisAddress, limits: Limits, client_name: str | None) -> RedisBackend:
    """Returns a client of the address, not connected yet. Raises BadInput for a URL that redis-py
    cannot read.
    """
    common: dict[str, Any] = {
        "socket_timeout": limits.redis_timeout_seconds,
        "socket_connect_timeout": limits.redis_connect_seconds,
        "retry": Retry(NoBackoff(), 0),
        "client_name": client_name,
        "driver_info": None,
        "protocol": 2,
        "decode_responses": False,
    }
    parser = partial(BoundedReplyParser, max_bytes=limits.redis_reply_bytes)
    if address.kind == SINGLE:
        try:
            return RedisBackend(Redis.from_url(address.url, parser_class=parser, **common))
        except ValueError as error:
            hint = "write it as redis://host:port/0 or unix:///path"
            raise BadInput(str(error), field="redis", hint=hint) from None
    secure: dict[str, Any] = {"ssl": True} if address.tls else {}
    if "ssl_ca_certs" in address.options:
        secure["ssl_ca_certs"] = address.options["ssl_ca_certs"]
    common |= {**secure, "username": address.username, "password": address.password}
    each = max(_SHORTEST_SECONDS, limits.redis_connect_seconds / (len(address.hosts) + 1))
    part = {"socket_timeout": min(limits.redis_timeout_seconds, each), "socket_connect_timeout": each}
    if address.kind == CLUSTER:
        return _ClusterBackend(address, common | part, parser)
    user, password = (address.options.get(name) for name in ("sentinel_username", "sentinel_password"))
    own = {"client_name": None, "username": user, "password": password}
    sentinel_class: Any = Sentinel  # its constructor has no types
    sentinels = sentinel_class(address.hosts, sentinel_kwargs=common | part | own)
    master = sentinels.master_for(address.service, db=address.database, parser_class=parser, **common)
    return _SentinelMaster(sentinels, address, master)


def _max_memory(page: Any) -> int:
    found = page.get("maxmemory") if isinstance(page, dict) else None
    return found if isinstance(found, int) and found > 0 else 0
