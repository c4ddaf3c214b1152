"""KV in the CPU memory of a real engine: whether its time is foreseen.

The tier is vLLM's own offloading, as in ``index-tiers``. A gateway follows the engine's events.
Prompts are sent cold, at once again, and again after others took their place in the device. The
gateway learns from some rounds; then its predictions are compared with what came.
"""

import asyncio
import itertools
import json
from dataclasses import dataclass
from random import Random
from statistics import fmean
from typing import Any, Final

import httpx

from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import (
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


class Tiers:
    """The engine, the gateway before it, and the check."""

    def __init__(self, stage: EngineStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._tier = cpu_tier(stage.folder / "tiers", TIER_BYTES)

    async def run(self) -> None:
        await self._report.check("first token by tier, foreseen and measured", self._foresight)

    async def _foresight(self) -> Numbers:
        transfer = ("--kv-transfer-config", self._tier.engine_arguments("kv_both"))
        options = ("--num-gpu-blocks-override", str(DEVICE_BLOCKS), *transfer)
        shape = EngineShape("foreseen", options, environment={"PYTHONPATH": str(self._tier.path)})
        engine = shape.start(self._stage)
        try:
            await asyncio.to_thread(engine.await_health)
            model = fleet_of(MODEL, [(engine, "Serve")]) | {"routing": {"preset": "dual-hash"}}
            gateway = self._stage.gateway({"models": [model]}, environment=_SECRET)
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


def _profile(gateway: GatewayProcess) -> dict[str, Any] | None:
    """Returns what the gateway has learned of the first engine; None before there is anything."""
    models = json.loads(fetch(f"{gateway.manage}/api/fleet"))["models"]
    found: dict[str, Any] | None = models[0]["instances"][0]["profile"]
    return found
