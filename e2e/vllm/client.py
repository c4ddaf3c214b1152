"""Asking an OpenAI server and keeping what it said: the tokens, how the answer ended, how long it
took.

Prompts of chosen lengths, different from the first word on: the standard library's source,
counted in the model's tokens.

Tolerance for greedy answers that differ where the engine rates both tokens about equally.
"""

import asyncio
import itertools
import json
import math
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

SHORTEST, LONGEST, PROMPTS = 20, 3_900, 50
OUTPUT_TOKENS = 16
_CHARACTERS_PER_TOKEN = 8  # more than any piece of source text has
KINDS = ("text", "ids", "chat")

TIMEOUT_SECONDS = 300.0

MAX_TIE_NATS = (
    0.13  # two steps of a bfloat16 between 8 and 16, as large as this model's logits are; one is what is mostly seen
)
_BEST = 5


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """One request: how long its prompt is, and where and what is sent."""

    tokens: int
    kind: str
    path: str
    body: Mapping[str, Any]

    def as_stream(self) -> "TextPrompt":
        return TextPrompt(self.tokens, self.kind, self.path, {**self.body, "stream": True})


async def make_prompts(
    url: str, model: str, *, count: int = PROMPTS, seed: int = 1, least: int = SHORTEST
) -> list[TextPrompt]:
    """Greedy requests with prompts from ``least`` to 3,900 tokens, by turns as text, as token ids
    and as a chat."""
    draw = Random(seed)
    pieces = _pieces(draw)
    found = []
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        for number in range(count):
            tokens = least + round(number * (LONGEST - least) / max(1, count - 1))
            ids = await _ids(client, model, next(pieces), tokens)
            kind = KINDS[number % 3]
            found.append(await _request(client, model, kind, ids))
    draw.shuffle(found)
    return found


async def _request(client: httpx.AsyncClient, model: str, kind: str, ids: list[int]) -> TextPrompt:
    fixed = {
        "model": model,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    if kind == "ids":
        return TextPrompt(len(ids), kind, "/v1/completions", fixed | {"prompt": ids})
    text = (await client.post("/detokenize", json={"model": model, "tokens": ids})).json()["prompt"]
    if kind == "text":
        return TextPrompt(len(ids), kind, "/v1/completions", fixed | {"prompt": text})
    return TextPrompt(len(ids), kind, "/v1/chat/completions", fixed | {"messages": [{"role": "user", "content": text}]})


async def _ids(client: httpx.AsyncClient, model: str, text: str, tokens: int) -> list[int]:
    asked = {"model": model, "prompt": text[: tokens * _CHARACTERS_PER_TOKEN], "add_special_tokens": False}
    ids: list[int] = (await client.post("/tokenize", json=asked)).json()["tokens"]
    if len(ids) < tokens:
        raise ValueError(f"{len(ids)} tokens instead of {tokens}: the piece is too short")
    return ids[:tokens]


def _pieces(draw: Random) -> Iterator[str]:
    """Text that is long enough, each piece from another place."""
    files = sorted(path for path in Path(sysconfig.get_path("stdlib")).glob("*.py") if path.stat().st_size > 60_000)
    while True:
        text = draw.choice(files).read_text(encoding="utf-8")
        at = draw.randrange(len(text) - LONGEST * _CHARACTERS_PER_TOKEN)
        yield text[at : at + LONGEST * _CHARACTERS_PER_TOKEN]


@dataclass(slots=True)
class EngineAnswer:
    """One answer. ``tokens`` are token ids where they were requested; ``ended``: it is complete;
    ``error``: the error in its place; ``reported``: the output tokens of its usage.

    pauses: the seconds between two events of a stream."""

    status: int
    tokens: list[int]
    ended: bool
    seconds: float
    decision: str = ""
    error: str = ""
    text: str = ""
    reported: int | None = None
    pauses: list[float] = field(default_factory=list)


async def send_prompt(
    client: httpx.AsyncClient, asked: TextPrompt, *, deadline: float | None = None, salt: str | None = None
) -> EngineAnswer:
    """Sends one prompt. ``salt`` prevents cache hits, ``deadline`` is sent to the server."""
    body = dict(asked.body) | ({"cache_salt": salt} if salt else {})
    fields = {"x-request-timeout": f"{deadline:g}"} if deadline else {}
    began = time.monotonic()
    lines: list[str] = []
    try:
        if not body.get("stream"):
            answer = await client.post(asked.path, json=body, headers=fields)
            return _whole(answer, time.monotonic() - began)
        async with client.stream("POST", asked.path, json=body, headers=fields) as answer:
            if answer.status_code != 200:
                await answer.aread()
                return _whole(answer, time.monotonic() - began)
            times: list[float] = []
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    lines.append(line[6:])
                    times.append(time.monotonic())
            found = _streamed(answer, lines, time.monotonic() - began)
            found.pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
            return found
    except httpx.HTTPError as error:
        why = f"{type(error).__name__} after {len(lines)} events"
        return EngineAnswer(0, [], False, time.monotonic() - began, error=why)


async def send_prompts(
    client: httpx.AsyncClient,
    all_asked: Sequence[TextPrompt],
    *,
    at_once: int = 1,
    deadline: float | None = None,
    salt: str | None = None,
    each: Callable[[int], None] | None = None,
) -> list[EngineAnswer]:
    """Sends all prompts, so many at once, and returns the answers in their order. ``each`` gets the
    number of answers so far."""
    turn = asyncio.Semaphore(at_once)
    come = itertools.count(1)

    async def one(number: int, asked: TextPrompt) -> EngineAnswer:
        async with turn:
            said = await send_prompt(client, asked, deadline=deadline, salt=f"{salt}-{number}" if salt else None)
        if each is not None:
            each(next(come))
        return said

    return list(await asyncio.gather(*(one(*pair) for pair in enumerate(all_asked))))


def openai_client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=TIMEOUT_SECONDS, limits=httpx.Limits(max_connections=None))


def _whole(answer: httpx.Response, seconds: float) -> EngineAnswer:
    told = answer.json() if answer.content else {}
    decision = answer.headers.get("x-fairlead-decision", "")
    if answer.status_code != 200:
        return EngineAnswer(answer.status_code, [], False, seconds, decision, json.dumps(told)[:500])
    choice = told["choices"][0]
    ended = choice["finish_reason"] in ("stop", "length")
    reported = told["usage"]["completion_tokens"]
    return EngineAnswer(200, list(choice.get("token_ids") or []), ended, seconds, decision, "", _text(choice), reported)


def _streamed(answer: httpx.Response, events: list[str], seconds: float) -> EngineAnswer:
    decision = answer.headers.get("x-fairlead-decision", "")
    tokens: list[int] = []
    error, text, finished, reported = "", "", False, None
    for event in events:
        if event == "[DONE]":
            continue
        told: dict[str, Any] = json.loads(event)
        if "error" in told:
            error = event[:500]
        reported = (told.get("usage") or {}).get("completion_tokens", reported)
        for choice in told.get("choices", []):
            text += _text(choice)
            tokens += choice.get("token_ids") or []
            finished |= choice.get("finish_reason") in ("stop", "length")
    ended = finished and not error and events[-1:] == ["[DONE]"]
    return EngineAnswer(answer.status_code, tokens, ended, seconds, decision, error, text, reported)


def _text(choice: dict[str, Any]) -> str:
    said = choice.get("message") or choice.get("delta") or {}
    return str(choice.get("text") or said.get("content") or "")


def first_difference(want: Sequence[int], got: Sequence[int]) -> int:
    return next((at for at, pair in enumerate(zip(want, got, strict=False)) if pair[0] != pair[1]), -1)


async def logprob_gap(client: httpx.AsyncClient, one: TextPrompt, want: Sequence[int], got: Sequence[int]) -> float:
    """Returns the nats by which the engine prefers ``want``'s token to ``got``'s where they differ.

    It is 0 for equal answers, and infinite where the token is not among the best few.
    """
    if list(want) == list(got):
        return 0.0
    at = first_difference(want, got)
    if at < 0:
        return math.inf
    chat = one.kind == "chat"
    more = {"logprobs": True, "top_logprobs": _BEST} if chat else {"logprobs": _BEST}
    fixed = {"stream": False, "max_tokens": at + 1, "return_tokens_as_token_ids": True, "cache_salt": "alike"}
    answer = await client.post(one.path, json={**one.body, **fixed, **more})
    told = answer.raise_for_status().json()["choices"][0]["logprobs"]
    best = _of_chat(told["content"][at]) if chat else told["top_logprobs"][at]
    return float(best.get(f"token_id:{want[at]}", math.inf)) - float(best.get(f"token_id:{got[at]}", -math.inf))


def _of_chat(place: dict[str, Any]) -> dict[str, float]:
    return {logprob["token"]: logprob["logprob"] for logprob in place["top_logprobs"]}
