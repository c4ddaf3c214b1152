"""An indexer without sockets, for tests and measurements: engines hand it their frames directly. And a small world of three engines,
an indexer and a mirror around one Redis."""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any, Final

from redis.asyncio import Redis

from fairlead.clock import Clock, ManualClock
from fairlead.limits import Limits
from fairlead.testing.waiting import until
from fairlead_kvstore import keys
from fairlead_kvstore.errors import KeptError
from fairlead_kvstore.events.outcomes import Outcome
from fairlead_kvstore.events.sequence import Stream
from fairlead_kvstore.follow import follow
from fairlead_kvstore.index.feed import Feed
from fairlead_kvstore.index.left import KeptInstance, Left
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.index.sink import Sink
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis import RedisLink
from fairlead_kvstore.testing import Engine
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.tiers import Tier
from fairlead_kvstore.truth.truth import Truth

MODEL: Final = "default/tiny"
OWN, IDX, EV = keys.index_keys(MODEL)
LIMITS: Final = replace(
    Limits(), redis_pause_seconds=0.05, redis_ping_seconds=0.02, redis_deadline_seconds=5.0, index_lease_seconds=60.0
)
NAMES: Final = ("a/1/0", "b/1/0", "c/1/0")


class TinyIndexer:
    """One model's engines, by instance. While it leads it reads them, and its changes go to ``sink``, which is set afterwards."""

    def __init__(self, model_key: str, engines: dict[str, Engine], clock: Clock, limits: Limits) -> None:
        self.model_key = model_key
        self.engines = engines
        self.truth = Truth(limits=limits)
        self.streams: dict[str, Stream] = {}
        self.left: Left | None = None
        self.sink: Sink | None = None
        self.begun = 0
        self.ended = 0
        self._clock = clock
        self._limits = limits
        self._read: dict[str, int] = {}

    # --- what the writer asks -------------------------------------------------------------------------------------------

    def begin(self, model_key: str, found: Left) -> None:
        """Attach all engines, go on from what was left, and read."""
        self.begun += 1
        self.left = found
        for instance in self.engines:
            self.attach(instance, found.instances.get(instance))
        if self.engines:
            self.truth.hinted(model_key, found.hints)

    def end(self, model_key: str) -> None:
        """Forget everything."""
        self.ended += 1
        self.truth, self.streams = Truth(limits=self._limits), {}

    def instances(self, model_key: str) -> Sequence[str]:
        """All that are attached."""
        return list(self.streams)

    def keep(self, instance: str) -> KeptInstance:
        """As of now."""
        kept, rows = self.truth.keep(instance, self._ahead())
        return KeptInstance(kept, rows, self.streams[instance].position)

    def hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """As of now."""
        return self.truth.hints(model_key)

    # --- what tests do --------------------------------------------------------------------------------------------------

    def attach(self, instance: str, kept: KeptInstance | None = None) -> None:
        """Read this engine from now on."""
        now = self._clock.now()
        self.tell(self.truth.attach(instance, self.model_key, now))
        position = None
        if kept is not None and kept.position is not None:
            try:
                self.tell(self.truth.restore(instance, kept.slice, kept.rows, self._ahead(), now))
                position = kept.position
            except KeptError:
                position = None
        stream = self.streams[instance] = Stream(replayable=True, limits=self._limits, position=position)
        self._read[instance] = self.engines[instance].number
        self.handle(instance, stream.connected())

    def detach(self, instance: str) -> None:
        """It is gone."""
        del self.streams[instance]
        self.tell(self.truth.detach(instance, "gone"))

    def reconnect(self, instance: str) -> None:
        """The connection broke and stands again; what was published and not read is lost with it."""
        if instance in self.streams:
            self._read[instance] = self.engines[instance].number
            self.handle(instance, self.streams[instance].disconnected())
            self.handle(instance, self.streams[instance].connected())

    def read(self) -> None:
        """Everything that the engines have published and that was not read yet."""
        for instance, stream in list(self.streams.items()):
            engine = self.engines[instance]
            engine.publish()
            for frame in engine.replay(self._read[instance]):
                self.handle(instance, stream.live(frame))
            self._read[instance] = engine.number

    def handle(self, instance: str, outcomes: Iterable[Outcome]) -> None:
        """Follow, and answer what is asked."""
        found = follow(self.truth, instance, outcomes, self._clock.now(), self._limits)
        self.tell(found.changes)
        if found.ask is not None:
            for frame in [*self.engines[instance].replay(found.ask), None]:
                self.handle(instance, self.streams[instance].replayed(frame))

    def tell(self, changes: list[Change]) -> None:
        """Offer changes."""
        if self.sink is not None:
            self.sink.offer(self.model_key, changes)

    def _ahead(self) -> float:
        return self._clock.wall() - self._clock.now()


def content(truth: Truth) -> dict[str, set[tuple[int, Tier]]]:
    """What each of the world's instances holds by the truth: (own hash, tier)."""
    return {name: set(truth.content(name)) for name in NAMES if name in truth}


def mirrored(mirror: IndexMirror) -> dict[str, set[tuple[int, Tier]]]:
    """What each instance holds by a mirror."""
    found: dict[str, set[tuple[int, Tier]]] = {name: set() for name in mirror.instances()}
    for own in list(mirror._masks):
        for name, tiers in mirror.holders(own).items():
            found[name] |= {(own, tier) for tier in tiers}
    return found


class World:
    """Engines, an indexer and a feed around one Redis; all of them move only when told to."""

    def __init__(self, url: str, limits: Limits = LIMITS) -> None:
        self.url, self.limits = url, limits
        self.clock = ManualClock(1_000.0)
        self.draw = Random(7)
        self.engines = {
            name: Engine(capacity=60, seed=number, maps=bool(number % 2)) for number, name in enumerate(NAMES)
        }
        self.link = RedisLink(url, self.clock, limits=limits)
        self.changes: list[Change] = []
        self.reloads: list[IndexMirror] = []
        self.feed = Feed(
            self.link,
            self.clock,
            limits=limits,
            on_changes=lambda _, found: self.changes.extend(found),
            on_reload=lambda _, mirror: self.reloads.append(mirror),
        )
        self.feed.follow([MODEL])
        self.indexer, self.writer = self.another("one")

    def another(self, holder: str) -> tuple[TinyIndexer, IndexWriter]:
        """An indexer that knows nothing yet."""
        indexer = TinyIndexer(MODEL, self.engines, self.clock, self.limits)
        writer = IndexWriter(self.link, indexer, self.clock, holder=holder, limits=self.limits)
        indexer.sink = writer
        writer.serve([MODEL])
        return indexer, writer

    def prompt(self, count: int = 1) -> None:
        """Prompts that share heads, at random engines."""
        for _ in range(count):
            name = self.draw.choice(list(self.engines))
            head, tail, length = self.draw.randrange(4), self.draw.randrange(6), self.draw.randrange(4, 60)
            tokens = [
                head * 1_000 + index if index < 20 else tail * 10_000 + head * 1_000 + index for index in range(length)
            ]
            self.engines[name].prompt(tokens)
            self.engines[name].publish()

    async def write(self, count: int = 1) -> None:
        """So many prompts, read and written."""
        self.prompt(count)
        self.indexer.read()
        await self.writer.step()

    async def settle(self) -> None:
        """Time passes, and everybody does what there is to do."""
        for _ in range(8):
            self.clock.advance(25.0)
            await self.link.wait_connected()
            self.indexer.read()
            await self.writer.step()
            await self.feed.step()

    def agrees(self) -> None:
        """The mirror holds what the truth holds, as complete, and is not stale."""
        mirror = self.feed.mirror(MODEL)
        assert mirror is not None, self.feed.words(MODEL)
        assert mirrored(mirror) == content(self.indexer.truth)
        for name in content(self.indexer.truth):
            state, known = self.indexer.truth.state(name), mirror.standing(name)
            assert known is not None
            assert (known.complete, known.reason) == (state.complete, state.reason)
            assert math.isclose(known.since, state.since, abs_tol=0.01)
        assert self.feed.stale_since(MODEL) is None, self.feed.words(MODEL)

    async def lost(self) -> None:
        """The link has noticed that Redis is gone."""
        await until(lambda: not self.link.state.connected)


@asynccontextmanager
async def world_of(url: str, limits: Limits) -> AsyncIterator[World]:
    """A world whose link is up."""
    world = World(url, limits)
    world.link.start()
    await world.link.wait_connected()
    try:
        yield world
    finally:
        await world.link.stop()


def played(url: str, work: Callable[[World, Any], Awaitable[None]], limits: Limits = LIMITS) -> None:
    """``work`` on a fresh world and a client of its Redis."""

    async def run() -> None:
        async with world_of(url, limits) as world, Redis.from_url(url) as redis:
            await work(world, redis)

    asyncio.run(run())
