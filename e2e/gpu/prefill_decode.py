"""A prefill engine and a decode engine that hand KV over by NIXL, behind a gateway.

The right answer is that of the decode engine alone, whose cache is emptied after it. The model is
small, and its weights are wide: answers depend on every token of the prompt.
"""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Final

from e2e.gpu.control_plane import ControlPlane
from e2e.gpu.engines import COMPARED_SHAPE, MODEL, START_SECONDS, EngineGroup, EngineSettings
from e2e.vllm.client import openai_client, send_prompts
from e2e.vllm.engine.kv_connectors import nixl
from e2e.vllm.report import Numbers, VllmReport, require, spread
from e2e.vllm.text_prompts import make_prompts
from e2e.vllm.tie_tolerance import MAX_TIE_NATS, logprob_gap

PROMPTS: Final = 24
_LEAST_TOKENS: Final = 1_300
"""Shorter prompts stay on one engine."""
_ROLES: Final = ("kv_producer", "kv_consumer")


class PrefillDecode:
    """The part `handoff`, with two engines of its own."""

    def __init__(self, settings: EngineSettings, report: VllmReport, folder: Path) -> None:
        self._settings = settings
        self._report = report
        self._folder = folder

    async def run(self) -> None:
        """Starts both engines and sends prompts through a gateway."""
        with EngineGroup(self._settings, self._folder, count=2, shape=COMPARED_SHAPE) as group:
            await asyncio.to_thread(self._start, group)
            with ControlPlane(group, self._folder / "handoff") as plane:
                plane.transfer = "nixl"
                await self._report.check(
                    "prefill on one engine, decode on another", lambda: self._compare(group, plane)
                )

    def _start(self, group: EngineGroup) -> None:
        connector = nixl()
        for number, role in enumerate(_ROLES):
            environment, _ = connector.environment()
            del environment["UCX_TLS"]  # the best transport between the accelerators
            group.start(number, "--kv-transfer-config", connector.engine_arguments(role), environment=environment)
        for engine in group.engines.values():
            engine.await_health(START_SECONDS)

    async def _compare(self, group: EngineGroup, plane: ControlPlane) -> Numbers:
        decode = group.engines[1]
        prompts = await make_prompts(decode.url, MODEL, count=PROMPTS, least=_LEAST_TOKENS)
        gateway = plane.start_gateway("dual-hash")
        async with openai_client(decode.url) as direct, openai_client(gateway.url) as through:
            alone = await send_prompts(direct, prompts)
            (await direct.post("/reset_prefix_cache")).raise_for_status()
            before = decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
            handed = await send_prompts(through, prompts, at_once=2)
            after = decode.metric("vllm:prompt_tokens_by_source_total", source="external_kv_transfer")
            gaps = [
                await logprob_gap(direct, prompt, want.tokens, got.tokens)
                for prompt, want, got in zip(prompts, alone, handed, strict=True)
            ]
        reasons = [str(gateway.decision(one.decision)["choices"][-1]["reason"]) for one in handed if one.decision]
        numbers: Numbers = {
            "prompts": len(prompts),
            "handed_over": sum(reason.startswith("prefill on ") for reason in reasons),
            "equal": sum(want.tokens == got.tokens for want, got in zip(alone, handed, strict=True)),
            "wrong": sum(gap > MAX_TIE_NATS for gap in gaps),
            "failed": sum(not answer.ended for answer in handed),
            "tokens_transferred": round(after - before),
            "alone_seconds": spread([answer.seconds for answer in alone]),
            "gateway_seconds": spread([answer.seconds for answer in handed]),
            "reasons": dict(Counter(reason.split(" on ")[0] for reason in reasons)),
            "first_errors": [answer.error for answer in handed if answer.error][:3],
        }
        require(not numbers["failed"], "requests failed", numbers)
        require(not numbers["wrong"], "not every answer is the one of one engine alone", numbers)
        require(numbers["handed_over"] > len(prompts) / 2, "too few were handed over", numbers)
        return numbers
