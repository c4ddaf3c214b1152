"""The index under test, in both of its forms.

One is an indexer process that writes to a real Redis, followed from there as by a gateway. The
other is an indexer within this process, without Redis. The compared object is the mirror that
gateways route by.

Prompts as token ids, so that their hashes can be computed; predictions of an index, and the
engine's reports.

A prompt is sent in *quiescence*: the one before has been answered, and neither recorder nor index
has received an event for a while. Then the prediction must equal the reported ``cached_tokens``.
"""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

import httpx

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, Model
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, cached_tokens, chain_root
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


VOCABULARY = 8_000
FIRST_TOKEN = 100
QUIET_SECONDS = 0.2
_LOOKS = 8
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """One prompt. ``more`` goes into its body, ``headers`` to its head."""

    tokens: tuple[int, ...]
    output: int = 1
    salt: str | None = None
    adapter: str | None = None
    more: tuple[tuple[str, Any], ...] = ()
    rank: int | None = None

    def chain(self, model_key: str, size: int, secret: bytes) -> list[int]:
        """Its whole blocks as the index names them."""
        extras = block_extras(len(self.tokens) // size, size, salt=self.salt)
        return block_hashes(chain_root(model_key, self.adapter, secret=secret), self.tokens, size, extras)

    def body(self, model: str) -> dict[str, Any]:
        """Returns the body for ``/v1/completions``."""
        fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        salt = {"cache_salt": self.salt} if self.salt else {}
        chosen = {"model": self.adapter or model, "prompt": list(self.tokens), "max_tokens": self.output}
        return {**chosen, **fixed, **salt, **dict(self.more)}

    def continued(self, said: Sequence[int], more: Sequence[int] = ()) -> "TokenPrompt":
        """The next turn of a conversation: what was said, and something new."""
        return replace(self, tokens=(*self.tokens, *said, *more))


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The engine's answer: tokens found in its cache, generated tokens."""

    cached: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One prediction: tokens by index, and the engine's report.

    A prediction counts prompts in flight as cached, as a gateway does. All are made at the same
    moment.

    reference: the prediction of the recorder, from reports alone; ``reference_inflight`` has the
        prompts in flight.
    from_reports: the prediction of the index from reports alone.
    excused: indexes that could not know, since a clear was not reported and the engine's event
        comes only now.
    """

    prompt: int
    predicted: Mapping[str, int]
    reported: int
    reference: int
    excused: frozenset[str] = frozenset()
    from_reports: Mapping[str, int] = field(default_factory=dict)
    reference_inflight: int = 0

    def is_right(self, index: str) -> bool:
        """Whether it knew."""
        return self.predicted[index] == self.reported


def tokens(seed: object, count: int) -> tuple[int, ...]:
    """Random token ids, the same ones for the same seed; a longer count begins with a shorter
    one's."""
    draw = Random(repr(seed))
    return tuple(draw.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(count))


async def send_prompt(client: httpx.AsyncClient, model: str, prompt: TokenPrompt) -> PromptAnswer:
    """Raises httpx errors for what is not 200."""
    headers = {} if prompt.rank is None else {"X-data-parallel-rank": str(prompt.rank)}
    answer = await client.post("/v1/completions", json=prompt.body(model), headers=headers)
    from_reports = answer.raise_for_status().json()
    cached = (from_reports["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return PromptAnswer(cached, tuple(from_reports["choices"][0].get("token_ids") or ()))


def predict_cached(blocks: int, prompt: TokenPrompt, size: int, slower: int = 0) -> int:
    """Tokens that the engine will say it found, if it holds so many blocks in the GPU, and
    ``slower`` with slower tiers."""
    return cached_tokens(blocks, len(prompt.tokens), size, slower=slower)


async def wait_until_quiet(stamp: Callable[[], object], seconds: float = QUIET_SECONDS) -> None:
    """Wait until ``stamp`` has not changed for a while. Raises TimeoutError when it never stops."""
    began = since = time.monotonic()
    last = stamp()
    looks = 0
    while time.monotonic() - since < seconds or looks < _LOOKS:
        await asyncio.sleep(seconds / _LOOKS)
        looks += 1
        if (now := stamp()) != last:
            last, since, looks = now, time.monotonic(), 0
        if since - began > TIMEOUT_SECONDS:
            raise TimeoutError("events do not stop")


async def until(what: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> bool:
    """Whether it became true in time."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            return False
        await asyncio.sleep(0.02)
    return True


async def run_concurrently(workers: int, work: Callable[[int], Awaitable[None]]) -> None:
    """So many workers, to their ends; one that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(_one(work, number))


async def _one(work: Callable[[int], Awaitable[None]], number: int) -> None:
    await work(number)


def count_outcomes(rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Requests, how many predictions were right, and by how much the others were wrong."""
    names = sorted({name for one in rows for name in one.predicted})
    judged = {name: [one for one in rows if name not in one.excused] for name in names}
    wrong = {name: [one for one in some if not one.is_right(name)] for name, some in judged.items()}
    asked = sum(one.prompt for one in rows)
    found = {
        "requests": len(rows),
        "share_right": {name: share(len(judged[name]) - len(wrong[name]), len(judged[name])) for name in names},
        "share_right_of_the_reference": share(sum(one.reference == one.reported for one in rows), len(rows)),
        "cached_share": share(sum(one.reported for one in rows), asked),
        "mean_error_tokens": {
            name: share(sum(abs(one.predicted[name] - one.reported) for one in wrong[name]), len(judged[name]))
            for name in names
        },
        "wrong": [
            [name, one.prompt, one.predicted[name], one.reported, one.reference]
            for name in names
            for one in wrong[name][:10]
        ],
    }
    excused = sum(bool(one.excused) for one in rows)
    return found | ({"excused": excused} if excused else {})


def count_by_kind(rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Returns how many predictions were right from events alone, and how many with prompts in
    flight."""
    names = sorted({name for one in rows for name in one.from_reports})
    alone = {name: share(sum(one.from_reports[name] == one.reported for one in rows), len(rows)) for name in names}
    reference = share(sum(one.reference_inflight == one.reported for one in rows), len(rows))
    return {
        "share_right_from_what_is_told_alone": alone,
        "share_right_of_the_reference_with_what_is_on_its_way": reference,
    }


def share(part: float, whole: float) -> float | None:
    """Returns a share; None of nothing."""
    return round(part / whole, 5) if whole else None
