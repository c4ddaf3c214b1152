"""Prompts of a given size, as an OpenAI client writes them: conversations whose beginning others
share and whose end is new.

A quarter of a prompt is one of eight system prompts, half is one of so many conversations, and the
last message is new every time: the load generator replaces its run of ``#``. So routers that
remember prefixes have something to find and something to add.
"""

import json
import random
from pathlib import Path

SIZES = {"2k": 2_048, "32k": 32_768, "128k": 131_072, "220k": 225_280}
UNIQUE = "#" * 16
_SYSTEMS = 8
_MESSAGE_BYTES = 2_048
_ALPHABET = "eeeetttaaoooiinnsshhrrddlluucmwfgypbvk"


def make_bodies(size: int, *, count: int, seed: int, max_tokens: int, stream: bool) -> list[str]:
    """Returns JSON bodies of ``size`` bytes each (to within a few)."""
    rng = random.Random(seed)
    systems = [_prose(rng, size // 4) for _ in range(_SYSTEMS)]
    return [_body(rng, systems[number % _SYSTEMS], size, max_tokens, stream) for number in range(count)]


def write_bodies(folder: Path, size: int, *, seed: int, max_tokens: int, stream: bool) -> Path:
    """Writes the bodies to a file, one a line, unless it exists."""
    path = folder / f"bodies-{size}-{max_tokens}-{'stream' if stream else 'plain'}"
    if not path.exists():
        count = 64 if size <= SIZES["32k"] else 32
        lines = make_bodies(size, count=count, seed=seed, max_tokens=max_tokens, stream=stream)
        path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


def _body(rng: random.Random, system: str, size: int, max_tokens: int, stream: bool) -> str:
    messages = [{"role": "system", "content": system}]
    body = {"messages": messages, "model": "bench-model", "max_tokens": max_tokens, "temperature": 0.7}
    if stream:
        body["stream"] = True
    written = len(_json(body))
    while (left := size * 3 // 4 - written) > 256:
        role = "user" if len(messages) % 2 else "assistant"
        messages.append({"role": role, "content": _prose(rng, min(_MESSAGE_BYTES, left) - 64)})
        written += len(_json(messages[-1])) + 1  # with its comma
    messages.append({"role": "user", "content": UNIQUE})
    messages[-1]["content"] += " " + _prose(rng, size - len(_json(body)) - 1)
    return _json(body)


def _json(body: object) -> str:
    return json.dumps(body, separators=(",", ":"))


def _prose(rng: random.Random, size: int) -> str:
    """Words and lines that take ``size`` bytes as JSON, or one less (a line's end takes two)."""
    text: list[str] = []
    left = size
    column = 0
    while left > 0:
        word = "".join(rng.choices(_ALPHABET, k=min(left, rng.randint(2, 9))))
        text.append(word)
        left -= len(word)
        column += len(word)
        gap = "\n" if column > 90 and left > 1 else " "
        column = 0 if gap == "\n" else column + 1
        if left > 2:
            text.append(gap)
            left -= 2 if gap == "\n" else 1
    return "".join(text)
