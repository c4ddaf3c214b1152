"""An indexer before engines on real sockets, whose state tests compare with that of the engines.

An indexer process for a test, killed at its end.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import httpx
import zmq

from fairlead.errors import Unavailable
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.types import EventFrame
from fairlead_kvstore.fleet_reader import FleetReader
from fairlead_kvstore.reader.reader_context import ReaderRuntime
from fairlead_testing.kvstore.block_store import InstanceState, cached_depths, instance_state
from fairlead_testing.kvstore.prefix_cache_engine import PrefixCacheEngine
from fairlead_testing.kvstore.zmq_engine import ManualLoop, ZmqEngine
from fairlead_testing.processes import ready_process
from fairlead_testing.waiting import wait_until

MODEL = "default/tiny"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The state of one instance, from an indexer and its block store. ``counts`` are those of its
    model.
    """

    events: str | None
    connected: bool
    replaying: bool
    problem: str
    state: InstanceState
    counts: Counter[str]
    lag_seconds: float | None


class CollectingSink:
    """A ``ChangeSink`` that applies changes to an index for each model."""

    def __init__(self) -> None:
        self._indexes: dict[str, LoadedIndex] = {}

    def index(self, model_key: str) -> LoadedIndex:
        return self._indexes.setdefault(model_key, LoadedIndex())

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        self.index(model_key).apply(changes)


class IndexerHarness:
    """The indexer and its engines.

    engines: by instance.
    answers: HTTP answers by (instance, path); ``asked`` counts the requests.
    leased: the indexer reads a model only after ``start_model``.
    """

    def __init__(self, limits: Limits, *, leased: bool = False) -> None:
        self.clock = ManualClock()
        self.loop = ManualLoop(self.clock)
        self.engines: dict[str, ZmqEngine] = {}
        self.answers: dict[tuple[str, str], bytes] = {}
        self.queries: list[tuple[str, str]] = []
        self.instances: dict[str, Instance] = {}
        self.sink = CollectingSink()
        self.store = BlockStore(limits=limits)
        self.indexer = FleetReader(
            self.store,
            self.sink,
            self._query,
            ReaderRuntime(cast(asyncio.AbstractEventLoop, self.loop), self.clock, lambda: 1.0, limits),
            leased=leased,
        )
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    def start_engine(
        self,
        name: str,
        engine: PrefixCacheEngine | None = None,
        *,
        replays: bool = True,
        folder: Path | None = None,
    ) -> ZmqEngine:
        """Starts an engine; one of this name ends, and the new one takes its ports."""
        before = self.engines.pop(name, None)
        ports = before.ports if before is not None and folder is None else (0, 0)
        if before is not None:
            before.close()
        started = ZmqEngine(
            engine or PrefixCacheEngine(capacity=400),
            self.context,
            ports=ports,
            replays=replays,
            folder=folder,
        )
        self.engines[name] = started
        return started

    def add_instance(self, name: str, **more: object) -> None:
        """Adds the instance to the fleet, at its engine's endpoints."""
        engine = self.engines.get(name)
        instance = Instance(id=name, namespace="default", model="tiny", pool="main", url=f"http://127.0.0.1:1/{name}")
        if engine is not None:
            instance = replace(instance, kv_events=engine.events, kv_replay=engine.replay)
        self.instances[name] = replace(instance, **more)  # type: ignore[arg-type]  # fields of an instance
        self.apply_fleet()

    async def connect_engine(self, name: str) -> ZmqEngine:
        """Starts an engine, adds its instance and waits until the indexer hears it."""
        engine = self.start_engine(name)
        self.add_instance(name)
        await self.wait_connected(name)
        return engine

    def apply_fleet(self) -> None:
        instances = tuple(self.instances[name] for name in sorted(self.instances))
        self.indexer.update_fleet(Fleet(1, 1, {MODEL: Model("default", "tiny")}, {MODEL: instances}))

    def status(self, name: str) -> EngineStatus:
        """Returns the indexer's status of an instance."""
        status = self.indexer.instance_statuses()[name]
        return EngineStatus(
            status.events,
            status.connected,
            status.replaying,
            status.trouble,
            instance_state(self.store, name),
            self.store.counts[self.indexer._members[name].model_key],
            status.lag_seconds,
        )

    def credited_blocks(self, name: str, tokens: Sequence[int]) -> int:
        """Returns the blocks of a prompt that the index credits the instance with.

        Asserts that the store agrees with its changes.
        """
        size = self.engines[name].engine.block_size if name in self.engines else 4
        chain = block_hashes(chain_root(MODEL), list(tokens), size)
        cached = cached_depths(self.store, name, chain)[StorageTier.GPU]
        assert self.sink.index(MODEL).match(name, chain)[0] == cached
        return cached

    def is_exact(self, name: str) -> bool:
        engine = self.engines[name].engine
        return self.status(name).state.complete and self.status(name).state.blocks == engine.cached_blocks

    async def wait_exact(self, *names: str) -> None:
        await wait_until(lambda: all(self.status(name).connected and self.is_exact(name) for name in names))

    async def wait_connected(self, *names: str) -> None:
        await wait_until(lambda: all(self.status(name).connected for name in names))
        await wait_until(lambda: all(self.engines[name].listeners > 0 for name in names))

    async def _query(self, instance: Instance, path: str) -> bytes:
        self.queries.append((instance.id, path))
        try:
            return self.answers[instance.id, path]
        except KeyError:
            raise Unavailable(f"{path} answers 404") from None


@asynccontextmanager
async def indexer_harness(limits: Limits | None = None, *, leased: bool = False) -> AsyncIterator[IndexerHarness]:
    """Yields a harness, and closes it at the end."""
    harness = IndexerHarness(limits or Limits(), leased=leased)
    try:
        yield harness
    finally:
        await harness.indexer.close()
        for engine in harness.engines.values():
            engine.close()
        await asyncio.to_thread(harness.context.destroy, 0)


@asynccontextmanager
async def exact_engine(
    *prompts: Sequence[int], limits: Limits | None = None
) -> AsyncIterator[tuple[IndexerHarness, ZmqEngine]]:
    """Runs an indexer that knows what its engine `a` has cached after some prompts."""
    async with indexer_harness(limits) as stage:
        engine = await stage.connect_engine("a")
        for prompt in prompts:
            engine.serve_prompt(*prompt)
        await stage.wait_exact("a")
        yield stage, engine


def frames(engine: PrefixCacheEngine, *prompts: Sequence[int]) -> list[EventFrame]:
    """Returns the frames that the engine publishes for these prompts."""
    found = []
    for prompt in prompts:
        engine.serve_prompt(prompt)
        frame = engine.publish()
        assert frame is not None
        found.append(frame)
    return found


class IndexerProcess:
    """A process that printed ``ready``."""

    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get(self.url + path)

    async def metric(self, name: str, model: str = "default/tiny") -> float:
        """Returns a metric of one model; NaN while there is none."""
        for line in (await self.get("/metrics")).text.splitlines():
            if line.startswith(f'fairlead_indexer_{name}{{model="{model}"}} '):
                return float(line.rpartition(" ")[2])
        return float("nan")


@asynccontextmanager
async def indexer_process(*arguments: str) -> AsyncIterator[IndexerProcess]:
    async with ready_process("fairlead_kvstore", *arguments, ready=r"ready (http://\S+)") as (process, found):
        yield IndexerProcess(process, found[1])
