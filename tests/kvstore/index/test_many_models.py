"""Many models on a distant Redis: their writer does not serve them one after the other."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.index import lua, redis_keys
from fairlead_kvstore.index import writer as writing
from fairlead_kvstore.index.recovery import RecoveredIndex
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.backends import Command
from fairlead_testing.kvstore.index_harness import InMemoryIndexer
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.redis.valkey import Valkey

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


def test_forty_models_need_as_many_round_trips_as_one(server: Valkey) -> None:
    async def rounds(names: list[str]) -> list[int]:
        clock, limits, found = ManualClock(1_000.0), Limits(), []
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

            writer = IndexWriter(link, Owner(), clock, holder="one", limits=limits)
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
                found.append(far.rounds - before)
                clock.advance(limits.index_lease_seconds / 2)
            assert all(writer.is_leader(key) for key in names)
            assert {await redis.exists(redis_keys.index_keys(key)[1]) for key in names} == {1}
        return found

    async def main() -> None:
        one, forty = await rounds(MODELS[:1]), await rounds(MODELS)
        assert max(one) > 3, "to begin takes several exchanges"
        assert sum(forty) <= 2 * sum(one)

    asyncio.run(main())


class _Link:
    """A Redis that grants every lease and records the models whose index begins."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    async def run(self, commands: Sequence[Command]) -> list[Any]:
        return [self._reply(command) for command in commands]

    def _reply(self, command: Command) -> Any:
        if command[0] != "EVAL":
            return []
        _, script, _, own, *_ = command
        if script == lua.LEAD:
            return [b"won", b"1:one", b""]
        if script == lua.BEGIN:
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


def test_model_that_cannot_be_written_stops_no_other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    async def recovered(*_: object) -> RecoveredIndex:
        return RecoveredIndex({}, [], {})

    async def main() -> None:
        monkeypatch.setattr(writing, "recover_index", recovered)
        link, owner, clock = _Link(), _Owner(), ManualClock(1_000.0)
        connected: Any = link
        writer = IndexWriter(connected, owner, clock, holder="one", limits=Limits())
        writer.set_models(MODELS[:2])
        await writer.step()
        assert (writer.is_leader(MODELS[0]), writer.is_leader(MODELS[1])) == (False, True)
        assert owner.stopped == [MODELS[0]]
        assert len(link.begun) == 2
        assert "defect" in writer.describe(MODELS[0])
        await writer.step()
        assert len(link.begun) == 2, "it is not tried again before a lease has passed"

    asyncio.run(main())
