"""Load cases and the plan of their repetitions.

Prompts of a given size, as an OpenAI client writes them: conversations whose beginning others
share and whose end is new.

A quarter of a prompt is one of eight system prompts, half is one of so many conversations, and the
last message is new every time: the load generator replaces its run of ``#``. So routers that
remember prefixes have something to find and something to add.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

SIZES = {"2k": 2_048, "32k": 32_768, "128k": 131_072, "220k": 225_280}
UNIQUE = "#" * 16
_SYSTEMS = 8
_MESSAGE_BYTES = 2_048
_ALPHABET = "eeeetttaaoooiinnsshhrrddlluucmwfgypbvk"

_FOREVER = 10_000_000
"""A limit of tokens that lets streams outlive their measurement."""

DECISION_SIZES = ("2k", "32k")
"""Sizes of which the decision alone is measured."""
WITH_KV_EVENTS = ", followed"
"""Behind a size: by a gateway whose engines tell what they hold."""


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


@dataclass(frozen=True, slots=True)
class LoadCase:
    """One kind of load.

    unit: the CPU is divided by it.
    mode: of the load generator.
    """

    name: str
    title: str
    mode: str
    unit: str
    size: str
    connections: int
    events: int = 0  # of a stream; 0 = plain answers
    interval_seconds: float = 0.0
    rate: float = 0.0
    spread_seconds: float = 0.0
    warmup_seconds: float = 0.5
    near: bool = False  # compared by a goal: longer, more often
    direct: bool = False  # also without anything in between
    fresh: bool = False  # on a target that has done nothing yet
    crowded: bool = False  # with a noisy neighbour (`native_programs.memory_load`)

    @property
    def size_bytes(self) -> int:
        return SIZES[self.size]

    @property
    def checked_events(self) -> int:
        return 0 if self.events == _FOREVER else self.events


def _crowded(case: LoadCase) -> LoadCase:
    return replace(case, name=f"{case.name}-crowded", title=f"{case.title}, crowded", crowded=True)


def _paced(streams: int, *, seconds_between: float, **more: bool) -> LoadCase:
    return LoadCase(
        f"paced-{streams}",
        f"{streams:,} streams × {1 / seconds_between:g} chunks/s",
        "hold",
        "chunk",
        "2k",
        streams,
        events=_FOREVER,
        interval_seconds=seconds_between,
        spread_seconds=1.0,
        near=True,
        direct=True,
        **more,
    )


_REQUESTS = (
    LoadCase("request-2k", "2 KB request", "closed", "request", "2k", 64, near=True),
    LoadCase("request-32k", "32 KB request", "closed", "request", "32k", 32, near=True),
    LoadCase("request-128k", "128 KB request", "closed", "request", "128k", 16, near=True),
)
CASES: Mapping[str, LoadCase] = {
    case.name: case
    for case in (
        *_REQUESTS,
        *map(_crowded, _REQUESTS),
        _paced(200, seconds_between=0.05),
        _crowded(_paced(200, seconds_between=0.05)),
        _paced(1000, seconds_between=0.05),
        LoadCase("bulk", "chunk of streams without pauses", "closed", "chunk", "2k", 32, events=128),
        LoadCase(
            "abort",
            "client that leaves in the middle of its stream",
            "abort",
            "abort",
            "2k",
            32,
            events=_FOREVER,
            interval_seconds=0.02,
        ),
        LoadCase(
            "open-220k",
            "220 KB streamed request, 100/s",
            "open",
            "request",
            "220k",
            64,
            events=4,
            rate=100.0,
            near=True,
            direct=True,
        ),
        LoadCase("alone-2k", "2 KB request, one at a time", "closed", "request", "2k", 1, direct=True),
        LoadCase("rate-2k", "2 KB request, 300/s", "open", "request", "2k", 64, rate=300.0, direct=True),
        LoadCase(
            "memory",
            "1,000 open streams",
            "hold",
            "chunk",
            "2k",
            1000,
            events=_FOREVER,
            interval_seconds=1.0,
            spread_seconds=1.0,
            fresh=True,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """Length and number of the runs. Near cases of near targets get all rounds, the rest
    ``other_rounds``."""

    cases: tuple[str, ...]
    targets: tuple[str, ...] | None
    rounds: int
    seconds: float
    other_rounds: int
    other_seconds: float

    def rounds_of(self, case: LoadCase, *, near_target: bool) -> int:
        """Returns the number of rounds of a case on a target."""
        if case.fresh:
            return 1
        return self.rounds if case.near and near_target else min(self.rounds, self.other_rounds)

    def seconds_of(self, case: LoadCase) -> float:
        return self.seconds if case.near else self.other_seconds


QUICK = MeasurementPlan(
    ("request-2k", "request-2k-crowded", "request-32k", "paced-200", "abort"),
    ("fairlead", "sglang-router cache_aware", "Envoy"),
    rounds=2,
    seconds=3.0,
    other_rounds=1,
    other_seconds=2.0,
)
FULL = MeasurementPlan(tuple(CASES), None, rounds=5, seconds=12.0, other_rounds=2, other_seconds=6.0)
