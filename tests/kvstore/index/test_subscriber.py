"""A running subscriber with a real Redis: it waits there for changes, and a failure of one model
does not affect another.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.index import bootstrap, redis_keys, subscriber
from fairlead_kvstore.index.bootstrap import decode_changes
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.index_harness import InMemoryIndexer
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.redis.valkey import Valkey

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(120)]
MODELS = ("default/one", "default/two")
PATIENT = replace(Limits(), redis_timeout_seconds=60.0, redis_connect_seconds=90.0)


class Watched(RedisLink):
    """A link that records its commands."""

    def __init__(self, url: str, limits: Limits, *, spread: bool = False) -> None:
        super().__init__(url, ManualClock(1_000.0), limits=limits)
        self.is_cluster = spread
        self.asked: asyncio.Queue[Command] = asyncio.Queue()

    async def run(self, commands: Sequence[Command]) -> list[Any] | None:
        for command in commands:
            self.asked.put_nowait(command)
        return await super().run(commands)

    async def waits(self) -> Command:
        """Returns the next command that waits."""
        while "BLOCK" not in (command := await self.asked.get()):
            pass
        return command


class World:
    """An engine and a writer for each model, and a subscriber that has loaded both and is not
    started.
    """

    def __init__(self, link: RedisLink, watched: Watched) -> None:
        self.watched = watched
        clock = ManualClock(1_000.0)
        self.engines = {key: PrefixCacheEngine(capacity=60, seed=1) for key in MODELS}
        self.indexers, self.writers = {}, {}
        for key in MODELS:
            self.indexers[key] = InMemoryIndexer(key, {f"{key}/0": self.engines[key]}, clock, PATIENT)
            self.writers[key] = self.indexers[key].sink = IndexWriter(
                link, self.indexers[key], clock, holder="one", limits=PATIENT
            )
            self.writers[key].set_models([key])
        self.came: asyncio.Queue[str] = asyncio.Queue()
        self.feed = IndexSubscriber(
            watched,
            ManualClock(1_000.0),
            on_changes=lambda key, _: self.came.put_nowait(key),
            wait_seconds=50.0,
            status_seconds=1e9,
        )
        self.feed.set_models(MODELS)

    async def prompt(self, key: str, first: int) -> None:
        self.engines[key].serve_prompt(range(first, first + 40))
        self.engines[key].publish()
        self.indexers[key].read()
        await self.writers[key].step()


@asynccontextmanager
async def world_of(url: str, *, spread: bool = False) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        link, watched = RedisLink(url, ManualClock(1_000.0), limits=PATIENT), Watched(url, PATIENT, spread=spread)
        for connection in (link, watched):
            connection.start()
            stack.push_async_callback(connection.stop)
            await connection.wait_connected()
        world = World(link, watched)
        for key in MODELS:
            await world.prompt(key, 0)
            await world.prompt(key, 100)
        await world.feed.step()
        assert all(world.feed.replica(key) is not None for key in MODELS)
        stack.push_async_callback(world.feed.stop)
        yield world


@asynccontextmanager
async def world_with_redis(server: Valkey, *, spread: bool = False) -> AsyncIterator[tuple[World, Any]]:
    async with world_of(server.url, spread=spread) as world, Redis.from_url(server.url) as redis:
        async with asyncio.timeout(40.0):
            yield world, redis


async def test_one_blocking_read_returns_entries_of_any_model(server: Valkey) -> None:
    async with world_with_redis(server) as (world, _):
        world.feed.start()
        for number, key in enumerate((*MODELS, MODELS[0])):
            waiting = await world.watched.waits()
            assert {redis_keys.index_keys(model)[2] for model in MODELS} < set(waiting)
            await world.prompt(key, 1_000 * (number + 1))
            assert await world.came.get() == key


async def test_key_of_a_wrong_type_does_not_stop_other_models(server: Valkey) -> None:
    async with world_with_redis(server) as (world, redis):
        await redis.set(redis_keys.index_keys(MODELS[1])[2], b"no stream")
        world.feed.start()
        for number in range(3):
            await world.prompt(MODELS[0], 1_000 * (number + 1))
            assert await world.came.get() == MODELS[0]


async def test_defect_in_one_models_index_is_said_and_stops_no_other_model(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(data: bytes, key: str, *rest: Any) -> Any:
        return decode_changes(data, key, *rest) if key == MODELS[0] else 1 // 0

    async with world_with_redis(server) as (world, _):
        for module in (bootstrap, subscriber):
            monkeypatch.setattr(module, "decode_changes", decode)
        world.feed.start()
        for number in range(3):
            for key in reversed(MODELS):
                await world.prompt(key, 1_000 * (number + 1))
            assert await world.came.get() == MODELS[0]
        assert world.feed.stale_since(MODELS[0]) is None
        assert "a defect" in world.feed.describe(MODELS[1])


async def test_cluster_is_polled_without_blocking_reads(server: Valkey) -> None:
    async with world_with_redis(server, spread=True) as (world, _):
        world.feed.start()
        await world.prompt(MODELS[1], 1_000)
        assert await world.came.get() == MODELS[1]
        asked = [world.watched.asked.get_nowait() for _ in range(world.watched.asked.qsize())]
        assert asked
        assert not any("BLOCK" in command for command in asked)
