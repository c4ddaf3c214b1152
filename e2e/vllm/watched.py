"""An engine under watch: the recorders of its ranks, the index that is judged, and every prompt that was asked.

The index equals the engine's truth when it holds the very blocks that the recorder counted, none more (a ghost) and none less, and
when every prompt that is known, asked again in quiescence, is reported with as many cached tokens as were predicted.
"""

import asyncio
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import zmq.asyncio
from asking import PATIENCE_SECONDS
from engines import BLOCK_TOKENS, Engine, Stage, free_port
from prompted import Answer, Prompt, Row, ask, counted, predicted, quiet, until
from reading import MODEL_KEY, SECRET, Known, Source
from recorder import Recorder
from report import Numbers, Report, demand

from fairlead_kvstore.truth.tiers import Tier

MODEL = "tiny"
HOST = "127.0.0.1"
IDLE_SECONDS = 2.0  # the engine's server closes connections after five, just when the next request is on its way
SWITCHES = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}


@dataclass(slots=True)
class Shape:
    """How an engine is started, so that it can be started again in the same place."""

    name: str
    options: tuple[str, ...] = ()
    ranks: int = 1
    core: int = 0
    buffer: int = 10_000
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    events: int = field(default_factory=lambda: _ports(2))
    replay: int = field(default_factory=lambda: _ports(2))

    def start(self, stage: Stage) -> Engine:
        """The process; not healthy yet."""
        told = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://*:{self.replay}",
            "buffer_steps": self.buffer,
            "topic": f"kv@{HOST}:{self.port}@{MODEL}",
        }
        options = ("--kv-events-config", json.dumps(told), "--no-enable-log-requests", *self.options)
        return stage.engine(
            self.name, *options, core=self.core, port=self.port, environment={**SWITCHES, **self.environment}
        )

    def sources(self) -> list[Source]:
        """Where each rank publishes."""
        return [
            Source(
                f"{self.name}/{rank}",
                f"http://{HOST}:{self.port}",
                f"tcp://{HOST}:{self.events + rank}",
                f"tcp://{HOST}:{self.replay + rank}",
            )
            for rank in range(self.ranks)
        ]


class Watched:
    """One engine. Recorders and index listen from before its first request."""

    def __init__(self, stage: Stage, report: Report, shape: Shape, index: Known) -> None:
        self.shape = shape
        self.index = index
        self.sources = shape.sources()
        self.loaded: dict[str, str] = {}
        self.rows: list[Row] = []
        self.known: dict[Prompt, None] = {}
        self._stage = stage
        self._report = report
        self._context = zmq.asyncio.Context()

    async def __aenter__(self) -> "Watched":
        self.recorders = [Recorder(one.events, self._context, self.loaded) for one in self.sources]
        patient = httpx.Limits(max_connections=None, keepalive_expiry=IDLE_SECONDS)
        self.client = httpx.AsyncClient(base_url=self.sources[0].url, timeout=PATIENCE_SECONDS, limits=patient)
        await self.start()
        await self.index.follow(self.sources)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.index.close()
        for recorder in self.recorders:
            await recorder.close()
        await self.client.aclose()
        self._context.destroy(0)
        self.engine.kill()

    async def start(self) -> None:
        """Start the engine, for the first time or again in the same place."""
        self.engine = self.shape.start(self._stage)
        await asyncio.to_thread(self.engine.await_health)
        self._report.add(f"{self.shape.name} starts", {"holds": True, "start_seconds": self.engine.started_seconds})

    def stamp(self) -> object:
        """Changes whenever the recorders or the index heard something."""
        return [len(one.numbers) for one in self.recorders], self.index.stamp()

    async def quiet(self) -> None:
        """Wait until all is told."""
        await quiet(self.stamp)

    def predict(self, prompt: Prompt, index: Known | None = None) -> int:
        """What the index says of a prompt now, in tokens."""
        chain = prompt.chain(MODEL_KEY, BLOCK_TOKENS, SECRET)
        held = (index or self.index).blocks(self.sources[prompt.rank or 0].instance, chain)
        return predicted(held.get(Tier.GPU, 0), prompt, BLOCK_TOKENS)

    def reference(self, prompt: Prompt) -> int:
        """The same from counting copies at the engine."""
        recorder = self.recorders[prompt.rank or 0]
        return predicted(recorder.held(prompt.tokens, BLOCK_TOKENS, prompt.adapter, prompt.salt), prompt, BLOCK_TOKENS)

    async def now(self, prompt: Prompt) -> tuple[Row, Answer]:
        """Ask without waiting for anything."""
        guess, reference = self.predict(prompt), self.reference(prompt)
        answer = await ask(self.client, MODEL, prompt)
        return Row(len(prompt.tokens), guess, answer.cached, reference), answer

    async def ask(self, prompt: Prompt, *, keep: bool = True) -> Answer:
        """Ask in quiescence; the row is kept, and the prompt among those that are known."""
        await self.quiet()
        row, answer = await self.now(prompt)
        self.rows.append(row)
        if keep:
            self.known[replace(prompt, output=1, more=())] = None
        return answer

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """A call beside requests; must be answered well."""
        answer = await self.client.post(path, json=body)
        demand(answer.status_code == 200, f"{path} is answered with {answer.status_code}: {answer.text[:200]}")
        return answer

    def compare(self, index: Known | None = None) -> Numbers:
        """The blocks of the index and those of the recorders, all ranks together."""
        numbers: Numbers = {"blocks": 0, "ghosts": 0, "missing": 0}
        for source, recorder in zip(self.sources, self.recorders, strict=True):
            held = (index or self.index).content(source.instance, Tier.GPU)
            there = recorder.own(MODEL_KEY, SECRET)
            numbers["blocks"] += len(there)
            numbers["ghosts"] += len(held - there)
            numbers["missing"] += len(there - held)
        return numbers

    async def equal(self, index: Known | None = None, more: Numbers | None = None) -> Numbers:
        """Wait until all is told, then compare; the index must also say that it is complete. Returned beside ``more``."""
        await self.quiet()
        numbers = {**(more or {}), **self.compare(index)}
        standings = [(index or self.index).standing(one.instance) for one in self.sources]
        if unsure := [reason for complete, reason in standings if not complete]:
            numbers["incomplete"] = unsure
        demand(not (numbers["ghosts"] or numbers["missing"] or unsure), "the index is not the engine's truth", numbers)
        return numbers

    async def judged(self, first: int, more: Numbers | None = None, *, again: bool = True) -> Numbers:
        """The rows since ``first``, those of all known prompts asked again, and whether index and truth are equal."""
        asked = len(self.rows) - first
        before = await self.equal()
        if again:
            for prompt in list(self.known):
                await self.ask(prompt)
        numbers = {
            **counted(self.rows[first:]),
            "of_these_asked_again": len(self.rows) - first - asked,
            **before,
            **(more or {}),
            "batches": sum(len(one.numbers) for one in self.recorders),
        }
        missed = sum(one.missed + one.orphans for one in self.recorders)
        demand(not missed, "the recorder itself has missed something", numbers)
        demand(numbers["predicted_right"] == numbers["requests"], "not every prediction was right", numbers)
        await self.equal()
        return numbers

    async def gone(self, since: float, recorder: Callable[[], bool] = lambda: True) -> float | None:
        """Seconds from ``since`` until the index holds nothing of the engine; None when it never does."""
        empty = await until(
            lambda: recorder() and not any(self.index.content(one.instance, Tier.GPU) for one in self.sources)
        )
        return round(time.monotonic() - since, 3) if empty else None


def _ports(count: int) -> int:
    """The first of so many loopback ports in a row that are free now."""
    while True:
        first = free_port()
        if all(_is_free(first + number) for number in range(1, count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        try:
            one.bind((HOST, port))
        except OSError:
            return False
    return True
