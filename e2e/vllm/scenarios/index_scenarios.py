"""Scenarios of the index with vLLM: it must be right after all that vLLM does with its cache.

There are five parts, with an engine each:

- ``index-peace``: a cache without faults, and adapters.
- ``index-clears``: clears and a death.
- ``index-eviction``: 40 blocks, and preemption.
- ``index-ranks``: two data-parallel ranks.
- ``index-tiers``: a CPU tier.

Concurrent traffic on an index: predictions are made without waiting, so they are as old as the
index.

Clients share a few warm prefixes, and each keeps some conversations. Like people, a client
continues one only after some others were answered.

An engine that keeps what the GPU has no room for in the machine's memory: vLLM's own offloading,
events of both tiers.

``observed_engine.py`` has the comparison.
"""

import asyncio
import contextlib
import itertools
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import httpx

from e2e.vllm.engine.engine_processes import EngineStage, cpu_tier
from e2e.vllm.engine.installation import HERE
from e2e.vllm.observation.observed_engine import (
    MODEL,
    EngineShape,
    ObservedEngine,
    PredictionRow,
    RedisIndex,
    TokenPrompt,
    completeness,
    content,
    count_outcomes,
    run_concurrently,
    send_prompt,
    tokens,
    until,
)
from e2e.vllm.report import Numbers, VllmReport, require, spread
from fairlead_kvstore.blockstore.storage_tiers import StorageTier

HEADS = 6
CONVERSATIONS = 5
REQUESTS = 1_200
LEAST_WITHOUT_EVICTION = 0.999
LEAST_WITH_EVICTION = 0.82
SHORT, LONG = 20, 200
_LONGEST = 3_400

PROMPT = 1_500
MIXED_IN_TIERS = 200

LARGE_BLOCKS = 8_192
SMALL_BLOCKS = 40
SHORT_BUFFER = 20
TIER_BYTES = 256 * 32 * 1_024  # 256 blocks of the tiny model
REPORT_SECONDS = 3.0
MIXED = 150
Scenario = list[tuple[str, Callable[[], Awaitable[Numbers]]]]
INDEXES = ("index-peace", "index-clears", "index-eviction", "index-ranks", "index-tiers")
_LORA = ("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")


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
    found = await at.equal(found)
    for name, right in found["share_right"].items():
        require(right >= LEAST_WITHOUT_EVICTION, f"{name}: too many predictions were wrong", found)
    return found


async def under_eviction(at: ObservedEngine, workers: int) -> Numbers:
    """Sends prompts to a cache that is far too small: a predicted block may be gone at admission.

    The index may not be worse than counting copies at the engine, which receives all events at the
    same moment. The report has the delay after the engine's step, measured in this traffic.
    """
    rows: list[PredictionRow] = []
    heard = len(at.recorders[0].heard_after)
    prompts = mixed_prompts(REQUESTS, "evicted", step=SHORT)

    async def one(_: int) -> None:
        for prompt in prompts:
            rows.append((await at.ask_and_compare(prompt))[0])

    await run_concurrently(workers, one)
    found = await at.equal(count_outcomes(rows))
    found["reference_hears_of_a_step_after_seconds"] = spread(at.recorders[0].heard_after[heard:])
    best = max(LEAST_WITH_EVICTION, found["share_right_of_the_reference"])
    found["wanted"] = best
    found["below"] = [name for name, right in found["share_right"].items() if right < best]
    require(not found["below"], f"fewer than {best} of the predictions were right", found)
    return found


class TieredCache:
    """The scenarios. The device has room for three of the prompts, the tier for a little more."""

    def __init__(self, at: ObservedEngine) -> None:
        self._at = at

    def story(self) -> list[tuple[str, Callable[[], Awaitable[Numbers]]]]:
        """In order."""
        return [
            ("offloaded and found again", self._found_again),
            (f"{MIXED_IN_TIERS} mixed prompts, one at a time, two tiers", self._in_peace),
            ("a reset of the device alone", self._reset_device),
            ("a reset of both", self._reset_both),
        ]

    async def _found_again(self) -> Numbers:
        first = len(self._at.rows)
        for number in range(4):
            await self._at.send(TokenPrompt(tokens(("big", number), PROMPT)))
        await self._at.wait_until_quiet()
        prompt = TokenPrompt(tokens(("big", 0), PROMPT))
        index = next(iter(self._at.indexes.values()))
        device, both = self._at.predict(prompt, index, StorageTier.GPU), self._at.predict(prompt, index)
        await self._at.send(prompt)
        reported = self._at.rows[-1].reported
        require(device < both, f"nothing was only in the tier: {device} tokens on the device, {both} with the tier")
        for number in range(12):
            await self._at.send(TokenPrompt(tokens(("other", number), PROMPT)), keep=False)
        more = {"on_the_device": device, "with_the_tier": both, "reported": reported}
        return await self._at.expect_agreement(first, more)

    async def _in_peace(self) -> Numbers:
        first = len(self._at.rows)
        for prompt in mixed_prompts(MIXED_IN_TIERS, "tiers", step=LONG):
            await self._at.send(prompt, keep=False)
        return await self._at.expect_agreement(first, again=False)

    async def _reset_device(self) -> Numbers:
        """The engine's word for it names no tier. What the tier keeps is not announced again: hits
        are missed, none is made up."""
        prompts = [TokenPrompt(tokens(("big", number), PROMPT)) for number in range(4)]
        for prompt in prompts:
            await self._at.send(prompt)
        await self._at.wait_until_quiet()
        await self._at.post("/reset_prefix_cache")
        untold = self._at.record_cleared()
        first = len(self._at.rows)
        for number, prompt in enumerate(prompts):
            await self._at.send(prompt, keep=False, excused=frozenset() if number else untold)
        rows = self._at.rows[first:]
        numbers = {
            "predicted": {name: sum(row.predicted[name] for row in rows) for name in self._at.indexes},
            "reported": sum(row.reported for row in rows),
            "requests": len(rows),
        }
        fair = all(
            row.predicted[name] <= row.reported for row in rows for name in self._at.indexes if name not in row.excused
        )
        require(fair, "it promised what is not there", numbers)
        return numbers

    async def _reset_both(self) -> Numbers:
        await self._at.wait_until_quiet()
        await self._at.post("/reset_prefix_cache?reset_external=true")
        untold = self._at.record_cleared()
        first = len(self._at.rows)
        for turn, number in enumerate((0, 1, 0)):
            excused = frozenset() if turn else untold
            await self._at.send(TokenPrompt(tokens(("big", number), PROMPT)), excused=excused)
        return await self._at.expect_agreement(first)


class IndexScenarios:
    """The scenarios of one of the parts."""

    def __init__(self, stage: EngineStage, report: VllmReport, part: str) -> None:
        self._stage = stage
        self._report = report
        self._part = part

    def _made(self, name: str) -> dict[str, RedisIndex]:
        return {"through_redis": RedisIndex(self._stage.folder / name)}

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        self._adapters = await asyncio.to_thread(self._make_adapters)
        shape, story = self._stories()[self._part]
        async with ObservedEngine(self._stage, self._report, shape, self._made(shape.name)) as self.at:
            for name, check in story():
                await self._report.check(name, check)

    def _stories(self) -> dict[str, tuple[EngineShape, Callable[[], Scenario]]]:
        small = ("--num-gpu-blocks-override", str(SMALL_BLOCKS), "--max-model-len", "1024", "--max-num-seqs", "8")
        ranks = ("--num-gpu-blocks-override", "1024", "--data-parallel-size", "2", "--api-server-count", "1")
        tier = cpu_tier(self._stage.folder / "cpu-tier", TIER_BYTES)
        tiers = ("--num-gpu-blocks-override", "160", "--kv-transfer-config", tier.engine_arguments("kv_both"))
        large = ("--num-gpu-blocks-override", str(LARGE_BLOCKS), *_LORA)
        binding = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
        beside = {"PYTHONPATH": str(tier.path)}
        stories: list[tuple[EngineShape, Callable[[], Scenario]]] = [
            (EngineShape("index-peace", large), self._large),
            (EngineShape("index-clears", large), self._clears),
            (EngineShape("index-eviction", small, buffer=SHORT_BUFFER), self._small),
            (EngineShape("index-ranks", ranks, ranks=2, environment=binding), self._ranks),
            (
                EngineShape("index-tiers", tiers, environment=beside, tier=StorageTier.CPU),
                lambda: TieredCache(self.at).story(),
            ),
        ]
        return {shape.name: (shape, story) for shape, story in stories}

    def _make_adapters(self) -> list[str]:
        """Two folders with an adapter each."""
        folders = [str(self._stage.folder / f"adapter-{number}") for number in (1, 2)]
        installed = self._stage.installed
        command = [str(installed.engine_python), str(HERE / "tiny_adapters.py"), str(installed.model), *folders]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return folders

    # The large engine
    # --------------------------------------------------------------------------------------------------

    def _large(self) -> Scenario:
        return [
            ("a cold prompt", self._cold),
            ("the same again", self._repeat),
            ("a longer one", self._extension),
            ("a whole number of blocks, all cached", self._exact),
            ("what is said is cached, too", self._decode),
            ("a long prompt in chunks", self._chunks),
            ("salts", self._salts),
            ("four at once, two answers each", self._same_at_once),
            ("log-probabilities of a prompt store it again", self._stored_again),
            ("clients that leave", self._left),
            ("adapters", self._lora),
            ("8 at once without eviction", lambda: without_eviction(self.at, 8)),
            ("32 at once without eviction", lambda: without_eviction(self.at, 32)),
            ("a name loaded from another path, and back", self._reloaded),
            ("who joins late is replayed everything", self._late),
            (f"{MIXED} mixed prompts, one at a time", lambda: self._in_peace("large")),
        ]

    def _clears(self) -> Scenario:
        return [
            ("a cold prompt", self._cold),
            ("reset", lambda: self._cleared("/reset_prefix_cache")),
            ("sleep", lambda: self._cleared("/sleep?level=1", "/wake_up")),
            ("pause and clear", lambda: self._cleared("/pause?mode=wait&clear_cache=true", "/resume")),
            ("a reset without a report", self._reset_by_others),
            ("SIGKILL, and a restart on the same port", self._killed),
        ]

    async def _cold(self) -> Numbers:
        first = len(self.at.rows)
        await self.at.send(TokenPrompt(tokens("a", 100)))
        await self.at.wait_until_quiet()
        require(self.at.recorders[0].stored == 3, "three blocks were expected")
        return await self.at.expect_agreement(first)

    async def _repeat(self) -> Numbers:
        first, batches = len(self.at.rows), len(self.at.recorders[0].numbers)
        await self.at.send(TokenPrompt(tokens("a", 100)))
        await self.at.wait_until_quiet()
        require(self.at.rows[-1].reported == 96, "not found")
        require(len(self.at.recorders[0].numbers) == batches, "something was published")
        return await self.at.expect_agreement(first)

    async def _extension(self) -> Numbers:
        first = len(self.at.rows)
        await self.at.send(TokenPrompt(tokens("a", 196)))
        require(self.at.rows[-1].reported == 96, "its beginning was not found")
        return await self.at.expect_agreement(first)

    async def _exact(self) -> Numbers:
        first, recorder = len(self.at.rows), self.at.recorders[0]
        for _ in range(3):
            await self.at.send(TokenPrompt(tokens("a", 96)))
            require(self.at.rows[-1].reported == 64, "not all but the last block")
        await self.at.wait_until_quiet()
        twice = recorder.copies - recorder.stored
        require(twice >= 1, "no block lies there twice")
        return await self.at.expect_agreement(first, {"copies_beside_the_first": twice})

    async def _decode(self) -> Numbers:
        first = len(self.at.rows)
        prompt = TokenPrompt(tokens("talk", 50), output=40)
        for turn in range(4):
            answer = await self.at.send(prompt)
            prompt = prompt.continued(answer.tokens, tokens(("turn", turn), 20))
        return await self.at.expect_agreement(first, {"turns": 4})

    async def _chunks(self) -> Numbers:
        first, seen = len(self.at.rows), len(self.at.recorders[0].numbers)
        await self.at.send(TokenPrompt(tokens("long", 3_900)))
        await self.at.wait_until_quiet()
        return await self.at.expect_agreement(
            first, {"batches_of_the_prompt": len(self.at.recorders[0].numbers) - seen}
        )

    async def _salts(self) -> Numbers:
        first = len(self.at.rows)
        for salt in ("tenant-7", "tenant-8", None):
            for count in (100, 161, 100):
                await self.at.send(TokenPrompt(tokens("a", count), salt=salt))
        return await self.at.expect_agreement(first)

    async def _same_at_once(self) -> Numbers:
        first = len(self.at.rows)
        prompt = TokenPrompt(tokens("crowd", 150), output=20, more=(("n", 2), ("temperature", 1.0), ("seed", 1)))
        await self.at.wait_until_quiet()
        for _ in range(2):
            await asyncio.gather(*(send_prompt(self.at.client, MODEL, prompt) for _ in range(4)))
        await self.at.send(replace(prompt, output=1, more=()))
        return await self.at.expect_agreement(first)

    async def _stored_again(self) -> Numbers:
        """Such a request looks nothing up, so nothing is predicted of it; but its blocks lie there
        twice afterwards."""
        first, recorder = len(self.at.rows), self.at.recorders[0]
        before = recorder.copies - recorder.stored
        prompt = TokenPrompt(tokens("a", 100), more=(("prompt_logprobs", 1),))
        answer = await send_prompt(self.at.client, MODEL, prompt)
        await self.at.wait_until_quiet()
        twice = recorder.copies - recorder.stored - before
        return await self.at.expect_agreement(first, {"reported": answer.cached, "copies_beside_the_first": twice})

    async def _left(self) -> Numbers:
        first = len(self.at.rows)
        for number in range(4):
            prompt = TokenPrompt(tokens(("left", number), 90), output=400, more=(("stream", True),))
            with contextlib.suppress(httpx.HTTPError):
                async with self.at.client.stream("POST", "/v1/completions", json=prompt.body(MODEL)) as answer:
                    lines = answer.aiter_lines()
                    for _ in range(80):
                        await anext(lines)
            await self.at.send(replace(prompt, output=1, more=()))
        return await self.at.expect_agreement(first)

    async def _lora(self) -> Numbers:
        first = len(self.at.rows)
        await self._load("one", self._adapters[0])
        await self._load("two", self._adapters[1])
        for adapter in ("one", "two", None):
            for salt in (None, "tenant-8"):
                for count in (100, 161):
                    await self.at.send(TokenPrompt(tokens("lora", count), adapter=adapter, salt=salt))
        return await self.at.expect_agreement(first)

    async def _load(self, name: str, place: str) -> None:
        if name in self.at.loaded:
            await self.at.post("/v1/unload_lora_adapter", {"lora_name": name})
        self.at.loaded[name] = place
        await self.at.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": place})
        self.at.record_note("loaded", name, Path(place).name)

    async def _reloaded(self) -> Numbers:
        """Reloads an adapter elsewhere, back, and elsewhere again.

        The first event of a load drops the blocks of the load before. What the first path left is
        missed when it is loaded again, and the index says so until a clear.
        """
        first, missing = len(self.at.rows), []
        for turn, place in enumerate((1, 0, 1)):
            await self._load("one", self._adapters[place])
            await self.at.send(TokenPrompt(tokens(("lora", turn), 100), adapter="one"), keep=False)
            await self.at.wait_until_quiet()
            for name, index in self.at.indexes.items():
                await until(lambda: not self.at.compare(index)["ghosts"], REPORT_SECONDS)  # noqa: B023
                numbers = self.at.compare(index)
                require(not numbers["ghosts"], f"{name} has blocks of an earlier load", numbers)
                unsaid = numbers["missing"] and self.at.is_complete(index)
                require(not unsaid, f"{name} misses blocks and says that it is complete", numbers)
                missing.append(numbers["missing"])
        await self.at.post("/reset_prefix_cache")
        untold = self.at.record_cleared()
        await self.at.send(TokenPrompt(tokens("lora", 161), adapter="one"), excused=untold)
        return await self.at.expect_agreement(first, {"missing_after_loads": missing})

    async def _in_peace(self, seed: str) -> Numbers:
        first = len(self.at.rows)
        for prompt in mixed_prompts(MIXED, seed, step=LONG if seed == "large" else SHORT):
            await self.at.send(prompt, keep=False)
        return await self.at.expect_agreement(first, again=False)

    async def _late(self) -> Numbers:
        """Starts other indexes now: they have no missing block, and all blocks of the base model.

        The paths of an adapter's earlier loads are unknown. An index may lack those, but then it is
        incomplete until a clear.
        """
        late = self._made("late")
        numbers: Numbers = {"replayed_batches": len(self.at.recorders[0].numbers), "known_prompts": len(self.at.known)}
        try:
            for name, index in late.items():
                began = time.monotonic()
                await index.follow(self.at.sources)
                told = await until(lambda: self._has_all_events(index))  # noqa: B023
                require(told, f"{name}: {self._says(index)}", numbers)
                numbers[name] = {"told_after_seconds": round(time.monotonic() - began, 3)}
            await self.at.wait_until_quiet()
            for name, index in late.items():
                await until(lambda: not self._wrong(index), REPORT_SECONDS)  # noqa: B023
                numbers[name] |= {**self.at.compare(index), "says": self._says(index), "wrong": self._wrong(index)}
                require(not numbers[name]["wrong"], f"{name} predicts something else", numbers)
                require(numbers[name]["ghosts"] == 0, f"{name} holds what is not there", numbers)
                unsaid = numbers[name]["missing"] and self.at.is_complete(index)
                require(not unsaid, f"{name} misses blocks and says that it is complete", numbers)
            await self.at.post("/reset_prefix_cache")
            self.at.record_cleared()
            for count in (100, 196):
                await send_prompt(self.at.client, MODEL, TokenPrompt(tokens("a", count)))
            return await self.at.equal(numbers, {**late, **self.at.indexes})
        finally:
            for index in late.values():
                await index.close()

    def _says(self, index: RedisIndex) -> str:
        return completeness(index.mirror(), self.at.sources[0].instance)[1]

    def _has_all_events(self, index: RedisIndex) -> bool:
        """Returns whether the index received everything.

        A replay may leave doubts about adapters.
        """
        return self.at.is_complete(index) or self._says(index).startswith("the source of an earlier load")

    def _wrong(self, index: RedisIndex) -> list[list[object]]:
        """Prompts of which it says something else than is there: of the base model anything, of
        adapters more than is there."""
        found: list[list[object]] = []
        for one in self.at.known:
            said, there = self.at.predict(one, index), self.at.reference(one)
            if said > there or (said != there and (one.adapter is None or self.at.is_complete(index))):
                found.append([one.adapter, len(one.tokens), said, there])
        return found

    # Clears and deaths
    # -------------------------------------------------------------------------------------------------

    async def _cleared(self, path: str, then: str | None = None) -> Numbers:
        """Fairlead asks for it; the engine only says so with its next step."""
        first = len(self.at.rows)
        await self.at.send(TokenPrompt(tokens("a", 100)))
        await self.at.wait_until_quiet()
        before, announced = self.at.recorders[0].stored, self.at.recorders[0].clears
        answer = (await self.at.post(path)).text
        untold = self.at.record_cleared()
        if then is not None:
            await self.at.post(then)
        await self.at.send(TokenPrompt(tokens("a", 100)), excused=untold)
        await self.at.send(TokenPrompt(tokens("a", 196)))
        more = {"answer": answer, "blocks_before": before}
        require(self.at.recorders[0].clears > announced, "the engine has not said so itself", more)
        return await self.at.expect_agreement(first, more)

    async def _reset_by_others(self) -> Numbers:
        """Checks a reset that no event reports: the prediction of the next request is wrong, and
        all later ones are right."""
        first = len(self.at.rows)
        await self.at.send(TokenPrompt(tokens("a", 100)))
        await self.at.wait_until_quiet()
        await self.at.post("/reset_prefix_cache")
        row, _ = await self.at.ask_and_compare(TokenPrompt(tokens("a", 100)))
        require(set(row.predicted.values()) == {96} and not row.reported, f"{row} was not expected")
        return await self.at.expect_agreement(first, {"wrong_until_the_engine_said_so": 1})

    async def _killed(self) -> Numbers:
        """Nothing says goodbye; the new process begins with 0, under the same address."""
        first = len(self.at.rows)
        await self.at.wait_until_quiet()
        before, began = self.at.recorders[0].stored, time.monotonic()
        self.at.engine.kill()
        self.at.record_note("killed")
        for recorder in self.at.recorders:
            recorder.restarted()
        self.at.loaded.clear()
        unsure: Numbers = {}
        for name, index in self.at.indexes.items():
            noticed = await until(lambda: not self.at.is_complete(index))  # noqa: B023
            unsure[name] = round(time.monotonic() - began, 3) if noticed else None
        self.at.known = dict.fromkeys(one for one in self.at.known if one.adapter is None)
        await self.at.start()
        more = {"blocks_before": before, "unsure_after_seconds": unsure}
        require(None not in unsure.values(), "an index has not noticed that the engine is gone", more)
        for prompt in list(self.at.known)[:6]:
            await self.at.send(prompt)
        require(self.at.rows[first].reported == 0, "the engine is not a new one", more)
        return await self.at.expect_agreement(first, more)

    # The small engine
    # --------------------------------------------------------------------------------------------------

    def _small(self) -> Scenario:
        return [
            ("eviction", self._evicted),
            ("preemption", self._preempted),
            (f"{MIXED} mixed prompts, one at a time, 40 blocks", lambda: self._in_peace("small")),
            ("8 at once with eviction", lambda: under_eviction(self.at, 8)),
            ("who joins later than the buffer reaches", self._too_late),
        ]

    async def _evicted(self) -> Numbers:
        """The end of the oldest prompt goes first; copies of a block are removed one by one."""
        first = len(self.at.rows)
        for number in range(3):
            await self.at.send(TokenPrompt(tokens(("big", number), 480)))
        await self.at.send(TokenPrompt(tokens(("big", 0), 480)))
        partly = self.at.rows[-1].reported
        require(0 < partly < 448, f"{partly} tokens were found of a prompt that was partly evicted")
        for _ in range(3):
            await self.at.send(TokenPrompt(tokens("exact", 128)), keep=False)
        for number in range(4):
            await self.at.send(TokenPrompt(tokens(("other", number), 300)), keep=False)
            await self.at.send(TokenPrompt(tokens("exact", 128)), keep=False)
        return await self.at.expect_agreement(first, {"partly_evicted_reported": partly})

    async def _preempted(self) -> Numbers:
        """Six answers that do not fit together: some are thrown out and computed again."""
        first = len(self.at.rows)
        before = await asyncio.to_thread(self.at.engine.metric, "vllm:num_preemptions_total")
        prompts = [TokenPrompt(tokens(("preempted", number), 100), output=400) for number in range(6)]
        await asyncio.gather(*(send_prompt(self.at.client, MODEL, prompt) for prompt in prompts))
        after = await asyncio.to_thread(self.at.engine.metric, "vllm:num_preemptions_total")
        require(after > before, "nothing was preempted")
        for prompt in prompts:
            await self.at.send(replace(prompt, output=1))
        return await self.at.expect_agreement(first, {"preemptions": round(after - before)})

    async def _too_late(self) -> Numbers:
        """Checks that missing events make the index incomplete, never wrong, and that a clear
        completes it."""
        late = self._made("too-late")
        numbers: Numbers = {"batches": len(self.at.recorders[0].numbers), "buffer": SHORT_BUFFER}
        instance = self.at.sources[0].instance
        try:
            for name, index in late.items():
                await index.follow(self.at.sources)
                await until(lambda: bool(content(index.mirror(), instance, StorageTier.GPU)))  # noqa: B023
                await self.at.wait_until_quiet()
                complete, reason = completeness(index.mirror(), instance)
                found = self.at.compare(index)
                numbers[name] = {**found, "says": reason}
                require(not complete, f"{name} says that it is complete", numbers)
                require(found["ghosts"] == 0, f"{name} holds what is not there", numbers)
            await self.at.post("/reset_prefix_cache")
            self.at.record_cleared()
            for count in (100, 196):
                await send_prompt(self.at.client, MODEL, TokenPrompt(tokens("a", count)))
            return await self.at.equal(numbers, late)
        finally:
            for index in late.values():
                await index.close()

    # Two ranks
    # ---------------------------------------------------------------------------------------------------------

    def _ranks(self) -> Scenario:
        return [("each rank has its own", self._own_of_each), ("both ranks at once", self._both)]

    async def _own_of_each(self) -> Numbers:
        first = len(self.at.rows)
        for rank in (0, 1, 0, 1):
            await self.at.send(TokenPrompt(tokens("shared", 100), rank=rank))
            await self.at.send(TokenPrompt(tokens(("only", rank), 200), rank=rank))
        wanted = [0, 0, 0, 0, 96, 192, 96, 192]
        require([row.reported for row in self.at.rows[first:]] == wanted, "ranks share something")
        return await self.at.expect_agreement(first)

    async def _both(self) -> Numbers:
        first = len(self.at.rows)
        prompts = [TokenPrompt(tokens(("both", number % 12), 60 + 10 * number), output=20) for number in range(48)]
        await asyncio.gather(*(send_prompt(self.at.client, MODEL, prompt) for prompt in prompts))
        for number in (0, 20, 40):
            for rank in (0, 1):
                await self.at.send(replace(prompts[number], output=1, rank=rank))
        return await self.at.expect_agreement(first)
