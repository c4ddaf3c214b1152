"""Prompts as token ids, so that their hashes can be computed; predictions of an index, and the
engine's reports.

A prompt is sent in *quiescence*: the one before has been answered, and neither recorder nor index
has received an event for a while. Then the prediction must equal the reported ``cached_tokens``.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import httpx

from fairlead_kvstore.blockstore.block_hash import block_extras, block_hashes, cached_tokens, chain_root

VOCABULARY = 8_000
FIRST_TOKEN = 100
QUIET_SECONDS = 0.2
_LOOKS = 8
TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    """One prompt. ``more`` goes into its body, ``headers`` to its head."""

    tokens: tuple[int, ...]
    output: int = 1
    salt: str | None = None
    adapter: str | None = None
    more: tuple[tuple[str, Any], ...] = ()
    rank: int | None = None

    def chain(self, model_key: str, size: int, secret: bytes) -> list[int]:
        """Its whole blocks as the index names them."""
        extras = block_extras(len(self.tokens) // size, size, salt=self.salt)
        return block_hashes(chain_root(model_key, self.adapter, secret=secret), self.tokens, size, extras)

    def body(self, model: str) -> dict[str, Any]:
        """Returns the body for ``/v1/completions``."""
        fixed = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
        salt = {"cache_salt": self.salt} if self.salt else {}
        chosen = {"model": self.adapter or model, "prompt": list(self.tokens), "max_tokens": self.output}
        return {**chosen, **fixed, **salt, **dict(self.more)}

    def continued(self, said: Sequence[int], more: Sequence[int] = ()) -> "TokenPrompt":
        """The next turn of a conversation: what was said, and something new."""
        return replace(self, tokens=(*self.tokens, *said, *more))


@dataclass(frozen=True, slots=True)
class PromptAnswer:
    """The engine's answer: tokens found in its cache, generated tokens."""

    cached: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One prediction: tokens by index, and the engine's report.

    A prediction counts prompts in flight as cached, as a gateway does. All are made at the same
    moment.

    reference: the prediction of the recorder, from reports alone; ``reference_flying`` has the
        prompts in flight.
    told: the prediction of the index from reports alone.
    excused: indexes that could not know, since a clear was not reported and the engine's event
        comes only now.
    """

    prompt: int
    predicted: Mapping[str, int]
    reported: int
    reference: int
    excused: frozenset[str] = frozenset()
    told: Mapping[str, int] = field(default_factory=dict)
    reference_flying: int = 0

    def is_right(self, index: str) -> bool:
        """Whether it knew."""
        return self.predicted[index] == self.reported


def tokens(seed: object, count: int) -> tuple[int, ...]:
    """Random token ids, the same ones for the same seed; a longer count begins with a shorter
    one's."""
    draw = Random(repr(seed))
    return tuple(draw.randrange(FIRST_TOKEN, VOCABULARY) for _ in range(count))


async def send_prompt(client: httpx.AsyncClient, model: str, prompt: TokenPrompt) -> PromptAnswer:
    """Raises httpx errors for what is not 200."""
    headers = {} if prompt.rank is None else {"X-data-parallel-rank": str(prompt.rank)}
    answer = await client.post("/v1/completions", json=prompt.body(model), headers=headers)
    told = answer.raise_for_status().json()
    cached = (told["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return PromptAnswer(cached, tuple(told["choices"][0].get("token_ids") or ()))


def predict_cached(blocks: int, prompt: TokenPrompt, size: int, slower: int = 0) -> int:
    """Tokens that the engine will say it found, if it holds so many blocks in the GPU, and
    ``slower`` with slower tiers."""
    return cached_tokens(blocks, len(prompt.tokens), size, slower=slower)


async def wait_until_quiet(stamp: Callable[[], object], seconds: float = QUIET_SECONDS) -> None:
    """Wait until ``stamp`` has not changed for a while. Raises TimeoutError when it never stops."""
    began = since = time.monotonic()
    last = stamp()
    looks = 0
    while time.monotonic() - since < seconds or looks < _LOOKS:
        await asyncio.sleep(seconds / _LOOKS)
        looks += 1
        if (now := stamp()) != last:
            last, since, looks = now, time.monotonic(), 0
        if since - began > TIMEOUT_SECONDS:
            raise TimeoutError("events do not stop")


async def until(what: Callable[[], bool], seconds: float = TIMEOUT_SECONDS) -> bool:
    """Whether it became true in time."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > seconds:
            return False
        await asyncio.sleep(0.02)
    return True


async def run_concurrently(workers: int, work: Callable[[int], Awaitable[None]]) -> None:
    """So many workers, to their ends; one that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for number in range(workers):
            group.create_task(_one(work, number))


async def _one(work: Callable[[int], Awaitable[None]], number: int) -> None:
    await work(number)


def count_outcomes(rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Requests, how many predictions were right, and by how much the others were wrong."""
    names = sorted({name for one in rows for name in one.predicted})
    judged = {name: [one for one in rows if name not in one.excused] for name in names}
    wrong = {name: [one for one in some if not one.is_right(name)] for name, some in judged.items()}
    asked = sum(one.prompt for one in rows)
    found = {
        "requests": len(rows),
        "share_right": {name: share(len(judged[name]) - len(wrong[name]), len(judged[name])) for name in names},
        "share_right_of_the_reference": share(sum(one.reference == one.reported for one in rows), len(rows)),
        "cached_share": share(sum(one.reported for one in rows), asked),
        "mean_error_tokens": {
            name: share(sum(abs(one.predicted[name] - one.reported) for one in wrong[name]), len(judged[name]))
            for name in names
        },
        "wrong": [
            [name, one.prompt, one.predicted[name], one.reported, one.reference]
            for name in names
            for one in wrong[name][:10]
        ],
    }
    excused = sum(bool(one.excused) for one in rows)
    return found | ({"excused": excused} if excused else {})


def count_by_kind(rows: Sequence[PredictionRow]) -> dict[str, Any]:
    """Returns how many predictions were right from events alone, and how many with prompts in
    flight."""
    names = sorted({name for one in rows for name in one.told})
    alone = {name: share(sum(one.told[name] == one.reported for one in rows), len(rows)) for name in names}
    reference = share(sum(one.reference_flying == one.reported for one in rows), len(rows))
    return {
        "share_right_from_what_is_told_alone": alone,
        "share_right_of_the_reference_with_what_is_on_its_way": reference,
    }


def share(part: float, whole: float) -> float | None:
    """Returns a share; None of nothing."""
    return round(part / whole, 5) if whole else None
