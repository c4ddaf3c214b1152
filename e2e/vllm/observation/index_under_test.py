"""The index under test, in both of its forms.

One is an indexer process that writes to a real Redis, followed from there as by a gateway. The
other is an indexer within this process, without Redis. The compared object is the mirror that
gateways route by.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.index.sink import LocalSink
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.indexer.indexer import Indexer
from fairlead_kvstore.reader.engine_info_client import HttpEngineQuery
from fairlead_kvstore.reader.timers import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.redis.valkey import Valkey

MODEL = "tiny"
MODEL_KEY = f"default/{MODEL}"
SECRET = b"a secret of the test"
_STOP_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class EventSource:
    """One engine × rank: its HTTP side and where it publishes. The index finds the latter by
    itself."""

    instance: str
    url: str
    events: str
    rank: int | None = None


class IndexUnderTest(Protocol):
    """An index that follows engines."""

    async def follow(self, sources: Sequence[EventSource]) -> None:
        """Begin."""
        ...

    async def close(self) -> None:
        """End, and leave nothing behind."""
        ...

    @property
    def arrivals(self) -> Sequence[float]:
        """Monotonic seconds at which each stored or removed block was received, in order."""
        ...

    def stamp(self) -> object:
        """Something else whenever anything arrived."""
        ...

    def mirror(self) -> IndexReplica | None:
        """Returns the replica; None before there is one."""
        ...

    def cleared_by_us(self, instance: str) -> bool:
        """Reports a cleared cache; False where that is impossible."""
        ...


class InProcessIndex:
    """In this process, as in a gateway without Redis."""

    def __init__(self) -> None:
        self._heard = 0
        self.arrivals: list[float] = []
        clock = SystemClock()
        self._sink = LocalSink(on_changes=self._changed)
        self._indexer = Indexer(
            BlockStore(secret=SECRET),
            self._sink,
            HttpEngineQuery(EngineCredentials({}, clock.now)),
            ReaderRuntime(asyncio.get_running_loop(), clock, random.Random(1).random, Limits()),
        )

    async def follow(self, sources: Sequence[EventSource]) -> None:
        """Begin."""
        members = tuple(Instance(one.instance, "default", MODEL, "main", one.url, dp_rank=one.rank) for one in sources)
        self._indexer.update_fleet(Fleet(models={MODEL_KEY: Model("default", MODEL)}, instances={MODEL_KEY: members}))

    async def close(self) -> None:
        """End."""
        await self._indexer.close()

    def stamp(self) -> object:
        """Returns a value that changes with every received event."""
        return self._heard

    def mirror(self) -> IndexReplica | None:
        """Always there."""
        return self._sink.replica(MODEL_KEY)

    def cleared_by_us(self, instance: str) -> bool:
        """Said to the indexer."""
        return self._indexer.on_cache_cleared(instance)

    def _changed(self, _: str, changes: Sequence[Change]) -> None:
        self._heard += len(changes)
        self.arrivals += stored_blocks(changes)


class RedisIndex:
    """``python -m fairlead_kvstore`` writes to a Redis of its own, and what a gateway would know is
    read from there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._redis = Valkey(folder)
        self._heard = 0
        self.arrivals: list[float] = []
        self._process: subprocess.Popen[str] | None = None

    async def follow(self, sources: Sequence[EventSource]) -> None:
        """Start Redis, the indexer and the feed."""
        await asyncio.to_thread(
            self._start, {"models": [{"name": MODEL, "instances": [_source_of(one) for one in sources]}]}
        )
        self._link = RedisLink(self._redis.url, SystemClock())
        self._feed = IndexSubscriber(self._link, SystemClock(), on_changes=self._changed, on_reload=self._reloaded)
        self._feed.set_models([MODEL_KEY])
        self._link.start()
        self._feed.start()

    def _start(self, fleet: Mapping[str, Any]) -> None:
        self._redis.start()
        file = self._folder / "fleet.yaml"
        file.write_text(json.dumps(fleet))
        command = [sys.executable, "-m", "fairlead_kvstore", "--fleet", str(file), "--redis", self._redis.url]
        with (self._folder / "indexer.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "FAIRLEAD_HASH_SECRET": SECRET.decode()},
            )
        assert self._process.stdout is not None
        if not self._process.stdout.readline().startswith("ready"):
            raise RuntimeError(f"the indexer did not start: {(self._folder / 'indexer.log').read_text()[-2000:]}")

    async def close(self) -> None:
        """End all of it."""
        if self._process is not None:
            await self._feed.stop()
            await self._link.stop()
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, _STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None
        self._redis.kill()

    def stamp(self) -> object:
        """Returns a value that changes with every received event and reload."""
        return self._heard

    def mirror(self) -> IndexReplica | None:
        """None before the first load."""
        return self._feed.replica(MODEL_KEY)

    def cleared_by_us(self, instance: str) -> bool:
        """Returns False: an indexer in another process learns it from the engine alone."""
        return False

    def _changed(self, _: str, changes: Sequence[Change]) -> None:
        self._heard += len(changes)
        self.arrivals += stored_blocks(changes)

    def _reloaded(self, _: str, __: IndexReplica) -> None:
        self._heard += 1


def stored_blocks(changes: Sequence[Change]) -> list[float]:
    """Now, for every block that was stored or removed."""
    return [time.monotonic()] * sum(len(one.hashes) for one in changes if isinstance(one, BlocksStored | BlocksRemoved))


def blocks(mirror: IndexReplica | None, instance: str, chain: Sequence[int], tier: StorageTier) -> int:
    """Returns how many blocks of a chain the instance has cached, up to a tier."""
    held = () if mirror is None else mirror.match(chain)
    return next((one.blocks[tier] for one in held if one.instance == instance), 0)


def content(mirror: IndexReplica | None, instance: str, tier: StorageTier) -> set[int]:
    """All blocks of an instance in a tier."""
    there: Iterable[tuple[int, StorageTier]] = () if mirror is None else mirror.blocks_of(instance)
    return {own for own, at in there if at is tier}


def completeness(mirror: IndexReplica | None, instance: str) -> tuple[bool, str]:
    """Returns whether the index claims to be complete for the instance, and its reason if not."""
    known = None if mirror is None else mirror.completeness(instance)
    return (known.complete, known.reason) if known is not None else (False, "nothing is known")


def _source_of(source: EventSource) -> Mapping[str, Any]:
    rank = {} if source.rank is None else {"dpRank": source.rank}
    return {"id": source.instance, "url": source.url, **rank}
