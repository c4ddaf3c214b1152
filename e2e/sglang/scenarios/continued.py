"""Streams of SGLang whose engine ends: cut at chosen events, and with engines that are killed.

SGLang sends no token ids. A greedy chat or completion goes on from its text, and the rest must be
what the engine says behind that text. Messages, responses, and chats with tools cannot go on: they
must end with an error event that says so.
"""

import asyncio
import json
from collections import Counter
from random import Random
from typing import Any

import httpx

from e2e.sglang.engine.sglang_stage import KIND, SglangStage, fleet
from e2e.sglang.scenarios.api import DIALECTS, body_of, read_stream, streamed_answer
from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import EngineProcess
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.scenarios.continued import SEED, CutFleet, StreamRequest, chat, completion, prompts, send
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until

NAME, KILLS = "continued", "continued-kills"
PROMPTS, CUTS, TOKENS = 12, 3, 24
ROUNDS, KILLED_TOKENS = 2, 96
KILLED_STREAMS = 2
"""Streams of each dialect in a round."""
_CHAT, _COMPLETIONS, *NAMED_DIALECTS = DIALECTS
_OPTIONS = ("--max-running-requests", "16", "--dtype", "float32")
"""Whole precision, so that a text is the same with other parts of its prompt in the cache."""
_START_SECONDS = 120.0
_TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


class Continued:
    """One engine behind proxies that cut its streams."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        engine = self._stage.engine("continued", *_OPTIONS)
        try:
            await asyncio.to_thread(engine.await_health)
            async with CutFleet.before(self._stage, engine.url, KIND) as fleet:
                for make in (chat, completion):
                    asks = [make(prompt, TOKENS, ignore_eos=True) for prompt in prompts(Random(SEED), PROMPTS)]
                    name = f"{PROMPTS} streams of {asks[0].path}, each cut behind {CUTS} of its events"
                    await self._report.check(name, lambda: _cut_all(fleet, engine, asks))  # noqa: B023
                await self._report.check("streams that cannot go on say so", lambda: _say_why(fleet))
        finally:
            engine.kill()


async def _cut_all(fleet: CutFleet, engine: EngineProcess, asks: list[StreamRequest]) -> Numbers:
    draw, counts, first = Random(SEED), Counter[str](), list[str]()
    async with fleet.client() as client, openai_client(engine.url) as direct:
        for asked in asks:
            whole = await fleet.send(client, asked)
            require(whole.is_whole, f"a stream without a cut: {whole.error}")
            for cut in draw.sample(range(1, len(whole.pieces)), CUTS):
                made = fleet.plan.made
                got = await fleet.send(client, asked, cut)
                if fleet.plan.made == made:  # the engine has put several tokens into one event
                    counts["not_cut"] += 1
                    continue
                said = got.text, got.usage, got.is_whole
                expected = await _expected(direct, asked, "".join(got.pieces[:cut]), cut)
                counts["streams"] += 1
                counts["as_the_engine_goes_on"] += said == (*expected, True)
                counts["identical_to_the_stream_without_a_cut"] += got.text == whole.text
                if said != (*expected, True) and len(first) < 3:
                    first.append(f"at {cut}: {said} {got.error} and not {expected}"[:600])
    print(*first, sep="\n", end="\n" * bool(first), flush=True)
    numbers: Numbers = {**counts, "first": first}
    require(counts["as_the_engine_goes_on"] == counts["streams"] > 0, "streams do not go on as they should", numbers)
    return numbers


async def _expected(
    engine: httpx.AsyncClient, asked: StreamRequest, before: str, tokens: int
) -> tuple[str, tuple[int, int, int]]:
    """Returns text and counts of a stream that goes on behind `before`, as its engine does."""
    body = {**asked.body, "max_tokens": TOKENS - tokens}
    if asked.path == _COMPLETIONS:
        body["prompt"] += before
    else:
        body["messages"] = [*body["messages"], {"role": "assistant", "content": before}]
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    rest = await send(engine, StreamRequest(asked.path, body), "rest")
    require(rest.is_whole and rest.usage, f"the engine alone: {rest.error}")
    assert rest.usage is not None
    prompt, output, _ = rest.usage
    prompt -= tokens
    return before + rest.text, (prompt, output + tokens, prompt + output + tokens)


async def _say_why(fleet: CutFleet) -> Numbers:
    """Cuts streams that need token ids."""
    found: dict[str, str] = {}
    async with fleet.client() as client:
        asks: list[tuple[str, str, dict[str, Any]]] = [
            ("a sampled chat", _CHAT, {"temperature": 1}),
            ("a chat with a tool", _CHAT, {"tools": [_TOOL]}),
            *((f"greedy {path}", path, {}) for path in NAMED_DIALECTS),
        ]
        for name, path, more in asks:
            body = body_of(path, "import os", TOKENS) | {"user": name, **more}
            fleet.plan.cuts[name], made = [5], fleet.plan.made
            events = await read_stream(client, path, body)
            require(fleet.plan.made == made + 1, f"{name} was not cut", found)
            found[name] = json.dumps(next((event for event in events if "error" in event), None))
    reasons = {name: error[-400:] for name, error in found.items()}
    require(all("(engine)" in error for error in found.values()), "a stream ended without a reason", reasons)
    return {"streams": len(found), "reasons": reasons}


class ContinuedKills:
    """Two engines, of which one gets SIGKILL in each round, under streams of all dialects."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._ports = (unused_port(), unused_port())
        self._starts = 0

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        engines = [self._start(number) for number in range(2)]
        try:
            for engine in engines:
                await asyncio.to_thread(engine.await_health)
            name = f"an engine of two gets SIGKILL under streams of all dialects, {ROUNDS} times"
            await self._report.check(name, lambda: self._kill(engines))
        finally:
            for engine in engines:
                engine.kill()

    def _start(self, number: int) -> EngineProcess:
        self._starts += 1
        return self._stage.engine(f"kills-{self._starts}", *_OPTIONS, port=self._ports[number])

    async def _kill(self, engines: list[EngineProcess]) -> Numbers:
        gateway = await asyncio.to_thread(self._stage.gateway, fleet(*engines))
        draw, ends = Random(SEED), {path: Counter[str]() for path in DIALECTS}
        for number in range(ROUNDS):
            asks = [(path, prompt) for path in DIALECTS for prompt in prompts(draw, KILLED_STREAMS)]
            streams = [_Stream(gateway.url, path, prompt) for path, prompt in asks]
            tasks = [asyncio.create_task(stream.run()) for stream in streams]
            await wait_until(lambda: all(len(stream.events) > TOKENS for stream in streams), _START_SECONDS)  # noqa: B023
            killed = number % 2
            hit = [stream for stream in streams if stream.instance == engines[killed].name]
            await asyncio.to_thread(engines[killed].kill)
            await asyncio.gather(*tasks)
            for stream in streams:
                ends[stream.path][f"{'killed' if stream in hit else 'other'}: {stream.end()}"] += 1
            if number + 1 == ROUNDS:
                break
            engines[killed] = self._start(killed)
            await asyncio.to_thread(engines[killed].await_health)
            await asyncio.to_thread(gateway.serve, fleet(*engines))
        numbers: Numbers = {"kills": ROUNDS, **{path: dict(counts) for path, counts in ends.items()}}
        for path, counts in ends.items():
            wanted = "(engine)" if path in NAMED_DIALECTS else "whole"
            require(set(counts) <= {f"killed: {wanted}", "other: whole"}, f"streams of {path} end otherwise", numbers)
            require(counts[f"killed: {wanted}"], f"no stream of {path} was at a killed engine", numbers)
        return numbers


class _Stream:
    """One greedy stream through the gateway, read as it comes."""

    def __init__(self, url: str, path: str, prompt: str) -> None:
        self._url = url
        self.path = path
        self._body = body_of(path, prompt, KILLED_TOKENS) | {"stream": True, "ignore_eos": True}
        self.events: list[dict[str, Any]] = []
        self.instance = ""

    async def run(self) -> None:
        """Reads it to its end."""
        async with openai_client(self._url) as client, client.stream("POST", self.path, json=self._body) as answer:
            self.instance = answer.headers["x-fairlead-instance"]
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    self.events.append(json.loads(line[6:]))

    def end(self) -> str:
        error = next(
            (json.dumps(event) for event in self.events if "error" in event or event.get("type") == "error"), ""
        )
        if error:
            return "(engine)" if "(engine)" in error else error[:300]
        return "whole" if streamed_answer(self.events)[1] else "no end"
