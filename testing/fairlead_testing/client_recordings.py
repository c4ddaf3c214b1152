"""Recorded requests of clients, such as coding agents: texts become filler of the same length.

A recording is JSON. Two objects stand for what is long:

- ``{"$filler": [[text, length], …]}``: a text. Each piece is the start of the filler with this
  number, so that texts with a common start keep one.
- ``{"$shared": number}``: an entry of the recording's list ``shared``, which occurs several times.

``FillerWriter`` makes them, and ``read_client`` reads a recording.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

FOLDER = Path(__file__).resolve().parents[2] / "tests" / "recordings" / "clients"
_IDENTIFIER = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|(?<![A-Za-z0-9])(?=[a-z]*[0-9])[0-9A-Za-z]{20,}")
_KEPT = re.compile(
    r"x-anthropic-billing-header: .*|<system-reminder>\n<total_tokens>\d+ tokens left</total_tokens>.*", re.S
)
_PLAIN = re.compile(r"[\x21-\x7e]{0,80}")
_MIN_COMMON = 64
_MIN_SHARED = 200
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


@dataclass(slots=True)
class FillerWriter:
    """Replaces the texts of one client's requests.

    paths: replaced in all texts, by others of the same length.
    """

    paths: Mapping[str, str]
    _texts: list[str] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    def shorten(self, value: Any) -> Any:
        """Returns the value with filler in place of its texts. Order and other values stay."""
        if isinstance(value, dict):
            return {self.rename(key): self.shorten(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.shorten(item) for item in value]
        if not isinstance(value, str):
            return value
        text = self.rename(value)
        is_json = text[:1] in ("{", "[") and len(text) < 2_000
        if _PLAIN.fullmatch(text) or is_json or (len(text) < 200 and _KEPT.fullmatch(text)):
            return text
        return {"$filler": self._pieces(text)}

    def rename(self, text: str) -> str:
        """Replaces identifiers and paths: equal ones stay equal, and lengths stay."""
        for path, other in self.paths.items():
            text = text.replace(path, other)
        return _IDENTIFIER.sub(lambda found: self._id(found[0]), text)

    def _id(self, original: str) -> str:
        if original not in self._ids:
            digits = hashlib.sha256(str(len(self._ids)).encode()).hexdigest() * 4
            changed = (new if old.isalnum() else old for old, new in zip(original, digits, strict=False))
            self._ids[original] = "".join(changed)
        return self._ids[original]

    def _pieces(self, text: str) -> list[list[int]]:
        if text in self._texts:
            return [[self._texts.index(text), len(text)]]
        common = [_common_start(text, earlier) for earlier in self._texts]
        longest = max(common, default=0)
        self._texts.append(text)
        if longest < _MIN_COMMON:
            return [[len(self._texts) - 1, len(text)]]
        rest = len(text) - longest
        return [[common.index(longest), longest], *([[len(self._texts) - 1, rest]] if rest else [])]


def _common_start(text: str, other: str) -> int:
    length = min(len(text), len(other))
    return next((at for at in range(length) if text[at] != other[at]), length)


def share(value: Any) -> tuple[Any, list[Any]]:
    """Returns the value with references to what it has several times, and these parts."""
    counts = Counter(_subtrees(value))
    numbers: dict[str, int] = {}
    shared: list[Any] = []

    def visit(item: Any) -> Any:
        if not isinstance(item, dict | list) or "$filler" in item:
            return item
        text = json.dumps(item)
        if text in numbers:
            return {"$shared": numbers[text]}
        parts: Any = [visit(part) for part in (item.values() if isinstance(item, dict) else item)]
        if isinstance(item, dict):
            parts = dict(zip(item, parts, strict=True))
        if len(text) < _MIN_SHARED or counts[text] < 2:
            return parts
        numbers[text] = len(shared)
        shared.append(parts)
        return {"$shared": numbers[text]}

    return visit(value), shared


def _subtrees(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        yield json.dumps(value)
        for part in value.values() if isinstance(value, dict) else value:
            yield from _subtrees(part)


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
