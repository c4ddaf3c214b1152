"""Prompts of chosen lengths, different from the first word on: the standard library's source,
counted in the model's tokens."""

import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx

SHORTEST, LONGEST, PROMPTS = 20, 3_900, 50
OUTPUT_TOKENS = 16
_CHARACTERS_PER_TOKEN = 8  # more than any piece of source text has
KINDS = ("text", "ids", "chat")


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """One request: how long its prompt is, and where and what is sent."""

    tokens: int
    kind: str
    path: str
    body: Mapping[str, Any]

    def as_stream(self) -> "TextPrompt":
        """The same as a stream."""
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
