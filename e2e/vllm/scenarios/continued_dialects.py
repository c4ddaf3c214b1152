"""Streams of messages and responses that go on at another engine, from their text.

A proxy before a living engine cuts the connection behind a chosen event with text. The gateway has
three such proxies, so it continues each stream at the same engine, by the other way. Two models:

- Random weights. What it says is often written with other tokens than a tokenizer would choose. So
  the rest is compared with what the engine itself says behind the same text. The streams that are
  also those without a cut are counted.
- The same with a parser that takes all of it for thoughts, and a template that shows them.

Each stream must be valid: blocks and items in order, numbers without gaps, whole texts, and counts
of the prompt and of all tokens.
"""

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import httpx

from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import EngineProcess, EngineStage
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.scenarios.continued import MODEL, SEED, CutFleet, prompts

NAME = "continued-dialects"
PROMPTS, CUTS, TOKENS = 30, 3, 24
SYSTEM = "Answer in one paragraph."
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
_OPTIONS = (
    *("--dtype", "float32", "--max-num-seqs", "32", "--generation-config", "vllm"),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
)
_THINK, _THOUGHT = "<think>", "</think>"
_SCHEMA = {"type": "object", "properties": {"days": {"type": "integer"}}}
_MAX_SHOWN = 5


@dataclass(slots=True)
class NamedStream:
    """A stream of named events as its client has it."""

    events: list[dict[str, Any]] = field(default_factory=list)
    status: int = 200

    def text(self, events: Iterable[dict[str, Any]] | None = None) -> str:
        """The text, or the thoughts, of some events; of all without any."""
        parts = []
        for event in self.events if events is None else events:
            delta = event.get("delta")
            if event["type"] == "content_block_delta":
                parts.append(delta.get("text") or delta.get("thinking") or "" if isinstance(delta, dict) else "")
            elif event["type"] in ("response.output_text.delta", "response.reasoning_text.delta"):
                parts.append(str(delta))
        return "".join(parts)

    def before_cut(self) -> str | None:
        """The text before the cut; None if the stream was not continued."""
        for place, event in enumerate(self.events):
            if "fairlead_continued_at" in event:
                return self.text(self.events[:place])
        return None

    def counts(self) -> tuple[int, int]:
        """Tokens of prompt and answer."""
        last = self.events[-1]
        usage = last["response"]["usage"] if "response" in last else self.events[-2]["usage"]
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        return sum(usage.get(name) or 0 for name in names), usage["output_tokens"]

    def problem(self) -> str:
        """Returns what its form lacks; empty if it is right."""
        if self.status != 200 or not self.events:
            return f"status {self.status}"
        last = self.events[-1]["type"]
        if last not in ("message_stop", "response.completed", "response.incomplete"):
            return f"it ends with {json.dumps(self.events[-1])[:300]}"
        return self._message_problem() if last == "message_stop" else self._response_problem()

    def _message_problem(self) -> str:
        open_block, blocks = None, 0
        for event in self.events[1:-2]:
            kind = event["type"].removeprefix("content_block_")
            if (open_block is None) != (kind == "start") or event["index"] != blocks:
                return f"{kind} of block {event.get('index')} in the place of {blocks}"
            open_block = None if kind == "stop" else event["index"]
            blocks += kind == "stop"
        return "a block is open" if open_block is not None else ""

    def _response_problem(self) -> str:
        numbers = [event["sequence_number"] for event in self.events]
        if numbers != list(range(len(numbers))):
            return f"numbers {numbers}"
        response, text = self.events[-1]["response"], self.text()
        if response["id"] != self.events[0]["response"]["id"]:
            return "another id at its end"
        done = [event["text"] for event in self.events if event["type"].endswith("_text.done")]
        items = [part["text"] for item in response["output"] for part in item.get("content") or ()]
        return "" if done == items == [text] else f"whole texts {done} and {items} of {text!r}"


async def send(client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> NamedStream:
    """Sends a request and reads its stream."""
    found = NamedStream()
    async with client.stream("POST", path, json=body) as answer:
        found.status = answer.status_code
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                found.events.append(json.loads(line[6:]))
    return found


def body_of(path: str, prompt: str, *, tools: bool) -> dict[str, Any]:
    """A greedy request for a stream."""
    body: dict[str, Any] = {"model": MODEL, "temperature": 0, "stream": True}
    if path == MESSAGES:
        body |= {"system": SYSTEM, "messages": [{"role": "user", "content": prompt}], "max_tokens": TOKENS}
        return body | ({"tools": [{"name": "look", "input_schema": _SCHEMA}]} if tools else {})
    body |= {"instructions": SYSTEM, "input": prompt, "max_output_tokens": TOKENS}
    return body | ({"tools": [{"type": "function", "name": "look", "parameters": _SCHEMA}]} if tools else {})


class ContinuedDialects:
    """The engines, a gateway before each, and all checks."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Everything, in order; the engines are gone afterwards."""
        plain = self._stage.engine("dialects", *_OPTIONS, core=0)
        thinks = _thinking(self._stage).engine(
            "dialects-thoughts", *_OPTIONS, "--reasoning-parser", "deepseek_r1", core=1
        )
        try:
            for engine in (plain, thinks):
                await asyncio.to_thread(engine.await_health)
            for path in (MESSAGES, RESPONSES):
                await self._check(plain, path, "texts", thoughts=False)
            for path in (MESSAGES, RESPONSES):
                await self._check(thinks, path, "thoughts", thoughts=True)
        finally:
            plain.kill()
            thinks.kill()

    async def _check(self, engine: EngineProcess, path: str, what: str, *, thoughts: bool) -> None:
        async with CutFleet.before(self._stage, engine.url) as fleet:
            name = f"{PROMPTS} {what} of {path}, each cut behind {CUTS} of its events"
            await self._report.check(name, lambda: _cut_all(fleet, engine.url, path, thoughts=thoughts))


async def _cut_all(fleet: CutFleet, engine: str, path: str, *, thoughts: bool) -> Numbers:
    draw, counts, first = Random(SEED), Counter[str](), list[str]()
    async with fleet.client() as client, openai_client(engine) as own:
        for number, prompt in enumerate(prompts(draw, PROMPTS)):
            body = body_of(path, prompt, tools=number % 3 == 2)
            whole = await send(client, path, body)
            require(not whole.problem(), f"a stream without a cut: {whole.problem()}")
            events = sum(bool(whole.text([event])) for event in whole.events)
            for cut in draw.sample(range(1, events), CUTS):
                name = f"cut-{number}-{cut}"
                fleet.plan.cuts[name], made = [cut], fleet.plan.made
                got = await send(client, path, body | {"user": name})
                if fleet.plan.made == made:  # the engine has put several tokens into one event
                    counts["not_cut"] += 1
                    continue
                verdict = await _verdict(own, body, whole, got, thoughts=thoughts)
                counts["streams"] += 1
                counts[verdict if verdict in ("as the engine goes on", "not continued") else "wrong"] += 1
                counts["identical to the stream without a cut"] += got.text() == whole.text()
                if verdict not in ("as the engine goes on",) and len(first) < _MAX_SHOWN:
                    first.append(f"{number} at {cut}: {verdict}"[:600])
    numbers: Numbers = {name.replace(" ", "_"): count for name, count in sorted(counts.items())} | {"first": first}
    print(*first, sep="\n", end="\n" * bool(first), flush=True)
    require(counts["as the engine goes on"] == counts["streams"] > 0, "streams do not go on as they should", numbers)
    return numbers


async def _verdict(
    engine: httpx.AsyncClient, body: dict[str, Any], whole: NamedStream, got: NamedStream, *, thoughts: bool
) -> str:
    """Compares the rest of a stream with what the engine says behind the same text."""
    if problem := got.problem():
        return problem
    before = got.before_cut()
    if before is None:
        return "not continued"
    chat = _chat_of(body)
    prompt = (await engine.post("/tokenize", json=chat)).json()["tokens"]
    text = {"prompt": _THINK + before if thoughts else before, "add_special_tokens": False}
    answer = (await engine.post("/tokenize", json=text)).json()["tokens"]
    asked = chat | {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": TOKENS - len(answer),
        "kv_transfer_params": {"prompt_token_ids": prompt + answer},
    }
    rest, output = "", 0
    if len(answer) < TOKENS:
        told = (await engine.post("/v1/chat/completions", json=asked)).json()
        message, output = told["choices"][0]["message"], told["usage"]["completion_tokens"]
        rest = message["reasoning"] if thoughts else message["content"]
    if got.text() != before + (rest or ""):
        return f"{got.text()!r} and not {before + (rest or '')!r}"
    expected = (whole.counts()[0], len(answer) + output)
    return "as the engine goes on" if got.counts() == expected else f"counts {got.counts()} and not {expected}"


def _chat_of(body: Mapping[str, Any]) -> dict[str, Any]:
    prompt = body["input"] if "input" in body else body["messages"][0]["content"]
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    function = {"name": "look", "description": None, "parameters": _SCHEMA}
    return {"messages": messages} | ({"tools": [{"type": "function", "function": function}]} if "tools" in body else {})


def _thinking(stage: EngineStage) -> EngineStage:
    """Returns the same engines with a tokenizer and a template that know thoughts."""
    thinking = stage.with_model("thinking")
    model = thinking.installed.model
    shutil.copytree(stage.installed.model, model)
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    known: dict[str, int] = tokenizer["model"]["vocab"]
    merges = tokenizer["model"]["merges"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    dropped = sorted(known, key=lambda name: known[name])[-2:]
    for mark, last in zip((_THINK, _THOUGHT), dropped, strict=True):
        tokenizer["added_tokens"].append({"id": known[last], "content": mark, **flags})
        pairs = [(pair.split(" ") if isinstance(pair, str) else pair, pair) for pair in merges]
        merges[:] = [pair for parts, pair in pairs if last not in (*parts, "".join(parts))]
        known[mark] = known.pop(last)
    file.write_text(json.dumps(tokenizer))
    template = model / "chat_template.jinja"
    shown = "{% if message.reasoning %}" + _THINK + "{{ message.reasoning }}" + _THOUGHT + "{% endif %}"
    plain = "{{ message.content or '' }}"
    text = template.read_text()
    require(plain in text, "the template of the tiny model has changed")
    template.write_text(text.replace(plain, shown + plain))
    return thinking
