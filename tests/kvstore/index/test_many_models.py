"""Many models on a distant Redis: their writer does not serve them one after the other."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from xxhash import xxh3_64_intdigest

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.blockstore.snapshot import RowParts
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.blockstore.types import InstanceSnapshot
from fairlead_kvstore.events.payloads import EventBatch, StoredEvent
from fairlead_kvstore.events.types import StreamPosition
from fairlead_kvstore.index import redis_keys, writer
from fairlead_kvstore.index import writer as writing
from fairlead_kvstore.index.format import InstanceHeader, encode_part, encode_value
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex, recover_index
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.backends import Command
from fairlead_kvstore.redis.link import LinkState
from fairlead_testing.kvstore.block_store import apply_batch
from fairlead_testing.kvstore.index_harness import InMemoryIndexer
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.redis.valkey import Valkey
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

MODELS = [f"default/model-{number}" for number in range(40)]


class Far:
    """A link with latency: every command before the next ``round`` is answered in it."""

    def __init__(self, redis: "Redis[bytes]") -> None:
        self._redis = redis
        self._asked: list[asyncio.Future[None]] = []
        self.rounds = 0

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(turn)
        await turn
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            return list(await pipe.execute(raise_on_error=False))

    async def carry(self, work: "asyncio.Task[None]") -> None:
        """Runs rounds until the work is done."""
        while not work.done():
            for _ in range(200):
                await asyncio.sleep(0)  # lets every task reach its next command
            asked, self._asked = self._asked, []
            if asked:
                self.rounds += 1
            for turn in asked:
                turn.set_result(None)
            await asyncio.wait([work], timeout=0 if self._asked else 0.001)
        await work


async def test_forty_models_need_as_many_round_trips_as_one(server: Valkey) -> None:
    async def rounds(names: list[str]) -> list[int]:
        clock, limits, trips = ManualClock(1_000.0), Limits(), []
        async with Redis.from_url(server.url, protocol=2) as redis:
            await redis.flushall()
            far = Far(redis)
            link: Any = far
            owners: dict[str, InMemoryIndexer] = {}

            class Owner:
                def __getattr__(self, name: str) -> Any:
                    return lambda key, *more: getattr(owners[key], name)(key, *more)

                def keep(self, instance: str) -> Any:
                    return owners[f"default/{instance.partition('/')[0]}"].checkpoint(instance)

            writer = IndexWriter(link, Owner(), clock, holder="one", instance_statuses=lambda _: {}, limits=limits)
            for key in names:
                owners[key] = InMemoryIndexer(
                    key, {f"{key.partition('/')[2]}/1/0": PrefixCacheEngine(capacity=20)}, clock, limits
                )
                owners[key].sink = writer
            writer.set_models(names)
            for _ in range(6):
                for owner in owners.values():
                    for engine in owner.engines.values():
                        engine.serve_prompt(list(range(12)))
                    owner.read()
                before = far.rounds
                await far.carry(asyncio.create_task(writer.step()))
                trips.append(far.rounds - before)
                clock.advance(limits.index_lease_seconds / 2)
            assert all(writer.is_leader(key) for key in names)
            assert {await redis.exists(redis_keys.index_keys(key)[1]) for key in names} == {1}
        return trips

    single, forty = await rounds(MODELS[:1]), await rounds(MODELS)
    assert max(single) > 3, "to begin takes several exchanges"
    assert sum(forty) <= 2 * sum(single)


class _Link:
    """A Redis that grants every lease and records the models whose index begins."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.steps = 0

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return [self._reply(command) for command in commands]

    def _reply(self, command: Command) -> Any:
        self.steps += 1
        if command[0] != "EVAL":
            return []
        _, script, _, own, *_ = command
        if script == writer.LEAD:
            return [b"new", b"1:one"]
        if script == writer.BEGIN:
            self.begun.append(str(own))
        return [b"ok"]


class _Owner:
    """The engines of two models; those of the first one cannot be stored."""

    def __init__(self) -> None:
        self.stopped: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *_: []

    def stop_model(self, model_key: str) -> None:
        self.stopped.append(model_key)

    def instances(self, model_key: str) -> Sequence[str]:
        if model_key == MODELS[0]:
            raise OverflowError("can't serialize ints > 2**64 - 1")
        return []


async def test_model_that_cannot_be_written_stops_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def recovered(*_: object) -> RecoveredIndex:
        return RecoveredIndex({}, {})

    monkeypatch.setattr(writing, "recover_index", recovered)
    link, owner, clock = _Link(), _Owner(), ManualClock(1_000.0)
    connected: Any = link
    writer = IndexWriter(connected, owner, clock, holder="one", instance_statuses=lambda _: {}, limits=Limits())
    writer.set_models(MODELS[:2])
    await writer.step()
    assert (writer.is_leader(MODELS[0]), writer.is_leader(MODELS[1])) == (False, True)
    assert owner.stopped == [MODELS[0]]
    assert len(link.begun) == 2
    assert "defect" in writer.problems()[MODELS[0]]
    await writer.step()
    assert len(link.begun) == 2, "it is not tried again before a lease has passed"


class _SlowLink:
    """A Redis with one large instance of the first model. It counts other work between commands."""

    def __init__(self, snapshot: InstanceSnapshot, rows: RowParts) -> None:
        self.renewals = self.leases = self.turns = 0
        self.is_lost = False
        fields = {name: b"c:%d" % number for number, name in enumerate(rows)}
        header = InstanceHeader(1, 0, snapshot, fields, StreamPosition(0, []))
        self._values = {fields[name]: encode_part(data, xxh3_64_intdigest(data)) for name, data in rows.items()}
        self._values[b"i:a"] = encode_value(header)

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        await asyncio.sleep(0)
        return [self._reply(command) for command in commands]

    def _reply(self, command: Command) -> Any:
        name, *words = command
        if name == "HKEYS":
            return [b"i:a"]
        if name == "HMGET":
            return [self._values[word] for word in words[1:] if isinstance(word, bytes)]
        self.renewals += words[0] == writer.RENEW
        return 0 if self.is_lost else 1


async def _restore(link: Any) -> RecoveredIndex | None:
    """Restores the model while other work runs, which ``link.turns`` counts."""
    work = asyncio.ensure_future(recover_index(link, MODELS[0], 0.0, [("EVAL", writer.RENEW, 1, "own", b"1:one", 9)]))
    while not work.done():
        link.turns += 1
        await asyncio.sleep(0)
    return work.result()


def test_restore_of_a_large_instance_leaves_turns_and_renews_the_lease() -> None:
    store, count = BlockStore(), 60_000
    store.attach("a", MODELS[0], 0.0)
    for start in range(0, count, 20_000):
        hashes = list(range(start + 1, start + 20_001))
        apply_batch(store, "a", EventBatch(0.0, [StoredEvent(hashes, start or None, [0] * 20_000, 1)]), 0.0)
    snapshot, rows = store.take_snapshot("a", 0.0)
    link = _SlowLink(snapshot, rows)
    recovered = asyncio.run(_restore(link))
    assert recovered is not None
    assert not recovered.unreadable
    assert link.turns > 30
    assert link.renewals > 6
    restored = recovered.instances["a"]
    assert isinstance(restored, InstanceCheckpoint)
    later = BlockStore(limits=replace(Limits(), kv_blocks_per_instance=58_000))
    later.attach("a", MODELS[0], 0.0)
    assert restored.table is not None
    later.restore_table("a", snapshot, restored.table, 0.0, 0.0)
    assert set(later.content("a")) == set(store.content("a"))
    steps = 0
    while later.evict_some(0.0):
        steps += 1
    assert steps > 1
    assert later.block_count <= 58_000
    link = _SlowLink(snapshot, rows)
    link.is_lost = True
    assert asyncio.run(_restore(link)) is None, "another indexer has the lease"


async def test_restore_of_one_model_delays_no_lease_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    held, started = asyncio.Event(), list[str]()

    async def recovered(_: Any, model_key: str, *__: object) -> RecoveredIndex:
        started.append(model_key)
        if model_key == MODELS[0]:
            await held.wait()
        return RecoveredIndex({}, {})

    monkeypatch.setattr(writing, "recover_index", recovered)
    link: Any = _Link()
    limits, clock = replace(Limits(), index_lease_seconds=0.03), ManualClock(1_000.0)
    writer = IndexWriter(link, _Owner(), clock, holder="one", instance_statuses=lambda _: {}, limits=limits)
    link.wait_connected = lambda: asyncio.sleep(0)
    link.state = LinkState(True, 0.0)
    writer.set_models(MODELS[:3])
    writer.start()
    await wait_until(lambda: writer.is_leader(MODELS[1]) and writer.is_leader(MODELS[2]))
    before = link.steps
    clock.advance(limits.index_lease_seconds)
    await wait_until(lambda: link.steps > before)
    assert not writer.is_leader(MODELS[0])
    assert started.count(MODELS[0]) == 1
    held.set()
    await writer.stop()
