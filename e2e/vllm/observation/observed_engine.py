"""An engine under observation: the recorders of its ranks, the indexes under test, and all prompts.

The index equals the engine's truth under two conditions. It has exactly the blocks that the
recorder counted: a further one is a ghost. And every known prompt, sent again in quiescence, is
reported with as many cached tokens as predicted.

The index under test is an indexer process that writes to a real Redis, followed from there as by a
gateway. The compared object is made of the changes that gateways route by.

Prompts as token ids, so that their hashes can be computed; predictions of an index, and the
engine's reports.

A prompt is sent in *quiescence*: the one before has been answered, and neither recorder nor index
has received an event for a while. Then the prediction must equal the reported ``cached_tokens``.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgspec
import zmq.asyncio

from e2e.vllm.client import TIMEOUT_SECONDS
from e2e.vllm.engine.engine_processes import BLOCK_TOKENS, EngineProcess, EngineStage
from e2e.vllm.observation.event_recorder import EventRecorder
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_cli.exit_codes import IndexUnreachable
from fairlead_cli.index.loaded_index import LoadedIndex, read_entries
from fairlead_gateway.kv_index.translator import InflightBlocks
from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import POSITION_FIELD, decode_entry_with_time, decode_position
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.kvstore.block_store import cached_tokens
from fairlead_testing.processes import start_ready, unused_port
from fairlead_testing.redis.valkey import Valkey

MODEL = "tiny"
MODEL_KEY = f"default/{MODEL}"
SECRET = b"a secret of the test"
_STOP_SECONDS = 20.0
_POLL_SECONDS = 0.005

VOCABULARY = 8_000
FIRST_TOKEN = 100
QUIET_SECONDS = 0.2
_LOOKS = 8
WAIT_SECONDS = 20.0

HOST = "127.0.0.1"
LATE_SECONDS = 3.0
IDLE_SECONDS = 2.0  # the engine's server closes connections after five, just when the next request is on its way
ENGINE_FLAGS = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@dataclass(frozen=True, slots=True)
class EventSource:
    """One engine × rank: its HTTP side and where it publishes. The index finds the latter by
    itself, unless `fields` of the fleet file have it."""

    instance: str
    url: str
    events: str
    rank: int | None = None
    fields: Mapping[str, str] = field(default_factory=dict)


class RedisIndex:
    """``python -m fairlead_kvstore`` writes to a Redis of its own, and this follows what is written
    there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._redis = Valkey(folder)
        self._heard = 0
        self._process: subprocess.Popen[str] | None = None
        self._index: LoadedIndex | None = None

    async def follow(self, sources: Sequence[EventSource]) -> None:
        """Start Redis, the indexer and the reading."""
        await asyncio.to_thread(
            self._start, {"models": [{"name": MODEL, "instances": [_source_of(source) for source in sources]}]}
        )
        self._link = RedisLink(self._redis.url, SystemClock())
        self._link.start()
        self._reading = asyncio.ensure_future(self._read())

    def _start(self, fleet: Mapping[str, Any]) -> None:
        self._redis.start()
        file = self._folder / "fleet.yaml"
        file.write_text(json.dumps(fleet))
        environ = {**os.environ, "FAIRLEAD_HASH_SECRET": SECRET.decode()}
        arguments = ("--fleet", str(file), "--redis", self._redis.url)
        self._process, _ = start_ready(
            "fairlead_kvstore", *arguments, log=self._folder / "indexer.log", environ=environ
        )

    async def close(self) -> None:
        if self._process is not None:
            await cancel_and_wait(self._reading)
            await self._link.stop()
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(self._process.wait, _STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
            self._process = None
        self._redis.kill()

    def stamp(self) -> object:
        return self._heard

    def mirror(self) -> LoadedIndex | None:
        """Returns the blocks; None before the first load."""
        return self._index

    async def _read(self) -> None:
        """Loads the index, and again whenever what follows is not the next entry of its epoch."""
        clock = SystemClock()
        follows = False
        while True:
            now = clock.now()
            if self._index is not None and follows:
                follows = await self._apply_next(self._index, clock.wall() - now)
            else:
                index = LoadedIndex()
                with contextlib.suppress(UnreadableError, IndexUnreachable):
                    await index.load(self._link, MODEL_KEY, clock.wall() - now)
                    self._index = index
                    self._heard += 1
                    follows = True
            await asyncio.sleep(_POLL_SECONDS)

    async def _apply_next(self, index: LoadedIndex, wall_offset: float) -> bool:
        """Applies the next entries of the stream. Returns False if the index must be loaded."""
        _, idx, _ = redis_keys.index_keys(MODEL_KEY)
        replies = await self._link.run([("HGET", idx, POSITION_FIELD)])
        at = None if replies is None else decode_position(replies[0])
        if at is None:
            return False
        try:
            for epoch, sequence, data in await read_entries(self._link, MODEL_KEY, index.epoch, index.sequence):
                if (epoch, sequence) != (index.epoch, index.sequence + 1):
                    return False
                wall, changes = decode_entry_with_time(data, wall_offset)
                index.apply(changes, wall)
                index.sequence = sequence
                self._heard += len(changes)
        except (UnreadableError, IndexUnreachable):
            return False
        return at[0] == index.epoch and at[1] <= index.sequence


def blocks(mirror: LoadedIndex | None, instance: str, chain: Sequence[int], tier: StorageTier) -> int:
    return 0 if mirror is None else mirror.match(instance, chain)[tier]


def content(mirror: LoadedIndex | None, instance: str, tier: StorageTier) -> set[int]:
    there: Iterable[tuple[int, StorageTier]] = () if mirror is None else mirror.blocks_of(instance)
    return {own for own, at in there if at is tier}


def completeness(mirror: LoadedIndex | None, instance: str) -> tuple[bool, str]:
    known = None if mirror is None else mirror.completeness(instance)
    return known[:2] if known is not None else (False, "nothing is known")


def _source_of(source: EventSource) -> Mapping[str, Any]:
    rank = {} if source.rank is None else {"dpRank": source.rank}
    return {"id": source.instance, "url": source.url, **rank, **source.fields}


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
        extras = None if self.salt is None else {0: [self.salt]}
        return block_hashes(chain_root(model_key, self.adapter, secret=secret), self.tokens, size, extras)

    def body(self, model: str) -> dict[str, Any]:
        """Returns the body for ``/v1/completions``."""
        fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        salt = {"cache_salt": self.salt} if self.salt else {}
        chosen = {"model": self.adapter or model, "prompt": list(self.tokens), "max_tokens": self.output}
        return {**chosen, **fixed, **salt, **dict(self.more)}

    def continued(self, said: Sequence[int], more: Sequence[int] = ()) -> "TokenPrompt":
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

    reference: the prediction of the recorder, from reports alone.
    excused: indexes that could not know, since a clear was not reported and the engine's event
        comes only now.
    """

    prompt: int
    predicted: Mapping[str, int]
    reported: int
    reference: int
    excused: frozenset[str] = frozenset()

    def is_right(self, index: str) -> bool:
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
        if since - began > WAIT_SECONDS:
            raise TimeoutError("events do not stop")


async def until(what: Callable[[], bool], seconds: float = WAIT_SECONDS) -> bool:
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
    names = sorted({name for row in rows for name in row.predicted})
    judged = {name: [row for row in rows if name not in row.excused] for name in names}
    wrong = {name: [one for one in some if not one.is_right(name)] for name, some in judged.items()}
    asked = sum(row.prompt for row in rows)
    found = {
        "requests": len(rows),
        "share_right": {name: share(len(judged[name]) - len(wrong[name]), len(judged[name])) for name in names},
        "share_right_of_the_reference": share(sum(row.reference == row.reported for row in rows), len(rows)),
        "cached_share": share(sum(row.reported for row in rows), asked),
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
    excused = sum(bool(row.excused) for row in rows)
    return found | ({"excused": excused} if excused else {})


def share(part: float, whole: float) -> float | None:
    """Returns a share; None of nothing."""
    return round(part / whole, 5) if whole else None


@dataclass(slots=True)
class EngineShape:
    """The start options of an engine, so that it can be restarted in the same place. ``tier`` is
    its slowest one, at most the CPU's."""

    name: str
    options: tuple[str, ...] = ()
    ranks: int = 1
    core: int = 0
    buffer: int = 10_000
    environment: Mapping[str, str] = field(default_factory=dict)
    tier: StorageTier = StorageTier.GPU
    starts: int = 0
    port: int = field(default_factory=unused_port)
    events: int = field(default_factory=lambda: _ports(2))
    replay: int = field(default_factory=lambda: _ports(2))

    def start(self, stage: EngineStage) -> EngineProcess:
        """The process; not healthy yet."""
        told = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://*:{self.replay}",
            "buffer_steps": self.buffer,
            "topic": f"kv@{HOST}:{self.port}@{MODEL}",
        }
        self.starts += 1
        options = ("--kv-events-config", json.dumps(told), "--no-enable-log-requests", *self.options)
        return stage.engine(
            f"{self.name}-{self.starts}",
            *options,
            core=self.core,
            port=self.port,
            environment={**ENGINE_FLAGS, **self.environment},
        )

    def sources(self) -> list[EventSource]:
        """The addresses at which each rank publishes."""
        return [
            EventSource(
                f"{self.name}/{self.port}/{rank}",
                f"http://{HOST}:{self.port}",
                f"tcp://{HOST}:{self.events + rank}",
                rank if self.ranks > 1 else None,
            )
            for rank in range(self.ranks)
        ]


class ObservedEngine:
    """One engine. Recorders and indexes (by name) listen from before its first request."""

    def __init__(
        self, stage: EngineStage, report: VllmReport, shape: EngineShape, indexes: Mapping[str, RedisIndex]
    ) -> None:
        self.shape = shape
        self.indexes = indexes
        self.sources = shape.sources()
        self.loaded: dict[str, str] = {}
        self.rows: list[PredictionRow] = []
        self.known: dict[TokenPrompt, None] = {}
        self.happened: list[Any] = []
        self.late: list[float] = []
        self._stage = stage
        self._report = report
        self._context = zmq.asyncio.Context()
        self._inflight = [InflightBlocks() for _ in self.sources]

    async def __aenter__(self) -> "ObservedEngine":
        self.recorders = [EventRecorder(source.events, self._context, self.loaded) for source in self.sources]
        patient = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
        self.client = httpx.AsyncClient(base_url=self.sources[0].url, timeout=TIMEOUT_SECONDS, limits=patient)
        await self.start()
        for index in self.indexes.values():
            await index.follow(self.sources)
        connected = await until(lambda: all(index.mirror() is not None for index in self.indexes.values()))
        require(connected, "an index did not begin")
        return self

    async def __aexit__(self, *_: object) -> None:
        for index in self.indexes.values():
            await index.close()
        for recorder in self.recorders:
            await recorder.close()
        await self.client.aclose()
        self._context.destroy(0)
        self.engine.kill()
        self._keep()

    async def start(self) -> None:
        """Start the engine, for the first time or again in the same place."""
        self.engine = self.shape.start(self._stage)
        await asyncio.to_thread(self.engine.await_health)
        self._report.add(f"{self.shape.name} starts", {"holds": True, "start_seconds": self.engine.started_seconds})

    def stamp(self) -> object:
        """Returns a value that changes whenever a recorder or an index receives something."""
        return [len(recorder.numbers) for recorder in self.recorders], [
            index.stamp() for index in self.indexes.values()
        ]

    async def wait_until_quiet(self) -> None:
        await wait_until_quiet(self.stamp)

    def expect(self, prompt: TokenPrompt, index: RedisIndex) -> int:
        """Returns the cached tokens that a gateway expects of a prompt that it sends now: those of
        the index, and those in flight."""
        chain = prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        inflight, mirror = self._inflight[prompt.rank or 0], index.mirror()
        instance = self.sources[prompt.rank or 0].instance
        expected = matched_tokens(
            chain, lambda own: own in inflight or (mirror is not None and _cached_blocks(mirror, own, instance))
        )
        return max(self.predict(prompt, index), predict_cached(expected, prompt, BLOCK_TOKENS))

    def predict(self, prompt: TokenPrompt, index: RedisIndex, tier: StorageTier | None = None) -> int:
        """Returns the cached tokens that an index predicts for a prompt now, up to ``tier`` or all
        tiers of the engine."""
        chain = prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        instance = self.sources[prompt.rank or 0].instance
        slowest = self.shape.tier if tier is None else tier
        held, slower = (blocks(index.mirror(), instance, chain, one) for one in (StorageTier.GPU, slowest))
        return predict_cached(held, prompt, BLOCK_TOKENS, 0 if slowest is StorageTier.GPU else slower)

    def reference(self, prompt: TokenPrompt) -> int:
        recorder = self.recorders[prompt.rank or 0]
        return recorder.cached_blocks(prompt.tokens, BLOCK_TOKENS, prompt.adapter, prompt.salt) * BLOCK_TOKENS

    async def ask_and_compare(
        self, prompt: TokenPrompt, excused: frozenset[str] = frozenset()
    ) -> tuple[PredictionRow, PromptAnswer]:
        """Ask without waiting for anything."""
        guesses = {name: self.expect(prompt, index) for name, index in self.indexes.items()}
        reference, chain = self.reference(prompt), prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        inflight = self._inflight[prompt.rank or 0]
        inflight.add(chain)
        try:
            answer = await send_prompt(self.client, MODEL, prompt)
        finally:
            inflight.remove(chain)
        return PredictionRow(len(prompt.tokens), guesses, answer.cached, reference, excused), answer

    async def send(
        self, prompt: TokenPrompt, *, keep: bool = True, excused: frozenset[str] = frozenset()
    ) -> PromptAnswer:
        """Sends a prompt in quiescence. The row and the prompt are kept.

        An index that differs from the recorder after a quiet time gets some seconds more: on a busy
        machine an event may be that late. The report has the number and length of these waits.
        """
        await self.wait_until_quiet()
        began, reference = time.monotonic(), self.reference(prompt)
        judged = [index for name, index in self.indexes.items() if name not in excused]
        if any(self.predict(prompt, index) != reference for index in judged):
            await until(lambda: all(self.predict(prompt, index) == reference for index in judged), LATE_SECONDS)
            self.late.append(round(time.monotonic() - began, 3))
        heard = [len(recorder.numbers) for recorder in self.recorders]
        row, answer = await self.ask_and_compare(prompt, excused)
        self.rows.append(row)
        asked = [heard[prompt.rank or 0], list(prompt.tokens), prompt.adapter, prompt.salt, answer.cached]
        self.happened.append(["asked", prompt.rank or 0, *asked])
        if keep:
            self.known[replace(prompt, output=1, more=())] = None
        return answer

    def record_note(self, what: str, *more: object) -> None:
        self.happened.append([what, 0, len(self.recorders[0].numbers), *more])

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Sends a request that is no prompt; it must succeed."""
        answer = await self.client.post(path, json=body)
        require(answer.status_code == 200, f"{path} is answered with {answer.status_code}: {answer.text[:200]}")
        return answer

    def compare(self, index: RedisIndex) -> Numbers:
        """The blocks of an index and those of the recorders, all ranks together."""
        mirror = index.mirror()
        numbers: Numbers = {"blocks": 0, "ghosts": 0, "missing": 0}
        for source, recorder in zip(self.sources, self.recorders, strict=True):
            for tier in (StorageTier.GPU, self.shape.tier)[: 1 + self.shape.tier]:
                held = content(mirror, source.instance, tier)
                there = recorder.index_hashes(MODEL_KEY, SECRET, tier.name)
                name = "blocks" if tier is StorageTier.GPU else f"blocks_{tier.name.lower()}"
                numbers[name] = numbers.get(name, 0) + len(there)
                numbers["ghosts"] += len(held - there)
                numbers["missing"] += len(there - held)
        return numbers

    def differs(self) -> list[str]:
        return [name for name, one in self.indexes.items() if _differs(self.compare(one))]

    def is_complete(self, index: RedisIndex) -> bool:
        return all(completeness(index.mirror(), source.instance)[0] for source in self.sources)

    async def equal(self, more: Numbers | None = None, indexes: Mapping[str, RedisIndex] | None = None) -> Numbers:
        """Waits until all events are received, then compares; an index must also claim to be
        complete. Returns the comparison with ``more``."""
        await self.wait_until_quiet()
        numbers: Numbers = dict(more or {})
        for name, index in (indexes or self.indexes).items():
            await until(lambda: self.is_complete(index) and not _differs(self.compare(index)), LATE_SECONDS)  # noqa: B023
            found = self.compare(index)
            standings = [completeness(index.mirror(), source.instance) for source in self.sources]
            unsure = [reason for complete, reason in standings if not complete]
            if _differs(found) or unsure:
                numbers[name] = {**found, "incomplete": unsure}
                require(False, f"{name}: the index is not the engine's truth", numbers)
            numbers |= found
        return numbers

    async def expect_agreement(self, first: int, more: Numbers | None = None, *, again: bool = True) -> Numbers:
        """The rows since ``first``, those of all known prompts asked again, and whether indexes and
        truth are equal."""
        asked = len(self.rows) - first
        before = await self.equal(more)
        if again:
            for prompt in list(self.known):
                await self.send(prompt)
        numbers = {
            **count_outcomes(self.rows[first:]),
            "of_these_asked_again": len(self.rows) - first - asked,
            **before,
            **self._lateness(),
            "batches": sum(len(recorder.numbers) for recorder in self.recorders),
        }
        missed = sum(recorder.missed + recorder.orphans for recorder in self.recorders)
        require(not missed, "the recorder itself has missed something", numbers)
        require(not numbers["wrong"], "not every prediction was right", numbers)
        await self.equal(numbers)
        return numbers

    def record_cleared(self) -> frozenset[str]:
        """Records that the engine's cache was cleared. Returns the indexes, all of which learn it
        with the engine's next batch."""
        self.record_note("cleared")
        return frozenset(self.indexes)

    def _lateness(self) -> Numbers:
        late, self.late = self.late, []
        return {"waited_longer": len(late), "waited_seconds_most": max(late)} if late else {}

    def _keep(self) -> None:
        """Writes the published events and the requests with their times, for the analysis of
        failures."""
        ranks = [[recorder.numbers, recorder.payloads] for recorder in self.recorders]
        whole = msgspec.msgpack.encode({"ranks": ranks, "happened": self.happened})
        (self._stage.folder / f"{self.shape.name}.recording").write_bytes(whole)


def matched_tokens(chain: Sequence[int], held: Callable[[int], bool]) -> int:
    return next((number for number, one in enumerate(chain) if not held(one)), len(chain))


def _cached_blocks(mirror: LoadedIndex, own: int, instance: str) -> bool:
    return mirror.match(instance, [own])[StorageTier.GPU] == 1


def _differs(numbers: Numbers) -> bool:
    return bool(numbers["ghosts"] or numbers["missing"])


def _ports(count: int) -> int:
    """The first of so many loopback ports in a row that are free now."""
    while True:
        first = unused_port()
        if all(_is_free(first + number) for number in range(1, count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True
