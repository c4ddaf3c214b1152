"""Asking an OpenAI server and keeping what it said: the tokens, how the answer ended, how long it
took."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from e2e.vllm.text_prompts import TextPrompt

TIMEOUT_SECONDS = 300.0


@dataclass(slots=True)
class EngineAnswer:
    """One answer. ``tokens`` are token ids where they were requested; ``ended``: it is complete;
    ``error``: the error in its place; ``reported``: the output tokens of its usage."""

    status: int
    tokens: list[int]
    ended: bool
    seconds: float
    decision: str = ""
    error: str = ""
    text: str = ""
    reported: int | None = None


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
            async for line in answer.aiter_lines():
                lines += [line[6:]] if line.startswith("data: ") else []
            return _streamed(answer, lines, time.monotonic() - began)
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
    """A client without limits of its own."""
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
