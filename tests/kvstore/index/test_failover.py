"""The index on several servers: a failover that loses the last writes, and a cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.index_harness import InMemoryIndexer
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.processes import block_until
from fairlead_testing.redis.valkey_cluster import ValkeyGroup
from fairlead_testing.waiting import wait_until as until

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]
QUICK = replace(Limits(), redis_pause_seconds=0.2, redis_ping_seconds=0.05, redis_timeout_seconds=2.0)
MODELS = [f"default/model-{number}" for number in range(6)]
"""In slots of every master of a cluster."""


def replica_blocks(mirror: IndexReplica | None) -> set[int]:
    return set() if mirror is None else {own for own in mirror._masks if mirror.holders(own)}


class Live:
    """One engine per model; writers and subscribers run by themselves."""

    def __init__(self, link: RedisLink, models: list[str]) -> None:
        self.engines = {key: PrefixCacheEngine(capacity=200, seed=number) for number, key in enumerate(models)}
        self.clock = SystemClock()
        self.indexers = [
            InMemoryIndexer(key, {"a/1/0": engine}, self.clock, QUICK) for key, engine in self.engines.items()
        ]
        self.writers = [IndexWriter(link, one, self.clock, holder="one", limits=QUICK) for one in self.indexers]
        self.feed = IndexSubscriber(link, self.clock, limits=QUICK)
        self.feed.set_models(models)
        self.prompted = 0
        for indexer, writer in zip(self.indexers, self.writers, strict=True):
            indexer.sink = writer
            writer.set_models([indexer.model_key])

    def start(self) -> None:
        for writer in self.writers:
            writer.start()
        self.feed.start()

    async def stop(self) -> None:
        await self.feed.stop()
        for writer in self.writers:
            await writer.stop()

    def prompt(self) -> None:
        self.prompted += 1
        for indexer in self.indexers:
            self.engines[indexer.model_key].serve_prompt(list(range(self.prompted * 1_000, self.prompted * 1_000 + 24)))
            indexer.read()

    def agree(self) -> bool:
        """Asserts that every replica equals its block store and is current."""
        return all(
            indexer.store.block_count
            and replica_blocks(self.feed.replica(indexer.model_key))
            == {own for own, _ in indexer.store.content("a/1/0")}
            and self.feed.stale_since(indexer.model_key) is None
            for indexer in self.indexers
            if "a/1/0" in indexer.store
        ) and all("a/1/0" in indexer.store for indexer in self.indexers)


@asynccontextmanager
async def live_indexers(url: str, models: list[str]) -> AsyncIterator[Live]:
    link = RedisLink(url, SystemClock(), limits=QUICK)
    link.start()
    live = Live(link, models)
    try:
        async with asyncio.timeout(60):
            await link.wait_connected()
        live.start()
        await until(lambda: all(indexer.begun for indexer in live.indexers))
        yield live
    finally:
        await live.stop()
        await link.stop()


async def test_writes_lost_in_a_failover_are_written_again(pair: ValkeyGroup) -> None:
    """The replica hangs while entries and an epoch are written, the master dies, and the replica is
    promoted.
    """
    _own, idx, ev = redis_keys.index_keys(MODELS[0])
    async with live_indexers(pair.url, MODELS[:1]) as live:
        master, replica = pair.nodes
        live.prompt()
        await until(live.agree)
        await asyncio.to_thread(
            block_until, lambda: replica.execute("XLEN", ev) == master.execute("XLEN", ev), "it has all"
        )
        before = master.execute("HGET", idx, "at")
        replica.freeze()
        for _ in range(2):  # more than sockets hold: what comes after it never leaves the master
            await asyncio.to_thread(master.execute, "SET", "other", "x" * 16_000_000)
        for _ in range(3):
            live.prompt()
            await until(live.agree)
        assert master.execute("HGET", idx, "at") != before
        master.kill()
        replica.thaw()
        await until(lambda: not live.feed._link.state.connected)
        await until(lambda: live.feed.stale_since(MODELS[0]) is not None)
        await until(live.agree)
        live.prompt()
        await until(live.agree)
        assert replica.execute("ROLE")[0] == "master"
        assert live.indexers[0].begun == 1, "the truth went on"
        assert replica.execute("HGET", idx, "at").partition(":")[0] > before.partition(":")[0], "a new epoch"


async def test_models_spread_over_cluster_masters_and_each_is_complete(ring: ValkeyGroup) -> None:
    async with live_indexers(ring.url, MODELS) as live:
        for _ in range(5):
            live.prompt()
            await until(live.agree)
        held = [await asyncio.to_thread(node.execute, "DBSIZE") for node in ring.nodes[:3]]
        assert sum(held) == 3 * len(MODELS)
        assert all(held), "every master has some"
        first, replica = ring.nodes[0], ring.nodes[3]
        first.kill()
        await until(lambda: replica.execute("ROLE")[0] == "master")
        live.prompt()
        await until(live.agree)
