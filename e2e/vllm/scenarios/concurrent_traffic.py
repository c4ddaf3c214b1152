"""Concurrent traffic on an index: predictions are made without waiting, so they are as old as the
index.

Clients share a few warm prefixes, and each keeps some conversations. Like people, a client
continues one only after some others were answered. Predictions for conversations that continue
without a pause are measured, too, but have no goal.
"""

import itertools
from collections.abc import Iterator, Mapping
from random import Random

from e2e.vllm.observation.index_under_test import (
    PredictionRow,
    TokenPrompt,
    count_by_kind,
    count_outcomes,
    run_concurrently,
    tokens,
)
from e2e.vllm.observation.observed_engine import ObservedEngine
from e2e.vllm.report import Numbers, require, spread

HEADS = 6
CONVERSATIONS = 5
REQUESTS = 1_200
EAGER_PROMPTS = 200
LEAST_WITHOUT_EVICTION = 0.999
LEAST_WITH_EVICTION = 0.82
SHORT, LONG = 20, 200
_LONGEST = 3_400


def mixed_prompts(count: int, seed: object, *, step: int) -> Iterator[TokenPrompt]:
    """Prompts that share beginnings (of ``step`` to six times as many tokens) and come again:
    salts, whole numbers of blocks, answers of one to forty tokens."""
    draw = Random(repr(seed))
    for _ in range(count):
        head = draw.randrange(HEADS)
        begun = tokens((seed, "head", head), step * (1 + head))
        tail = tokens((seed, "tail", head, draw.randrange(12)), draw.choice((0, 20, 33, 45, 64, 96, 3 * step)))
        whole = (*begun, *tail)
        if draw.random() < 0.2:
            whole = whole[: len(whole) // 32 * 32] or whole
        yield TokenPrompt(whole, draw.randint(1, 40), draw.choice((None, None, None, "tenant-1", "tenant-2")))


async def without_eviction(at: ObservedEngine, workers: int) -> Numbers:
    """Everything fits; so only what is still on its way can make a prediction wrong."""
    name = ("talk", workers)
    heads = [tokens((*name, "head", number), 128 + 40 * number) for number in range(HEADS)]
    for head in heads:
        await at.send(TokenPrompt(head), keep=False)
    await at.wait_until_quiet()
    rows: list[PredictionRow] = []
    numbers = itertools.count()

    async def one(worker: int) -> None:
        draw = Random(repr((*name, worker)))
        talks: list[TokenPrompt] = []
        while next(numbers) < REQUESTS:
            if len(talks) < CONVERSATIONS:
                fresh = tokens((*name, worker, len(talks), len(rows)), draw.randint(1, 150))
                prompt = TokenPrompt((*draw.choice(heads), *fresh), draw.randint(1, 40))
            else:
                prompt = talks.pop(0)
            row, answer = await at.ask_and_compare(prompt)
            rows.append(row)
            if len(prompt.tokens) < _LONGEST and draw.random() < 0.9:
                more = tokens((*name, worker, len(rows)), draw.randint(1, 80))
                talks.append(prompt.continued(answer.tokens, more))

    await run_concurrently(workers, one)
    found = count_outcomes(rows)
    found["going_on_at_once"] = await _eager(at, workers, heads)
    found = await at.equal(found)
    for name, right in found["share_right"].items():
        require(right >= LEAST_WITHOUT_EVICTION, f"{name}: too many predictions were wrong", found)
    return found


async def _eager(at: ObservedEngine, workers: int, heads: list[tuple[int, ...]]) -> Numbers:
    """The same clients with one conversation each, and no pause at all."""
    rows: list[PredictionRow] = []
    numbers = itertools.count()

    async def one(worker: int) -> None:
        draw = Random(repr(("eager", workers, worker)))
        prompt = TokenPrompt(draw.choice(heads), 20)
        while next(numbers) < EAGER_PROMPTS:
            row, answer = await at.ask_and_compare(prompt)
            rows.append(row)
            prompt = prompt.continued(answer.tokens, tokens(("eager", worker, len(rows)), 20))
            if len(prompt.tokens) > _LONGEST:
                prompt = TokenPrompt(draw.choice(heads), 20)

    await run_concurrently(workers, one)
    found = count_outcomes(rows)
    return {name: found[name] for name in ("requests", "share_right", "share_right_of_the_reference")}


async def under_eviction(at: ObservedEngine, workers: int) -> Numbers:
    """Sends prompts to a cache that is far too small: a predicted block may be gone at admission.

    Neither form may be worse than counting copies at the engine, which receives all events at the
    same moment. The report has the delay after the engine's step, and the further delay of the
    index in another process, both measured in this traffic.
    """
    rows: list[PredictionRow] = []
    heard, before = len(at.recorders[0].heard_after), {name: len(one.arrivals) for name, one in at.indexes.items()}
    prompts = mixed_prompts(REQUESTS, "evicted", step=SHORT)

    async def one(_: int) -> None:
        for prompt in prompts:
            row, _ = await at.ask_and_compare(prompt)
            rows.append(row)

    await run_concurrently(workers, one)
    found = await at.equal(count_outcomes(rows) | count_by_kind(rows))
    found["reference_hears_of_a_step_after_seconds"] = spread(at.recorders[0].heard_after[heard:])
    found |= _later(at, before)
    best = max(LEAST_WITH_EVICTION, found["share_right_of_the_reference"])
    found["wanted"] = best
    found["below"] = [name for name, right in found["share_right"].items() if right < best]
    require(not found["below"], f"fewer than {best} of the predictions were right", found)
    return found


def _later(at: ObservedEngine, before: Mapping[str, int]) -> Numbers:
    """By how much each change was known later through Redis than in the process; nothing where they
    did not hear the same."""
    here, there = (at.indexes[name].arrivals[before[name] :] for name in ("in_process", "through_redis"))
    if len(here) != len(there):
        return {}
    return {"through_redis_later_seconds": spread([late - early for early, late in zip(here, there, strict=True)])}
