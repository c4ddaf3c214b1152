"""Random events and faults between engines, two indexers, a real Redis and readers, then a quiet
time: what is loaded equals the block store, and so does a gateway that recovers it.

All parts run step by step without an event loop, over a synchronous client behind the interface of
a link. The link can be down, or lose the reply to an executed command. Redis loses everything,
returns to an earlier state (a failover to a delayed replica), is full, or contains foreign values.
"""

from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any, ClassVar

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, rule
from redis import Redis
from redis.exceptions import ConnectionError as Lost

from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.recovery import recover_index
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.backends import Command
from fairlead_testing.kvstore.block_store import instance_state
from fairlead_testing.kvstore.index_harness import FINGERPRINT, InMemoryIndexer, index_content
from fairlead_testing.kvstore.index_reader import IndexReader
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.redis.valkey import Valkey

NIGHTLY = settings().max_examples > 1_000
MODEL = "default/tiny"
OWN, IDX, EV = redis_keys.index_keys(MODEL)
NAMES = ("a/1/0", "b/1/0", "c/1/0")
LIMITS = replace(
    Limits(),
    index_lease_seconds=60.0,
    index_stream_entries=12,
    index_kept_batches=6,
    index_pending_blocks=60,
    index_entry_blocks=16,
)


def done(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as stopped:
        return stopped.value
    raise AssertionError("it waited")


class Link:
    """The interface of a link that writers and subscribers use. ``lose``: the number of replies to
    lose after execution.
    """

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url, protocol=2)
        self.away = False
        self.lose = 0

    def describe(self) -> str:
        return "away"

    async def run(self, commands: Sequence[Command]) -> list[Any] | None:
        if self.away:
            return None
        with self.redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]
            try:
                replies = list(pipe.execute(raise_on_error=False))
            except Lost:
                return None
        if self.lose:
            self.lose -= 1
            return None
        return replies


class Faults(RuleBasedStateMachine):
    """Two indexers, one of which leads at a time, and one reader."""

    server: ClassVar[Valkey]

    def __init__(self) -> None:
        super().__init__()
        self.link = Link(self.server.url)
        self.link.redis.config_set("maxmemory", "0")
        self.link.redis.flushall()
        self.clock = ManualClock(1_000.0)
        self.draw = Random(3)
        self.seed = 0
        self.engines: dict[str, PrefixCacheEngine] = {}
        for name in NAMES:
            self.engine(name)
        self.feed = IndexReader(self.link, self.clock)
        self.feed.set_models([MODEL])
        self.holders = 0
        self.alive: list[str] = []
        self.pairs = [self.another(), self.another()]
        self.poisoned = False
        self.backup: dict[bytes, Any] = {}

    def engine(self, name: str) -> None:
        self.seed += 1
        self.engines[name] = PrefixCacheEngine(capacity=10, seed=self.seed, maps=bool(self.seed % 2), block_size=2)

    def another(self) -> tuple[InMemoryIndexer, IndexWriter]:
        self.holders += 1
        self.alive.append(f"holder-{self.holders}")
        indexer = InMemoryIndexer(MODEL, self.engines, self.clock, LIMITS)
        link: Any = self.link
        writer = IndexWriter(
            link,
            indexer,
            self.clock,
            holder=f"holder-{self.holders}",
            instance_statuses=lambda _: {},
            fingerprint=FINGERPRINT,
            limits=LIMITS,
        )
        indexer.sink = writer
        writer.set_models([MODEL])
        return indexer, writer

    # --- what happens ---------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(NAMES), head=st.integers(0, 1), tail=st.integers(0, 3), length=st.integers(1, 14))
    def prompts(self, name: str, head: int, tail: int, length: int) -> None:
        self.engines[name].serve_prompt([head * 100 + at if at < 6 else tail * 1_000 + at for at in range(length)])
        self.engines[name].publish()

    @rule(name=st.sampled_from(NAMES))
    def clears(self, name: str) -> None:
        self.engines[name].clear()
        self.engines[name].publish()

    @rule(name=st.sampled_from(NAMES))
    def an_engine_restarts(self, name: str) -> None:
        self.engine(name)
        for indexer, _ in self.pairs:
            indexer.reconnect(name)

    @rule(name=st.sampled_from(NAMES))
    def an_instance_comes_or_goes(self, name: str) -> None:
        for indexer, _ in self.pairs:
            if name in indexer.sequencers:
                indexer.detach(name)
            elif indexer.sequencers:
                indexer.attach(name)

    @rule(which=st.integers(0, 1), steps=st.integers(1, 3))
    def an_indexer_works(self, which: int, steps: int) -> None:
        indexer, writer = self.pairs[which]
        for _ in range(steps):
            indexer.read()
            done(writer._take_turn(writer._models[MODEL]))

    @rule(which=st.integers(0, 1))
    def an_indexer_reads_only(self, which: int) -> None:
        self.pairs[which][0].read()

    @rule(which=st.integers(0, 1))
    def an_indexer_is_killed_and_replaced(self, which: int) -> None:
        self.alive.remove(self.pairs[which][1].holder)
        self.pairs[which] = self.another()

    @rule()
    def the_lease_runs_out(self) -> None:
        if not self.link.away:
            self.link.redis.delete(OWN)

    @rule(seconds=st.sampled_from([0.3, 25.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def the_feed_works(self) -> None:
        done(self.feed.step())

    @rule(away=st.booleans())
    def redis_is_away_or_back(self, away: bool) -> None:
        self.link.away = away

    @rule(count=st.integers(1, 3))
    def answers_are_lost(self, count: int) -> None:
        self.link.lose = count

    @rule()
    def redis_is_emptied(self) -> None:
        self.link.redis.flushall()

    @rule()
    def a_replica_is_up_to_date(self) -> None:
        names: Any = self.link.redis.keys("*")
        self.backup = {name: self.link.redis.dump(name) for name in names}

    @rule(lease=st.booleans())
    def a_replica_that_was_behind_takes_over(self, lease: bool) -> None:
        self.link.redis.flushall()
        self.link.redis.config_set("maxmemory", "0")
        for name, data in self.backup.items():
            if lease or name != OWN.encode():
                self.link.redis.restore(name, 60_000, data)

    @rule(full=st.booleans())
    def redis_is_full(self, full: bool) -> None:
        self.link.redis.config_set("maxmemory-policy", "noeviction")
        self.link.redis.config_set("maxmemory", "1" if full else "0")

    @rule(which=st.integers(0, 30), value=st.sampled_from([b"", b"\x01\xc1", b"\x02new", b"7:7", b"\x01\x80"]))
    def a_value_is_poisoned(self, which: int, value: bytes) -> None:
        self.link.redis.config_set("maxmemory", "0")
        if self.link.redis.type(IDX) == b"hash":
            fields: Any = sorted(self.link.redis.hkeys(IDX))
            self.link.redis.hset(IDX, fields[which % len(fields)], value)
            self.poisoned = True

    @rule(key=st.sampled_from([OWN, IDX, EV]), kind=st.sampled_from(["text", "list"]))
    def a_key_is_poisoned(self, key: str, kind: str) -> None:
        self.link.redis.config_set("maxmemory", "0")
        self.link.redis.delete(key)
        if kind == "text":
            self.link.redis.set(key, b"\xff:garbage")
        else:
            self.link.redis.rpush(key, "x")

    # --- and then -------------------------------------------------------------------------------------------------------

    @rule()
    def peace(self) -> None:
        """Ends all faults: one indexer leads, and what is loaded equals its blocks, which are the
        engines'.
        """
        self.link.away, self.link.lose = False, 0
        self.link.redis.config_set("maxmemory", "0")
        lease: Any = self.link.redis.get(OWN) if self.link.redis.type(OWN) == b"string" else None
        if lease is not None and lease.partition(b":")[2].decode("latin-1") not in self.alive:
            self.link.redis.delete(OWN)  # it runs out
        for _ in range(12):
            self.clock.advance(25.0)
            for indexer, writer in self.pairs:
                indexer.read()
                done(writer._take_turn(writer._models[MODEL]))
            done(self.feed.step())
        leaders = [indexer for indexer, writer in self.pairs if writer.is_leader(MODEL)]
        assert len(leaders) == 1, [writer.problems() for _, writer in self.pairs]
        leader = leaders[0]
        truth = {name: set(leader.store.content(name)) for name in leader.sequencers}
        index = self.feed.index(MODEL)
        assert index is not None, self.feed.problem(MODEL)
        content = index_content(index)
        assert content.keys() == truth.keys()
        for name, held in truth.items():
            state, known = instance_state(leader.store, name), index.completeness(name)
            assert known is not None
            if "cannot be read" in known[1]:  # it was poisoned, and has not changed since
                assert content[name] <= held
            else:
                assert content[name] == held
                assert known[:2] == (state.complete, state.reason)
            there = len(self.engines[name]._cached)
            assert len(held) <= there, "ghosts"
            assert len(held) == there or not state.complete, "lost"
        self.a_gateway_starts(truth)

    def a_gateway_starts(self, truth: dict[str, set[Any]]) -> None:
        """Recovers what is in Redis, reads the rest, and has what the leader has."""
        now = self.clock.now()
        link: Any = self.link
        found = done(recover_index(link, MODEL, self.clock.wall() - now, fingerprint=FINGERPRINT))
        assert found is not None
        gateway = InMemoryIndexer(MODEL, {name: self.engines[name] for name in truth}, self.clock, LIMITS)
        gateway.start_model(MODEL, found)
        for name, held in truth.items():
            mine = set(gateway.store.content(name))
            assert mine == held or not instance_state(gateway.store, name).complete
            assert len(mine) <= len(self.engines[name]._cached), "ghosts"

    def teardown(self) -> None:
        self.peace()
        self.link.redis.close()


Faults.TestCase.settings = settings(max_examples=10_000 if NIGHTLY else 20, stateful_step_count=40 if NIGHTLY else 30)


@pytest.fixture(autouse=True, scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    Faults.server = Valkey(tmp_path_factory.mktemp("v"))
    Faults.server.start()
    yield
    Faults.server.kill()


TestFaults = pytest.mark.timeout(7_200)(Faults.TestCase)
