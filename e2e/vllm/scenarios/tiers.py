"""KV in the CPU memory of real engines: whether its time is foreseen, and what it wins.

The tier is vLLM's own offloading, as in ``index-tiers``. A gateway follows the engines' events.

- Foresight: prompts are sent cold, at once again, and again after others took their place in the
  device. The gateway learns from some rounds; then its predictions are compared with what came.
- Questions to databases: a prompt is the schema of one of many databases, and a question. All
  schemas have three times the tokens of the devices' memory. Three arms answer the same questions.
  One gateway knows what lies in which tier and what a load takes; one has no index. The third arm
  is engines without the tier behind the preset ``least-request``.

The tiny model computes a token in 40 microseconds, so that loads win less than they do on GPUs.
"""

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any, Final

import httpx

from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import (
    BLOCK_TOKENS,
    EngineProcess,
    EngineStage,
    GatewayProcess,
    cpu_tier,
    fetch,
    fleet_of,
)
from e2e.vllm.observation.observed_engine import (
    MODEL,
    EngineShape,
    TokenPrompt,
    run_concurrently,
    send_prompt,
    tokens,
)
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead_testing.waiting import wait_until

NAME: Final = "tiers"
DEVICE_BLOCKS: Final = 160
TIER_BYTES: Final = 4_096 * 32 * 1_024
"""4,096 blocks of the tiny model."""
LEARNING_ROUNDS: Final = 4
PROMPTS: Final = 30
MAX_ERROR: Final = 0.15
ENGINES: Final = 2
WORKING_SET: Final = 3.0
QUESTIONS: Final = 400
WARM_UP: Final = 80
CLIENTS: Final = 8
SCHEMA_TOKENS: Final = (900, 2_100)
QUESTION_TOKENS: Final = 64
ANSWER_TOKENS: Final = 16
_LEARNED_SECONDS: Final = 60.0
_SECRET: Final = {"FAIRLEAD_HASH_SECRET": "a secret of the test"}


@dataclass(frozen=True, slots=True)
class Foreseen:
    """One answer.

    - cached: tokens, as the engine reports them.
    - predicted, measured: seconds to the first token.
    - load: the part of the prediction that is a load from the tier.
    """

    cached: int
    predicted: float
    measured: float
    load: float


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration of gateway and engines."""

    name: str
    preset: str
    has_tier: bool
    links: str


ARMS: Final = (
    Arm("no sharing", "least-request", has_tier=False, links="off"),
    Arm("without the index", "dual-hash", has_tier=True, links="off"),
    Arm("with prices", "dual-hash", has_tier=True, links="engine"),
)


class Tiers:
    """Both checks."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._tier = cpu_tier(stage.folder / "tiers", TIER_BYTES)

    async def run(self) -> None:
        await self._report.check("first token by tier, foreseen and measured", self._foresight)
        await self._report.check("questions to databases", self._questions)

    def _start(self, name: str, core: int, *, has_tier: bool = True) -> EngineProcess:
        options: tuple[str, ...] = ("--num-gpu-blocks-override", str(DEVICE_BLOCKS))
        environment: Mapping[str, str] = {}
        if has_tier:
            options += ("--kv-transfer-config", self._tier.engine_arguments("kv_both"))
            environment = {"PYTHONPATH": str(self._tier.path)}
        return EngineShape(name, options, core=core, environment=environment).start(self._stage)

    # Foresight --------------------------------------------------------------------------------------------------------

    async def _foresight(self) -> Numbers:
        engine = self._start("foreseen", 0)
        try:
            await asyncio.to_thread(engine.await_health)
            gateway = self._stage.gateway(_fleet([engine], "dual-hash"), environment=_SECRET)
            async with openai_client(gateway.url) as client:
                for number in range(LEARNING_ROUNDS):
                    await self._rounds(client, gateway, f"learning {number}")
                await wait_until(lambda: bool((_profile(gateway) or {}).get("learned")), _LEARNED_SECONDS)
                rounds = await self._rounds(client, gateway, "measured")
            profile = _profile(gateway)
        finally:
            engine.kill()
        numbers: Numbers = {"profile": profile}
        for name, answers in rounds.items():
            predicted, measured = fmean([one.predicted for one in answers]), fmean([one.measured for one in answers])
            numbers[name] = {
                "prompts": len(answers),
                "cached_tokens": round(fmean([one.cached for one in answers])),
                "measured_seconds": round(measured, 4),
                "predicted_seconds": round(predicted, 4),
                "of_which_load": round(fmean([one.load for one in answers]), 4),
                "predicted_by_measured": round(predicted / measured, 3),
            }
        require(all(one.cached == 0 for one in rounds["computed"]), "a cold prompt was cached", numbers)
        require(all(one.cached and not one.load for one in rounds["device"]), "not from the device alone", numbers)
        require(all(one.cached and one.load for one in rounds["tier"]), "not from the tier", numbers)
        wrong = [name for name in rounds if abs(numbers[name]["predicted_by_measured"] - 1.0) > MAX_ERROR]
        require(not wrong, f"foreseen wrongly: {', '.join(wrong)}", numbers)
        return numbers

    async def _rounds(self, client: httpx.AsyncClient, gateway: GatewayProcess, seed: str) -> dict[str, list[Foreseen]]:
        """Sends each prompt cold and at once again, and all in the same way a second time."""
        draw = Random(seed)
        prompts = [TokenPrompt(tokens((seed, number), draw.randint(800, 3_000))) for number in range(PROMPTS)]
        found: dict[str, list[Foreseen]] = {"computed": [], "device": [], "tier": []}
        for first, prompt in itertools.product(("computed", "tier"), prompts):
            for name in (first, "device"):
                found[name].append(await self._foreseen(client, gateway, prompt))
        return found

    async def _foreseen(self, client: httpx.AsyncClient, gateway: GatewayProcess, prompt: TokenPrompt) -> Foreseen:
        body = prompt.body(MODEL) | {"stream": True}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            request = answer.raise_for_status().headers["x-fairlead-decision"]
            await answer.aread()
        await asyncio.sleep(0.1)  # the events of its blocks
        decided = await asyncio.to_thread(gateway.decision, request)
        inputs, outcome = decided["choices"][-1]["candidates"][0]["inputs"], decided["outcome"]

        def value(name: str) -> float:
            return float((inputs.get(name) or {}).get("value") or 0.0)

        return Foreseen(
            outcome["cached_tokens"], value("predicted_ttft_seconds"), outcome["ttft_seconds"], value("load_seconds")
        )

    # Questions --------------------------------------------------------------------------------------------------------

    async def _questions(self) -> Numbers:
        numbers: Numbers = {}
        for has_tier, arms in itertools.groupby(ARMS, lambda arm: arm.has_tier):
            engines = [self._start(f"questions-{has_tier}-{core}", core, has_tier=has_tier) for core in range(ENGINES)]
            try:
                for engine in engines:
                    await asyncio.to_thread(engine.await_health)
                for arm in arms:
                    numbers[arm.name] = await self._answer(arm, engines)
            finally:
                for engine in engines:
                    engine.kill()
        with_prices, without, plain = (numbers[arm.name] for arm in reversed(ARMS))
        for name, base in (("no sharing", plain), ("without the index", without)):
            numbers[f"with prices by {name}"] = {
                key: round(with_prices[key] / base[key], 3) for key in ("tokens_per_second", "mean_seconds")
            }
        return numbers

    async def _answer(self, arm: Arm, engines: Sequence[EngineProcess]) -> Numbers:
        async with httpx.AsyncClient(timeout=60.0) as client:
            for engine in engines:
                reset = "/reset_prefix_cache" + ("?reset_external=true" if arm.has_tier else "")
                (await client.post(engine.url + reset)).raise_for_status()
        gateway = self._stage.gateway(_fleet(engines, arm.preset), environment={**_SECRET, "FAIRLEAD_LINKS": arm.links})
        questions = iter(questions_to_databases())
        times: list[float] = []
        cached = asked = 0
        began = 0.0
        async with openai_client(gateway.url) as client:

            async def answer_some(_: int) -> None:
                nonlocal cached, asked, began
                for number, prompt in questions:
                    sent = time.monotonic()
                    if number == WARM_UP:
                        began = sent
                    answer = await send_prompt(client, MODEL, prompt)
                    if number >= WARM_UP:
                        times.append(time.monotonic() - sent)
                        asked += len(prompt.tokens) + len(answer.tokens)
                        cached += answer.cached

            await run_concurrently(CLIENTS, answer_some)
        seconds = time.monotonic() - began
        gateway.stop()
        return {
            "questions": len(times),
            "tokens_per_second": round(asked / seconds),
            "mean_seconds": round(fmean(times), 4),
            "cached_share": round(cached / asked, 4),
        }


def questions_to_databases() -> list[tuple[int, TokenPrompt]]:
    """Returns the questions in their order, equal for every arm."""
    draw = Random(NAME)
    schemas: list[tuple[int, ...]] = []
    room = WORKING_SET * ENGINES * DEVICE_BLOCKS * BLOCK_TOKENS
    while room > 0:
        schemas.append(tokens(("schema", len(schemas)), draw.randint(*SCHEMA_TOKENS)))
        room -= len(schemas[-1])
    return [
        (number, TokenPrompt((*draw.choice(schemas), *tokens(("question", number), QUESTION_TOKENS)), ANSWER_TOKENS))
        for number in range(QUESTIONS)
    ]


def _fleet(engines: Sequence[EngineProcess], preset: str) -> dict[str, Any]:
    model = fleet_of(MODEL, [(engine, "Serve") for engine in engines])
    return {"models": [model | {"routing": {"preset": preset}}]}


def _profile(gateway: GatewayProcess) -> dict[str, Any] | None:
    """Returns what the gateway has learned of the first engine; None before there is anything."""
    models = json.loads(fetch(f"{gateway.manage}/api/fleet"))["models"]
    found: dict[str, Any] | None = models[0]["instances"][0]["profile"]
    return found
