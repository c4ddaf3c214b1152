"""KV events of SGLang, the index that is made of them, and what the engine reports as cached.

An indexer process reads the events into a Redis, as in `e2e/vllm/observation/observed_engine.py`.
Prompts are token ids that go to the engine itself, one at a time. Each is sent once nothing has
come for a while, and the index must predict exactly what the engine then reports.
"""

import asyncio
import json
from collections.abc import Iterable

from e2e.sglang.engine.sglang_stage import KIND, MODEL, SglangStage, fleet
from e2e.sglang.scenarios.api import body_of
from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import EngineProcess, GatewayProcess
from e2e.vllm.observation.observed_engine import (
    HOST,
    MODEL_KEY,
    SECRET,
    EventSource,
    RedisIndex,
    TokenPrompt,
    blocks,
    completeness,
    content,
    predict_cached,
    send_prompt,
    tokens,
    until,
    wait_until_quiet,
)
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.scenarios.index_scenarios import mixed_prompts
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_testing.processes import unused_port

NAME = "index"
PAGE_TOKENS = 16
MIXED = 100
STEP = 64
SALTED = 10
CONVERSATIONS, TURNS = 4, 4
GATEWAY_PROMPTS = 8
_INSTANCE = "index"
_READ_SECONDS = 30.0
_EVENT_SECONDS = 0.5
"""Until the gateway has read the events of an answer."""


class KvIndex:
    """One engine, one index, and all checks."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._index = RedisIndex(stage.folder / "index")
        self._port, self._events, self._replay = unused_port(), unused_port(), unused_port()
        self._starts = 0

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        self._engine = self._start()
        endpoints = {"kvEvents": f"tcp://{HOST}:{self._events}", "kvReplay": f"tcp://{HOST}:{self._replay}"}
        source = EventSource(_INSTANCE, self._engine.url, endpoints["kvEvents"], None, {"engine": KIND, **endpoints})
        try:
            await asyncio.to_thread(self._engine.await_health)
            await self._index.follow([source])
            require(await until(lambda: self._index.mirror() is not None), "the index did not begin")
            check = self._report.check
            mixed = [prompt for prompt in mixed_prompts(2 * MIXED, "sglang", step=STEP) if prompt.salt is None][:MIXED]
            await check(f"{MIXED} mixed prompts, in a cache that evicts", lambda: self._compare(mixed))
            await check(f"{CONVERSATIONS} conversations of {TURNS} turns", self._talk)
            await check("prompts with a salt", self._salt)
            await check("a flush of the cache", self._flush)
            await check("SIGKILL, and a start at the same ports", self._restart)
            instance = {"id": _INSTANCE, "url": self._engine.url, "engine": KIND, "role": "Serve", **endpoints}
            gateway = await asyncio.to_thread(self._stage.gateway, fleet(instances=[instance]))
            await check("predictions of the gateway", lambda: self._through(gateway))
        finally:
            await self._index.close()
            self._engine.kill()

    def _start(self) -> EngineProcess:
        self._starts += 1
        config = {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self._events}",
            "replay_endpoint": f"tcp://*:{self._replay}",
        }
        options = ("--page-size", str(PAGE_TOKENS), "--kv-events-config", json.dumps(config))
        return self._stage.engine(f"index-{self._starts}", *options, port=self._port)

    async def _rows(self, prompts: Iterable[TokenPrompt]) -> list[tuple[int, int, int]]:
        """Sends prompts; returns tokens of each, predicted and reported as cached."""
        rows = []
        async with openai_client(self._engine.url) as client:
            for prompt in prompts:
                await wait_until_quiet(self._index.stamp)
                chain = prompt.chain(MODEL_KEY, PAGE_TOKENS, SECRET)
                known = blocks(self._index.mirror(), _INSTANCE, chain, StorageTier.GPU)
                predicted = predict_cached(known, prompt, PAGE_TOKENS)
                answer = await send_prompt(client, MODEL, prompt)
                rows.append((len(prompt.tokens), predicted, answer.cached))
        return rows

    async def _compare(self, prompts: Iterable[TokenPrompt]) -> Numbers:
        return self._judge(await self._rows(prompts))

    def _judge(self, rows: list[tuple[int, int, int]]) -> Numbers:
        wrong = [row for row in rows if row[1] != row[2]]
        numbers: Numbers = {
            "requests": len(rows),
            "prompt_tokens": sum(row[0] for row in rows),
            "predicted": sum(row[1] for row in rows),
            "reported": sum(row[2] for row in rows),
            "wrong": wrong[:10],
            "complete": completeness(self._index.mirror(), _INSTANCE)[0],
        }
        require(not wrong, f"{len(wrong)} predictions were wrong", numbers)
        require(numbers["reported"], "nothing was cached, so nothing was shown", numbers)
        return numbers

    async def _talk(self) -> Numbers:
        """Conversations: each turn begins with the prompt and the answer before it."""
        rows = []
        async with openai_client(self._engine.url) as client:
            for number in range(CONVERSATIONS):
                prompt = TokenPrompt(tokens(("talk", number), 150), 20, more=(("return_token_ids", True),))
                for turn in range(TURNS):
                    rows += await self._rows([prompt])
                    said = (await send_prompt(client, MODEL, prompt)).tokens
                    require(said, "the engine sends no token ids")
                    prompt = prompt.continued(said, tokens(("turn", number, turn), 40))
        return self._judge(rows)

    async def _salt(self) -> Numbers:
        """Prompts under two salts and without one: the engine must keep them apart.

        The index does not read the salts of SGLang's events. It counts salted blocks as plain ones,
        and the numbers have what that costs.
        """
        prompts = [
            TokenPrompt(tokens(("salt", number), 100), salt=salt)
            for number in range(SALTED)
            for salt in ("tenant-1", "tenant-1", "tenant-2", None)
        ]
        rows = await self._rows(prompts)
        numbers: Numbers = {
            "requests": len(rows),
            "reported_again": sum(row[2] for row in rows[1::4]),
            "reported_under_another_salt": sum(row[2] for row in (*rows[2::4], *rows[3::4])),
            "missed_by_the_index": sum(max(0, row[2] - row[1]) for row in rows),
            "ghosts_in_the_index": sum(max(0, row[1] - row[2]) for row in rows),
        }
        require(not numbers["reported_under_another_salt"], "salts share a cache", numbers)
        require(numbers["reported_again"], "nothing was cached under a salt", numbers)
        return numbers

    async def _flush(self) -> Numbers:
        async with openai_client(self._engine.url) as client:
            (await client.post("/flush_cache")).raise_for_status()
        return await self._await_empty()

    async def _restart(self) -> Numbers:
        prompts = [TokenPrompt(tokens(("restart", number), 200)) for number in range(4)]
        await self._rows(prompts)
        await wait_until_quiet(self._index.stamp)
        before = len(content(self._index.mirror(), _INSTANCE, StorageTier.GPU))
        await asyncio.to_thread(self._engine.kill)
        self._engine = self._start()
        await asyncio.to_thread(self._engine.await_health)
        numbers = {"blocks_before": before, **await self._compare([*prompts, *prompts])}
        require(before, "nothing was known before", numbers)
        return numbers

    async def _await_empty(self) -> Numbers:
        def count() -> int:
            return len(content(self._index.mirror(), _INSTANCE, StorageTier.GPU))

        before = count()
        emptied = await until(lambda: count() == 0, _READ_SECONDS)
        numbers = {"blocks_before": before, "blocks_after": count()}
        require(emptied and before, "the index does not follow", numbers)
        return numbers

    async def _through(self, gateway: GatewayProcess) -> Numbers:
        """Sends chats twice through the gateway: its prediction, and what the engine reports."""
        predicted = reported = 0
        async with openai_client(gateway.url) as client:
            for number in range(GATEWAY_PROMPTS):
                text = " ".join(f"function_{number}_{at}(text)" for at in range(30))
                for _ in range(2):
                    answer = await client.post("/v1/chat/completions", json=body_of("/v1/chat/completions", text))
                    answer.raise_for_status()
                    await asyncio.sleep(_EVENT_SECONDS)
                decision = await asyncio.to_thread(gateway.decision, answer.headers["x-request-id"])
                predicted += decision["outcome"]["predicted_cached_tokens"] or 0
                reported += decision["outcome"]["cached_tokens"] or 0
        numbers: Numbers = {"prompts": GATEWAY_PROMPTS, "predicted": predicted, "reported": reported}
        require(0.7 * reported <= predicted <= reported, "not what the engine reports", numbers)
        require(reported, "nothing was cached, so nothing was shown", numbers)
        return numbers
