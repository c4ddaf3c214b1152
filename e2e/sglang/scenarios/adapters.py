"""LoRA adapters of SGLang that a gateway loads into an engine, more than it has slots for.

Random weights make each adapter answer the same prompt in another way, so an answer shows which
adapter gave it.
"""

import asyncio
import subprocess
from collections import Counter

import httpx

from e2e.sglang.engine.sglang_stage import MODEL, UNPINNED, SglangStage, fleet
from e2e.sglang.scenarios.api import body_of, read_stream, streamed_answer
from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import EngineProcess, GatewayProcess
from e2e.vllm.engine.installation import HERE as MODEL_MAKERS
from e2e.vllm.report import Numbers, VllmReport, require

NAME = "adapters"
ADAPTERS, SLOTS, ROUNDS = 6, 2, 3
_MAKER = MODEL_MAKERS / "tiny_adapters.py"
_PATH = "/v1/chat/completions"
_OPTIONS = (
    *("--enable-lora", "--lora-backend", "torch_native", "--max-loras-per-batch", str(SLOTS + 1)),
    *("--max-lora-rank", "8", "--lora-target-modules", "all", "--dtype", "float32"),
)


class Adapters:
    """One engine, its adapters, a gateway, and all checks."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report
        self._sources = {f"lora-{number}": stage.folder / "adapters" / str(number) for number in range(ADAPTERS)}
        self._expected: dict[str, str] = {}

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        folders = [str(folder) for folder in self._sources.values()]
        command = [str(self._stage.installed.engine_python), str(_MAKER), str(self._stage.installed.model), *folders]
        await asyncio.to_thread(subprocess.run, command, check=True)
        engine = self._stage.engine("adapters", *_OPTIONS, environment={UNPINNED: "1"})
        try:
            await asyncio.to_thread(engine.await_health)
            if await self._report.check("each adapter answers in its own way", lambda: self._learn(engine)):
                adapters = [{"name": name, "source": str(folder)} for name, folder in self._sources.items()]
                model = fleet(engine, adapterSlots=SLOTS, adapters=adapters)
                gateway = await asyncio.to_thread(self._stage.gateway, model)
                name = f"{ADAPTERS} adapters on {SLOTS} slots, loaded by the gateway"
                await self._report.check(name, lambda: self._load(gateway))
        finally:
            engine.kill()

    async def _learn(self, engine: EngineProcess) -> Numbers:
        async with openai_client(engine.url) as client:
            self._expected[MODEL] = await _answer(client, MODEL)
            for name, folder in self._sources.items():
                load = {"lora_name": name, "lora_path": str(folder)}
                (await client.post("/load_lora_adapter", json=load)).raise_for_status()
                self._expected[name] = await _answer(client, f"{MODEL}:{name}")
                (await client.post("/unload_lora_adapter", json={"lora_name": name})).raise_for_status()
        alike = [text for text, count in Counter(self._expected.values()).items() if count > 1]
        require(not alike, f"adapters answer alike: {alike[:2]}")
        return {"adapters": ADAPTERS}

    async def _load(self, gateway: GatewayProcess) -> Numbers:
        wrong = []
        names = [*self._sources, MODEL] * ROUNDS
        async with openai_client(gateway.url) as client:
            for name in names:
                if (text := await _answer(client, name)) != self._expected[name]:
                    wrong.append(f"{name}: {text!r} and not {self._expected[name]!r}")
        numbers: Numbers = {"requests": len(names), "wrong": len(wrong), "first": wrong[:2]}
        require(not wrong, "answers came from another adapter", numbers)
        return numbers


async def _answer(client: httpx.AsyncClient, model: str) -> str:
    body = body_of(_PATH, "Why does the sea look blue?") | {"model": model, "ignore_eos": True}
    return streamed_answer(await read_stream(client, _PATH, body))[0]
