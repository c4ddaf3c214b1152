"""The reader of engines in a gateway: what it takes over from Redis before it reads a model."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_gateway.kv_index.supervisor import event_reader
from fairlead_gateway.kv_index.supervisor.event_reader import EventReader
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.reader.reader_context import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.gateway.running_gateway import fleet_of
from fairlead_testing.kvstore.index_harness import INDEX_KEY, MODEL, NAMES, harness_with_redis, store_content
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets


def fleet(names: Sequence[str] = NAMES) -> Fleet:
    """Returns a fleet whose engines do not run."""
    found = fleet_of([f"http://127.0.0.1:{9 + number}" for number in range(len(names))])
    instances = [
        replace(one, id=name, kv_events="tcp://127.0.0.1:9", kv_replay="tcp://127.0.0.1:9")
        for name, one in zip(names, found.instances[MODEL], strict=True)
    ]
    return replace(found, instances={MODEL: tuple(instances)})


class Reading:
    """A reader, and what it passes on."""

    def __init__(self, link: RedisLink | None, secret: bytes) -> None:
        self.changes: list[Change] = []
        self.restored: list[str] = []
        self.reader = EventReader(
            self,
            self.restored.append,
            ReaderRuntime(asyncio.get_running_loop(), SystemClock(), random.random, Limits()),
            secret=secret,
            environ={},
            link=link,
        )

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        self.changes.extend(changes)


@asynccontextmanager
async def reading(url: str | None, secret: bytes = b"") -> AsyncIterator[Reading]:
    link = None if url is None else RedisLink(url, SystemClock())
    if link is not None:
        link.start()
    found = Reading(link, secret)
    try:
        yield found
    finally:
        await found.reader.close()
        if link is not None:
            await link.stop()


def is_attached(found: Reading) -> Any:
    return lambda: len(found.reader.blocks(MODEL).instances()) == len(NAMES)


async def test_blocks_that_an_indexer_left_are_there_before_an_engine_answers(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, _), reading(server.url) as found:
        await world.write(60)
        for name in NAMES:
            await world.writer._write_item(world.writer._models[MODEL], name)
        found.reader.update_fleet(fleet(), [MODEL])
        await wait_until(lambda: found.restored == [MODEL])
        blocks = found.reader.blocks(MODEL)
        for name, content in store_content(world.indexer.store).items():
            assert content
            assert all(blocks.tiers(name, block) & 1 << tier for block, tier in content)
            known = blocks.completeness(name)
            assert known is not None
            assert not known[0], "not before its stream resumes"
        assert blocks.block_size(NAMES[0]) == world.indexer.store.instance(NAMES[0]).block_size
        assert blocks.tiers("unknown", 1) == 0
        assert blocks.completeness("unknown") is blocks.block_size("unknown") is None
        found.reader.update_fleet(fleet(), [])
        assert not blocks.instances(), "the model is not read any more"


async def test_an_index_of_another_secret_is_not_used(server: Valkey) -> None:
    async with harness_with_redis(server.url) as (world, _), reading(server.url, b"another") as found:
        await world.write(60)
        found.reader.update_fleet(fleet(), [MODEL])
        await wait_until(is_attached(found))
        assert found.reader.other_secret == {MODEL}
        assert not found.restored
        found.reader.update_fleet(fleet(), [])
        assert not found.reader.other_secret


async def test_a_model_is_read_without_redis_and_with_one_that_is_away_or_holds_nonsense(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_reader, "_CONNECT_SECONDS", 0.05)
    async with harness_with_redis(server.url) as (_, redis):
        await redis.set(INDEX_KEY, "a string")
        for url in (None, server.url, "redis://127.0.0.1:9/0"):
            async with reading(url) as found:
                found.reader.update_fleet(fleet(), [MODEL])
                await wait_until(is_attached(found))
                assert not found.restored


async def test_a_defect_of_the_recovery_stops_no_model(server: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a defect of the test")

    monkeypatch.setattr(event_reader, "recover_index", broken)
    async with reading(server.url) as found:
        found.reader.update_fleet(fleet(), [MODEL])
        await wait_until(is_attached(found))
        found.reader.update_fleet(replace(fleet(), instances={}), [MODEL])
        await asyncio.sleep(0)
        assert not found.reader.blocks(MODEL).instances()
