"""An engine under observation: the recorders of its ranks, the indexes under test, and all prompts.

The index equals the engine's truth under two conditions. It has exactly the blocks that the
recorder counted: a further one is a ghost. And every known prompt, sent again in quiescence, is
reported with as many cached tokens as predicted.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
import zmq.asyncio

from e2e.vllm.client import TIMEOUT_SECONDS
from e2e.vllm.engine.engine_processes import BLOCK_TOKENS, EngineProcess, EngineStage
from e2e.vllm.observation.event_recorder import EventRecorder
from e2e.vllm.observation.index_under_test import (
    MODEL,
    MODEL_KEY,
    SECRET,
    EventSource,
    IndexUnderTest,
    PredictionRow,
    PromptAnswer,
    TokenPrompt,
    blocks,
    completeness,
    content,
    count_outcomes,
    predict_cached,
    send_prompt,
    until,
    wait_until_quiet,
)
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead_gateway.prefix_map.translator import InflightBlocks
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_testing.processes import unused_port

HOST = "127.0.0.1"
LATE_SECONDS = 3.0
IDLE_SECONDS = 2.0  # the engine's server closes connections after five, just when the next request is on its way
ENGINE_FLAGS = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


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
        self, stage: EngineStage, report: VllmReport, shape: EngineShape, indexes: Mapping[str, IndexUnderTest]
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
        self.recorders = [EventRecorder(one.events, self._context, self.loaded) for one in self.sources]
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
        return [len(one.numbers) for one in self.recorders], [one.stamp() for one in self.indexes.values()]

    async def wait_until_quiet(self) -> None:
        """Waits until all events are received."""
        await wait_until_quiet(self.stamp)

    def expect(self, prompt: TokenPrompt, index: IndexUnderTest) -> int:
        """Returns the cached tokens that a gateway expects of a prompt that it sends now: those of
        the index, and those in flight."""
        chain = prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        inflight, mirror = self._inflight[prompt.rank or 0], index.mirror()
        instance = self.sources[prompt.rank or 0].instance
        expected = matched_tokens(
            chain, lambda own: own in inflight or (mirror is not None and _cached_blocks(mirror, own, instance))
        )
        return max(self.predict(prompt, index), predict_cached(expected, prompt, BLOCK_TOKENS))

    def predict(self, prompt: TokenPrompt, index: IndexUnderTest, tier: StorageTier | None = None) -> int:
        """Returns the cached tokens that an index predicts for a prompt now, up to ``tier`` or all
        tiers of the engine."""
        chain = prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        instance = self.sources[prompt.rank or 0].instance
        slowest = self.shape.tier if tier is None else tier
        held, slower = (blocks(index.mirror(), instance, chain, one) for one in (StorageTier.GPU, slowest))
        return predict_cached(held, prompt, BLOCK_TOKENS, 0 if slowest is StorageTier.GPU else slower)

    def reference(self, prompt: TokenPrompt) -> int:
        """The same from counting copies at the engine."""
        recorder = self.recorders[prompt.rank or 0]
        return recorder.cached_blocks(prompt.tokens, BLOCK_TOKENS, prompt.adapter, prompt.salt) * BLOCK_TOKENS

    async def ask_and_compare(
        self, prompt: TokenPrompt, excused: frozenset[str] = frozenset()
    ) -> tuple[PredictionRow, PromptAnswer]:
        """Ask without waiting for anything."""
        told = {name: self.predict(prompt, index) for name, index in self.indexes.items()}
        guesses = {name: self.expect(prompt, index) for name, index in self.indexes.items()}
        reference, chain = self.reference(prompt), prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        rank, inflight = prompt.rank or 0, self._inflight[prompt.rank or 0]
        there = self.recorders[rank].is_cached(prompt.tokens, BLOCK_TOKENS, prompt.adapter, prompt.salt)
        both = matched_tokens(range(len(chain)), lambda number: there[number] or chain[number] in inflight)
        inflight.add(chain)
        try:
            answer = await send_prompt(self.client, MODEL, prompt)
        finally:
            inflight.remove(chain)
        expected = max(reference, predict_cached(both, prompt, BLOCK_TOKENS))
        return PredictionRow(len(prompt.tokens), guesses, answer.cached, reference, excused, told, expected), answer

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
        heard = [len(one.numbers) for one in self.recorders]
        row, answer = await self.ask_and_compare(prompt, excused)
        self.rows.append(row)
        asked = [heard[prompt.rank or 0], list(prompt.tokens), prompt.adapter, prompt.salt, answer.cached]
        self.happened.append(["asked", prompt.rank or 0, *asked])
        if keep:
            self.known[replace(prompt, output=1, more=())] = None
        return answer

    def record_note(self, what: str, *more: object) -> None:
        """Adds a fact to the recording that no event has."""
        self.happened.append([what, 0, len(self.recorders[0].numbers), *more])

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """Sends a request that is no prompt; it must succeed."""
        answer = await self.client.post(path, json=body)
        require(answer.status_code == 200, f"{path} is answered with {answer.status_code}: {answer.text[:200]}")
        return answer

    def compare(self, index: IndexUnderTest) -> Numbers:
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
        """Indexes that do not hold just what is there."""
        return [name for name, one in self.indexes.items() if _differs(self.compare(one))]

    def is_complete(self, index: IndexUnderTest) -> bool:
        """Whether it says that it knows all."""
        return all(completeness(index.mirror(), one.instance)[0] for one in self.sources)

    async def equal(self, more: Numbers | None = None, indexes: Mapping[str, IndexUnderTest] | None = None) -> Numbers:
        """Waits until all events are received, then compares; an index must also claim to be
        complete. Returns the comparison with ``more``."""
        await self.wait_until_quiet()
        numbers: Numbers = dict(more or {})
        for name, index in (indexes or self.indexes).items():
            await until(lambda at=index: self.is_complete(at) and not _differs(self.compare(at)), LATE_SECONDS)
            found = self.compare(index)
            standings = [completeness(index.mirror(), one.instance) for one in self.sources]
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
            "batches": sum(len(one.numbers) for one in self.recorders),
        }
        missed = sum(one.missed + one.orphans for one in self.recorders)
        require(not missed, "the recorder itself has missed something", numbers)
        require(not numbers["wrong"], "not every prediction was right", numbers)
        await self.equal(numbers)
        return numbers

    def tell_cleared(self) -> tuple[list[str], frozenset[str]]:
        """Reports that Fairlead cleared the engine's cache.

        Returns the indexes that take the report, and those that learn it from the engine.
        """
        self.record_note("cleared")
        told = []
        for name, index in self.indexes.items():
            answers = [index.cleared_by_us(one.instance) for one in self.sources]
            told += [name] if all(answers) else []
        return told, frozenset(self.indexes) - frozenset(told)

    async def wait_until_gone(self, names: Collection[str], since: float) -> Numbers:
        """Seconds from ``since`` until these indexes hold nothing of the engine; None for one that
        never does."""
        found: Numbers = {}
        for name in names:
            mirror = self.indexes[name].mirror
            empty = await until(
                lambda at=mirror: not any(content(at(), one.instance, StorageTier.GPU) for one in self.sources)
            )
            found[name] = round(time.monotonic() - since, 3) if empty else None
        return found

    def _lateness(self) -> Numbers:
        late, self.late = self.late, []
        return {"waited_longer": len(late), "waited_seconds_most": max(late)} if late else {}

    def _keep(self) -> None:
        """Writes the published events and the requests with their times, for the analysis of
        failures."""
        ranks = [[one.numbers, one.payloads] for one in self.recorders]
        whole = msgspec.msgpack.encode({"ranks": ranks, "happened": self.happened})
        (self._stage.folder / f"{self.shape.name}.recording").write_bytes(whole)


def matched_tokens(chain: Sequence[int], held: Callable[[int], bool]) -> int:
    """Returns how many of the first blocks are cached."""
    return next((number for number, one in enumerate(chain) if not held(one)), len(chain))


def _cached_blocks(mirror: IndexReplica, own: int, instance: str) -> bool:
    return StorageTier.GPU in mirror.holders(own).get(instance, ())


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
