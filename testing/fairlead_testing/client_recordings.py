"""Recorded requests of clients, such as coding agents: texts become filler of the same length.

A recording is JSON. Two objects stand for what is long:

- ``{"$filler": [[text, length], …]}``: a text. Each piece is the start of the filler with this
  number, so that texts with a common start keep one.
- ``{"$shared": number}``: an entry of the recording's list ``shared``, which occurs several times.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "recordings" / "clients"
_LETTERS = "etaoinshrdlucmfwypvbgkjqxz"


def filler(text: int, length: int) -> str:
    """Returns the start of the filler with this number: words of small letters."""
    draw = Random(text)
    words: list[str] = []
    characters = 0
    while characters <= length:
        words.append("".join(draw.choices(_LETTERS, k=draw.randrange(2, 9))))
        characters += len(words[-1]) + 1
    return " ".join(words)[:length]


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request of a client; ``body`` is parsed JSON, or None."""

    conversation: int
    turn: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: Any

    def encode_body(self, **changes: Any) -> bytes:
        """Returns the body as clients write it, with other values for some of its fields."""
        if self.body is None:
            return b""
        return json.dumps({**self.body, **changes}, separators=(",", ":"), ensure_ascii=False).encode()


def read_client(path: Path) -> list[ClientRequest]:
    """Returns the requests of a recording in order, with its filler written out."""
    recording = json.loads(path.read_text())

    def expand(value: Any) -> Any:
        if isinstance(value, list):
            return [expand(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$filler" in value:
            return "".join(filler(*piece) for piece in value["$filler"])
        if "$shared" in value:
            return expand(recording["shared"][value["$shared"]])
        return {key: expand(item) for key, item in value.items()}

    return [
        ClientRequest(
            conversation,
            turn,
            sent["method"],
            sent["target"],
            tuple((name, value) for name, value in sent["headers"]),
            sent["body"],
        )
        for conversation, turns in enumerate(recording["conversations"])
        for turn, requests in enumerate(turns)
        for sent in expand(requests)
    ]
