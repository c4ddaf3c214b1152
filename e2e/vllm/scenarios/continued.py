"""Streams that go on at another engine: cut at every token, sampled, and with engines that die.

A proxy before a living engine cuts the connection behind a chosen token. The gateway has three such
proxies, so it continues each stream at the same engine, by the other way. Two models:

- Random weights, in whole precision: each token depends on all before it.
- A scripted model (`e2e/vllm/engine/scripted_model.py`) with reasoning, calls of tools, and
  characters that are split over tokens. The probabilities of what it says are known.

Greedy streams must be those of the engine without a cut, in text, reason and counts. Where both
asks without a cut already differ, the engine is at fault, and the report counts it.

Of the transcripts, the first are cut behind every token, the others behind a few that a seed draws.

A parser of tools can hold the rest of a token whose start it has shown. A stream that is cut there
ends with an error that says so (`part-of-text`). Such streams are counted, and must be few.

Sampled streams have seeds, so that a run can be repeated. One chi-squared test covers all of them.
Where two tokens are possible at each place, a cell is a sequence of tokens across the cut. Where
all tokens are, a cell is a class of the tokens before and behind the cut. Rare cells are joined, so
that at least five are expected in each.
"""

import argparse
import asyncio
import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from e2e.vllm.client import openai_client
from e2e.vllm.engine.cutting_proxy import AFTER_USAGE, CutPlan, CuttingProxy
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage, GatewayProcess, fetch
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead_gateway.continuation.continued_stream import PROGRESS_TOKENS
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until

NAME, KILLS = "continued", "continued-kills"
MODEL = "tiny"
SEED = 20
TRANSCRIPTS, CUT_EVERYWHERE, OTHER_CUTS = 200, 20, 3
"""Transcripts; those that are cut behind every token; cuts of each of the others."""
SHORTEST, LONGEST = 12, 24
TWO_CUTS = 40
USAGE_CUTS = 30
BYTE_TRANSCRIPTS = 12
SAMPLED_PROMPTS, SAMPLED = 8, 150
SAMPLED_CUT = 3
SCRIPTED_SAMPLED = 400
MIN_EXPECTED = 5.0
MIN_P = 0.01
MAX_WITHIN_TOKEN = 0.01
CALLS = 6
CALL_CUTS = 10
ROUNDS, STREAMS, KILLED_TOKENS = 50, 6, 64
KILL_AFTER = 24
_PART_OF_TEXT = "(part-of-text)"
_NOT_REPEATED = "of_engines_that_differ_from_themselves"
_AT_ONCE = 12
_WAYS = 3
_BACK_SECONDS = 120.0
_MAKER = Path(__file__).parents[1] / "engine" / "scripted_model.py"
_TOOLS = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes")
_OPTIONS = (
    *("--dtype", "float32", "--max-num-seqs", "32", "--generation-config", "vllm", *_TOOLS),
    *("--structured-outputs-config", '{"backend":"xgrammar","disable_any_whitespace":true}'),
)
REASONING_PARSERS = ("qwen3", "deepseek_r1")
_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_LOOK: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {
            "type": "object",
            "properties": {"days": {"type": "integer", "enum": [7, 12, 30]}},
            "required": ["days"],
            "additionalProperties": False,
        },
    },
}
_NAMED = {"type": "function", "function": {"name": "look"}}
_WORD = re.compile(r"[A-Za-z]{3,9}")
_CHARACTERS = "日é😀a"
"""Their tokens are bytes."""
_SHARES = ((" see", 0.5), (" think", 0.3), (" check", 0.2))
"""The next words of the scripted model behind its third token of reasoning."""


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """A request for a stream."""

    path: str
    body: Mapping[str, Any]


@dataclass(slots=True)
class Said:
    """A stream as its client has it."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finish: str | None = None
    usage: tuple[int, int, int] | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    continued_at: list[int] = field(default_factory=list)
    error: str = ""
    instance: str = ""
    is_whole: bool = False

    def same(self) -> tuple[object, ...]:
        """Returns the parts that a cut must not change.

        Why without the mark: the parser `deepseek_r1` shows it, cut or not, if it comes with other
        tokens in one event. That depends on the engine's load.
        """
        return self.text, self.reasoning.removeprefix("<think>"), self.calls, self.finish, self.usage, self.is_whole


async def send(client: httpx.AsyncClient, one: StreamRequest, name: str) -> Said:
    """Sends a request and reads its stream."""
    said = Said()
    try:
        async with client.stream("POST", one.path, json={**one.body, "user": name}) as answer:
            said.instance = answer.headers.get("x-fairlead-instance", "")
            if answer.status_code != 200:
                said.error = f"{answer.status_code} {(await answer.aread()).decode()[:300]}"
                return said
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    _add(said, line[6:])
    except httpx.HTTPError as error:
        said.error = f"{type(error).__name__}"
    return said


def _add(said: Said, data: str) -> None:
    if data == "[DONE]":
        said.is_whole = not said.error and said.finish is not None
        return
    event = json.loads(data)
    if "error" in event:
        said.error = data[:300]
    if "fairlead_continued_at" in event:
        said.continued_at.append(event["fairlead_continued_at"])
    if usage := event.get("usage"):
        said.usage = usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]
    for choice in event.get("choices", []):
        delta = choice.get("delta") or {}
        content = choice.get("text") or delta.get("content") or ""
        reasoning = delta.get("reasoning") or delta.get("reasoning_content") or ""
        said.text += content
        said.pieces += [content] if content else []
        said.reasoning += reasoning
        said.tokens += choice.get("token_ids") or []
        said.finish = choice.get("finish_reason") or said.finish
        for call in delta.get("tool_calls") or []:
            made = call.get("function") or {}
            while len(said.calls) <= call["index"]:
                said.calls.append(["", ""])
            said.calls[call["index"]][0] += made.get("name") or ""
            said.calls[call["index"]][1] += made.get("arguments") or ""


def chat(content: str, tokens: int, **more: object) -> StreamRequest:
    return StreamRequest(_CHAT, _fixed(tokens) | {"messages": [{"role": "user", "content": content}]} | more)


def completion(prompt: str, tokens: int, **more: object) -> StreamRequest:
    return StreamRequest(_COMPLETIONS, _fixed(tokens) | {"prompt": prompt} | more)


def _fixed(tokens: int) -> dict[str, Any]:
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": MODEL, "max_tokens": tokens, "temperature": 0, **counted}


def prompts(draw: Random, count: int) -> list[str]:
    words = sorted(set(_WORD.findall(Path(argparse.__file__).read_text(encoding="utf-8"))))
    return [" ".join(draw.sample(words, draw.randint(5, 60))) for _ in range(count)]


def transcripts(draw: Random, count: int, least: int = SHORTEST) -> list[StreamRequest]:
    """Chats, completions, and chats with a tool that the model may call, by turns."""
    found = []
    for number, prompt in enumerate(prompts(draw, count)):
        tokens, more = draw.randint(least, least + LONGEST - SHORTEST), {"ignore_eos": number % 2 == 0}
        if number % 3 == 0:
            found.append(chat(prompt, tokens, **more))
        elif number % 3 == 1:
            found.append(completion(prompt, tokens, **more))
        else:
            found.append(chat(prompt, tokens, tools=[_LOOK], **more))
    return found


class CutFleet:
    """A gateway before two proxies that lead to one engine."""

    def __init__(self, url: str, gateway: GatewayProcess, plan: CutPlan) -> None:
        self.gateway = gateway
        self.plan = plan
        self._url = url
        self._names = 0
        self._turn = asyncio.Semaphore(_AT_ONCE)

    @classmethod
    @asynccontextmanager
    async def before(cls, stage: EngineStage, engine: str, kind: str = "vllm") -> AsyncIterator["CutFleet"]:
        """Runs proxies and a gateway until the block ends."""
        plan = CutPlan(counts_texts=kind != "vllm")
        proxies = [CuttingProxy(engine, plan) for _ in range(_WAYS)]
        urls = [await proxy.start() for proxy in proxies]
        instances = [{"id": f"way-{at}", "url": url, "role": "Serve", "engine": kind} for at, url in enumerate(urls)]
        fleet = {"models": [{"name": MODEL, "instances": instances}]}
        gateway = await asyncio.to_thread(stage.gateway, fleet)
        try:
            yield cls(gateway.url, gateway, plan)
        finally:
            await asyncio.to_thread(gateway.stop)
            for proxy in proxies:
                await proxy.stop()

    async def send(self, client: httpx.AsyncClient, one: StreamRequest, *cuts: int) -> Said:
        """Sends a request whose stream is cut."""
        self._names += 1
        name = f"cut-{self._names:06}"
        self.plan.cuts[name] = list(cuts)
        async with self._turn:
            said = await send(client, one, name)
        del self.plan.cuts[name]
        return said

    def client(self) -> httpx.AsyncClient:
        return openai_client(self._url)


@dataclass(slots=True)
class Verdicts:
    """Counts of streams that were cut, by their fate."""

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    def add(self, whole: Said, again: Said, got: Said, what: str) -> None:
        """Compares a stream with the one without a cut.

        again: the same without a cut, a second time.
        """
        self.counts["streams"] += 1
        self.counts["continued"] += bool(got.continued_at)
        if whole.is_whole and got.same() == whole.same():
            self.counts["identical"] += 1
            return
        if whole.same() != again.same():
            self.counts[_NOT_REPEATED] += 1
            return
        if _PART_OF_TEXT in got.error and whole.text.startswith(got.text):
            self.counts["ended_within_a_token"] += 1
            return
        self.counts["broken" if got.error else "different"] += 1
        if len(self.first) < 5:
            self.first.append(f"{what}: {whole.same()} then {got.error or got.same()} {got.continued_at}"[:1_000])

    def numbers(self, plan: CutPlan) -> Numbers:
        """For the report."""
        names = ("streams", "identical", "different", "broken", "ended_within_a_token", _NOT_REPEATED)
        counted = {name: self.counts[name] for name in names}
        return {
            **counted,
            "continued_elsewhere": self.counts["continued"],
            "cuts_so_far": plan.made,
            "first": self.first,
        }

    def judge(self, plan: CutPlan) -> Numbers:
        """Returns the numbers. Raises CheckFailed if a stream was another one."""
        numbers = self.numbers(plan)
        print(*self.first, sep="\n", end="\n" * bool(self.first), flush=True)
        require(self.counts["streams"], "nothing was cut", numbers)
        few = self.counts["ended_within_a_token"] <= math.ceil(MAX_WITHIN_TOKEN * self.counts["streams"])
        require(few, "many streams end within a token", numbers)
        require(not self.first, "streams are not those without a cut", numbers)
        return numbers


async def cut_streams(
    fleet: CutFleet, asks: Sequence[StreamRequest], verdicts: Verdicts, cuts: int = 0, everywhere: int = 0
) -> list[Said]:
    """Cuts streams behind their tokens; returns the streams without a cut.

    cuts: of each stream, at places that a seed draws; 0: behind every token.
    everywhere: so many streams are cut behind every token nevertheless.
    """
    async with fleet.client() as client:

        async def one(number: int, asked: StreamRequest) -> Said:
            whole, again = await asyncio.gather(fleet.send(client, asked), fleet.send(client, asked))
            places = range(1, (whole.usage[1] if whole.usage else 0) + 1)
            if 0 < cuts < len(places) and number >= everywhere:
                drawn = Random(f"{SEED}-{number}").sample(places, cuts)
            else:
                drawn = list(places)
            for cut in drawn:
                verdicts.add(whole, again, await fleet.send(client, asked, cut), f"{number} at {cut}")
            return whole

        return list(await asyncio.gather(*(one(*pair) for pair in enumerate(asks))))


class Continued:
    """The engines, a gateway before each, and all checks.

    kills: the engines get SIGKILL; there is no proxy.
    """

    def __init__(self, stage: EngineStage, report: VllmReport, *, kills: bool = False) -> None:
        self._stage = stage
        self._report = report
        self._kills = kills
        self._ports = [unused_port(), unused_port()]
        self._starts = 0

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        engines = [self._start(number) for number in range(2 if self._kills else 1)]
        parsers = () if self._kills else REASONING_PARSERS
        stage = await asyncio.to_thread(self._scripted_stage) if parsers else self._stage
        scripted = [_start_scripted(stage, parser) for parser in parsers]
        try:
            for engine in (*engines, *scripted):
                await asyncio.to_thread(engine.await_health)
            if self._kills:
                killed = f"an engine of two gets SIGKILL under greedy streams, {ROUNDS} times"
                await self._report.check(killed, lambda: self.kill_engines(engines))
                return
            await self.check_random(engines[0].url)
            for parser, engine in zip(parsers, scripted, strict=True):
                await self.check_scripted(engine.url, parser)
            await self.check_samples(engines[0].url, scripted[0].url)
        finally:
            for engine in (*engines, *scripted):
                engine.kill()

    def _scripted_stage(self) -> EngineStage:
        """Returns the same engines with the scripted model in place of the tiny one."""
        installed, stage = self._stage.installed, self._stage.with_model("scripted")
        command = [str(installed.engine_python), str(_MAKER), str(installed.model), str(stage.installed.model)]
        subprocess.run(command, check=True)
        return stage

    def _start(self, number: int) -> EngineProcess:
        self._starts += 1
        name, port = f"continued-{number}-{self._starts}", self._ports[number]
        return self._stage.engine(name, *_OPTIONS, core=number, port=port, environment=_ENVIRONMENT)

    # Streams of random weights.

    async def check_random(self, engine: str) -> None:
        """Everything that one engine of random weights says."""
        check = self._report.check
        async with CutFleet.before(self._stage, engine) as fleet:
            draw = Random(SEED)
            asks = transcripts(draw, TRANSCRIPTS)
            greedy = f"{TRANSCRIPTS} greedy transcripts, {CUT_EVERYWHERE} of them cut behind every token"
            await check(greedy, lambda: _everywhere(fleet, asks, OTHER_CUTS))
            await check("two cuts in one stream", lambda: self._cut_twice(fleet, draw))
            await check("cut behind the usage", lambda: self._cut_behind_usage(fleet, asks[:USAGE_CUTS]))
            await check("parts of characters", lambda: self._cut_bytes(fleet, engine, draw))
            await check("calls that must be made", lambda: self._cut_calls(fleet, draw))
            await check("log probabilities and token ids", lambda: self._cut_details(fleet, draw))

    async def _cut_twice(self, fleet: CutFleet, draw: Random) -> Numbers:
        """Cuts behind enough tokens of each engine: sooner, the request would be suspect."""
        asks = transcripts(draw, TWO_CUTS, least=3 * PROGRESS_TOKENS)
        places = [tuple(PROGRESS_TOKENS + draw.randint(1, SHORTEST // 3) for _ in range(2)) for _ in asks]
        return await _cut_each(fleet, asks, places)

    async def _cut_behind_usage(self, fleet: CutFleet, asks: Sequence[StreamRequest]) -> Numbers:
        return await _cut_each(fleet, asks, [(AFTER_USAGE,)] * len(asks))

    async def _cut_bytes(self, fleet: CutFleet, engine: str, draw: Random) -> Numbers:
        """Lets the model say only bytes of a few characters."""
        body = {"model": MODEL, "prompt": _CHARACTERS, "add_special_tokens": False}
        async with openai_client(engine) as client:
            allowed = sorted(set((await client.post("/tokenize", json=body)).json()["tokens"]))
        require(len(allowed) == len(_CHARACTERS.encode()), "tokens are not bytes", {"tokens": allowed})
        asks = [
            chat(prompt, SHORTEST, allowed_token_ids=allowed, repetition_penalty=1.2)
            if number % 2
            else completion(prompt, SHORTEST, allowed_token_ids=allowed, repetition_penalty=1.2)
            for number, prompt in enumerate(prompts(draw, BYTE_TRANSCRIPTS))
        ]
        verdicts = Verdicts()
        wholes = await cut_streams(fleet, asks, verdicts)
        marks = sum(whole.text.count("\ufffd") for whole in wholes)
        return {**verdicts.judge(fleet.plan), "replacement_characters_of_the_engine": marks}

    async def _cut_calls(self, fleet: CutFleet, draw: Random) -> Numbers:
        choices = ("required", _NAMED)
        asks = [
            chat(prompt, 80, tools=[_LOOK], tool_choice=choices[number % 2])
            for number, prompt in enumerate(prompts(draw, CALLS))
        ]
        verdicts = Verdicts()
        wholes = await cut_streams(fleet, asks, verdicts, CALL_CUTS)
        return {**verdicts.judge(fleet.plan), **_judge_calls(wholes)}

    async def _cut_details(self, fleet: CutFleet, draw: Random) -> Numbers:
        """Asks for what belongs to tokens: each must be there once."""
        verdicts = Verdicts()
        asks = [chat(prompt, SHORTEST, return_token_ids=True, logprobs=True) for prompt in prompts(draw, CALLS)]
        async with fleet.client() as client:
            for number, asked in enumerate(asks):
                whole, again = await fleet.send(client, asked), await fleet.send(client, asked)
                for cut in range(1, len(whole.tokens)):
                    got = await fleet.send(client, asked, cut)
                    verdicts.add(whole, again, got, f"{number} at {cut}")
                    verdicts.counts["ids_identical"] += got.tokens == whole.tokens
        numbers = {**verdicts.judge(fleet.plan), "ids_identical": verdicts.counts["ids_identical"]}
        require(numbers["ids_identical"] == numbers["streams"], "token ids are others", numbers)
        return numbers

    # Scripts.

    async def check_scripted(self, engine: str, parser: str) -> None:
        """Reasoning, tools and characters of the scripted model."""
        check = self._report.check
        plain = {"chat_template_kwargs": {"enable_thinking": False}}
        async with CutFleet.before(self._stage, engine) as fleet:
            reason = [chat("<|reason|>", 30), chat("<|reason|>", 8), chat("<|reason|>", 30, tools=[_LOOK])]
            await check(f"reasoning ({parser}), cut behind every token", lambda: _everywhere(fleet, reason))
            if parser != REASONING_PARSERS[0]:
                return  # what follows has no reasoning, and only the first parser can expect none
            calls = [chat(mark, 40, tools=[_LOOK], **plain) for mark in ("<|call|>", "<|split|>")]
            await check("calls of the model's own, greedy", lambda: self._cut_own_calls(fleet, calls))
            await check("calls of the model's own, sampled", lambda: self._sample_calls(fleet, calls))
            whole = [completion("<|bytes|>", 30), chat("<|bytes|>", 30, **plain), chat("<|bytes|>", 7, **plain)]
            await check("characters of several tokens", lambda: self._cut_characters(fleet, whole))

    async def _cut_own_calls(self, fleet: CutFleet, asks: Sequence[StreamRequest]) -> Numbers:
        verdicts = Verdicts()
        wholes = await cut_streams(fleet, asks, verdicts)
        return {**verdicts.judge(fleet.plan), **_judge_calls(wholes)}

    async def _sample_calls(self, fleet: CutFleet, asks: Sequence[StreamRequest]) -> Numbers:
        """Cuts sampled calls: each has arguments that are JSON, once."""
        got: list[Said] = []
        async with fleet.client() as client:
            for asked in asks:
                for cut in range(1, 13):
                    for seed in range(3):
                        body = {**asked.body, "temperature": 1, "seed": SEED + 100 * cut + seed}
                        got.append(await fleet.send(client, StreamRequest(asked.path, body), cut))
        failures = [said.error for said in got if not said.is_whole]
        numbers = {"streams": len(got), "continued_elsewhere": sum(bool(said.continued_at) for said in got)}
        require(not failures, "streams broke", numbers | {"first": failures[:3]})
        return {**numbers, **_judge_calls(got)}

    async def _cut_characters(self, fleet: CutFleet, asks: Sequence[StreamRequest]) -> Numbers:
        verdicts = Verdicts()
        wholes = await cut_streams(fleet, asks, verdicts)
        return {**verdicts.judge(fleet.plan), "text": wholes[0].text}

    # Sampling.

    async def check_samples(self, random: str, scripted: str) -> None:
        """One test over all sampled streams, of both models."""
        cells: list[tuple[float, float]] = []
        degrees = 0
        async with CutFleet.before(self._stage, random) as fleet, CutFleet.before(self._stage, scripted) as known:

            async def test() -> Numbers:
                nonlocal degrees
                table, freedom = await _compare_samples(fleet)
                shares, more = await _compare_with_script(known)
                cells.extend([*table, *shares])
                degrees = freedom + more
                statistic = sum((seen - expected) ** 2 / expected for seen, expected in cells)
                p = chi_squared_tail(statistic, degrees)
                numbers = {
                    "continued_streams": SAMPLED_PROMPTS * SAMPLED + SCRIPTED_SAMPLED,
                    "streams_without_a_cut": SAMPLED_PROMPTS * SAMPLED,
                    "cells": len(cells),
                    "degrees_of_freedom": degrees,
                    "chi_squared": round(statistic, 2),
                    "p": round(p, 4),
                }
                require(p > MIN_P, "what follows a cut has another distribution", numbers)
                return numbers

            await self._report.check("sampled streams, what follows the cut", test)

    # Engines that die.

    async def kill_engines(self, engines: list[EngineProcess]) -> Numbers:
        """Kills one engine in each round, and starts it again."""
        names = [f"engine-{at}" for at in range(len(engines))]
        gateway = await asyncio.to_thread(self._stage.gateway, _fleet(names, engines))
        verdicts, draw, reasons, starts = Verdicts(), Random(SEED + 1), Counter[str](), list[float]()
        for number in range(ROUNDS):
            await _await_both(gateway, len(engines))
            asks = [chat(prompt, KILLED_TOKENS, ignore_eos=True) for prompt in prompts(draw, STREAMS)]
            async with openai_client(gateway.url) as client:
                wholes = [await send(client, asked, f"{number}-whole") for asked in asks]
                again = list(await asyncio.gather(*(send(client, asked, f"{number}-again") for asked in asks)))
                killed = number % len(engines)
                tasks = [asyncio.create_task(send(client, asked, f"{number}-{at}")) for at, asked in enumerate(asks)]
                await _await_tokens(engines[killed], tasks)
                await asyncio.to_thread(engines[killed].kill)
                for at, got in enumerate(await asyncio.gather(*tasks)):
                    verdicts.add(wholes[at], again[at], got, f"round {number}, stream {at}")
                    reasons[got.error] += bool(got.error)
            if number + 1 == ROUNDS:
                break
            engine = engines[killed] = self._start(killed)
            await asyncio.to_thread(engine.await_health)
            starts.append(engine.started_seconds)
            names[killed] = f"engine-{killed}-{number}"  # as a new pod has another name
            await asyncio.to_thread(gateway.serve, _fleet(names, engines))
        numbers = {**verdicts.numbers(CutPlan()), "kills": ROUNDS, "start_seconds": starts}
        del numbers["cuts_so_far"]
        numbers["said_why_not"] = {reason: count for reason, count in reasons.items() if count}
        require(verdicts.counts["continued"], "no stream was continued, so nothing was shown", numbers)
        require(not verdicts.first, "streams are not those of a living engine", numbers)
        return numbers


def start_random(stage: EngineStage, name: str) -> EngineProcess:
    return stage.engine(name, *_OPTIONS, core=0, port=unused_port(), environment=_ENVIRONMENT)


def _start_scripted(stage: EngineStage, parser: str) -> EngineProcess:
    options = (*_OPTIONS, "--reasoning-parser", parser)
    return stage.engine(f"scripted-{parser}", *options, core=1, environment=_ENVIRONMENT)


async def _cut_each(fleet: CutFleet, asks: Sequence[StreamRequest], cuts: Sequence[Sequence[int]]) -> Numbers:
    """Cuts each stream at places of its own."""
    verdicts = Verdicts()
    async with fleet.client() as client:

        async def one(asked: StreamRequest, places: Sequence[int]) -> None:
            sent = (fleet.send(client, asked), fleet.send(client, asked), fleet.send(client, asked, *places))
            verdicts.add(*await asyncio.gather(*sent), f"at {places}")

        await asyncio.gather(*(one(*pair) for pair in zip(asks, cuts, strict=True)))
    return verdicts.judge(fleet.plan)


async def _everywhere(fleet: CutFleet, asks: Sequence[StreamRequest], cuts: int = 0) -> Numbers:
    verdicts = Verdicts()
    wholes = await cut_streams(fleet, asks, verdicts, cuts, CUT_EVERYWHERE)
    tokens = sum(whole.usage[1] for whole in wholes if whole.usage)
    with_reasoning = sum(bool(whole.reasoning) for whole in wholes)
    more = {"transcripts_with_reasoning": with_reasoning} if with_reasoning else {}
    return {"transcripts": len(asks), "tokens": tokens, **more, **verdicts.judge(fleet.plan)}


def _judge_calls(answers: Iterable[Said]) -> Numbers:
    """Requires that each answer has one call with arguments that are JSON.

    Those that end at the limit of tokens are left out: they do so without a cut, too.
    """
    whole = [said for said in answers if said.finish != "length"]
    wrong = [f"{said.calls} {said.text}" for said in whole if len(said.calls) != 1 or not _is_call(said.calls[0])]
    require(not wrong, "calls are not whole", {"first": wrong[:3]})
    return {"calls_that_are_json": len(whole)}


def _is_call(call: Sequence[str]) -> bool:
    try:
        json.loads(call[1])
    except ValueError:
        return False
    return call[0] == "look"


async def _compare_samples(fleet: CutFleet) -> tuple[list[tuple[float, float]], int]:
    """Samples each prompt with a cut and without; returns seen and expected counts, and degrees."""
    draw = Random(SEED + 2)
    cells: list[tuple[float, float]] = []
    degrees = 0
    async with fleet.client() as client:
        for number, prompt in enumerate(prompts(draw, SAMPLED_PROMPTS)):
            make = chat if number % 2 else completion
            is_narrow = number % 4 < 2
            more = {"top_k": 2} if is_narrow else {}
            asked = make(prompt, SAMPLED_CUT + 2, ignore_eos=True, return_token_ids=True, **more)
            sides = []
            for cuts in ((), (SAMPLED_CUT,)):
                seeds = [draw.getrandbits(32) for _ in range(SAMPLED)]
                bodies = [{**asked.body, "temperature": 1, "seed": seed} for seed in seeds]
                made = (fleet.send(client, StreamRequest(asked.path, body), *cuts) for body in bodies)
                sides.append(Counter(_around_cut(said, is_narrow) for said in await asyncio.gather(*made)))
            found = homogeneity(*sides)
            cells += found
            degrees += max(0, len(found) // 2 - 1)
    return cells, degrees


def _around_cut(said: Said, is_narrow: bool) -> str:
    """The cell of a stream: its first tokens until behind the cut, or classes of two of them."""
    require(said.is_whole, "a sampled stream broke", {"error": said.error})
    tokens = said.tokens[: SAMPLED_CUT + 1]
    return str(tokens) if is_narrow else f"{tokens[-2] % 2} {tokens[-1] % 8}"


async def _compare_with_script(fleet: CutFleet) -> tuple[list[tuple[float, float]], int]:
    """Cuts the scripted reasoning before its first choice, and counts what follows."""
    async with fleet.client() as client:
        body = {**chat("<|reason|>", 6).body, "temperature": 1}
        made = (
            fleet.send(client, StreamRequest(_CHAT, {**body, "seed": SEED + at}), SAMPLED_CUT)
            for at in range(SCRIPTED_SAMPLED)
        )
        texts = [said.reasoning for said in await asyncio.gather(*made)]
    seen = [sum(word in text for text in texts) for word, _ in _SHARES]
    require(sum(seen) == SCRIPTED_SAMPLED, "the script is not followed", {"seen": seen, "first": texts[:2]})
    expected = [SCRIPTED_SAMPLED * share for _, share in _SHARES]
    return list(zip(map(float, seen), expected, strict=True)), len(_SHARES) - 1


def homogeneity(first: Counter[str], second: Counter[str]) -> list[tuple[float, float]]:
    """The cells of a test that two samples of one size have the same distribution.

    Kinds of fewer than MIN_EXPECTED in the mean share a cell.
    """
    total = first + second
    often = [kind for kind, count in total.items() if count / 2 >= MIN_EXPECTED]
    pairs = [(first[kind], second[kind]) for kind in often]
    rest = (first.total() - sum(one for one, _ in pairs), second.total() - sum(one for _, one in pairs))
    if sum(rest) / 2 >= MIN_EXPECTED:
        pairs.append(rest)
    elif sum(rest) and pairs:
        pairs[-1] = (pairs[-1][0] + rest[0], pairs[-1][1] + rest[1])
    return [(float(seen), sum(pair) / 2) for pair in pairs for seen in pair]


def chi_squared_tail(statistic: float, degrees: int) -> float:
    """The probability of this or more, by the recursion of the incomplete gamma function."""
    half = statistic / 2
    tail, order = (math.erfc(math.sqrt(half)), 0.5) if degrees % 2 else (math.exp(-half), 1.0)
    while order < degrees / 2:
        tail += math.exp(order * math.log(half) - half - math.lgamma(order + 1)) if half else 0.0
        order += 1
    return min(1.0, tail)


def _fleet(names: Sequence[str], engines: Sequence[EngineProcess]) -> dict[str, Any]:
    instances = [{"id": name, "url": engine.url, "role": "Serve"} for name, engine in zip(names, engines, strict=True)]
    return {"models": [{"name": MODEL, "instances": instances}]}


async def _await_both(gateway: GatewayProcess, count: int) -> None:
    """Waits until every instance has answered."""
    seen: set[str] = set()

    async def one() -> bool:
        said = await send(client, chat(f"hello {len(seen)} {draw.random()}", 2), "warm")
        seen.add(said.instance)
        return len(seen - {""}) >= count

    draw = Random()
    async with openai_client(gateway.url) as client:
        await wait_until(one, _BACK_SECONDS, 0.2)


async def _await_tokens(engine: EngineProcess, tasks: Sequence["asyncio.Task[Said]"]) -> None:
    """Waits until an engine has generated some tokens of what runs now."""
    before = await asyncio.to_thread(_generated, engine)

    async def has_begun() -> bool:
        return all(task.done() for task in tasks) or await asyncio.to_thread(_generated, engine) > before + KILL_AFTER

    await wait_until(has_begun, _BACK_SECONDS, 0.01)


def _generated(engine: EngineProcess) -> float:
    lines = fetch(f"{engine.url}/metrics", seconds=60.0).decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vllm:generation_tokens_total"))
