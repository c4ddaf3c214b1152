"""One engine of a fleet is killed under streams. The engine that takes its place sleeps, wakes and
loads an adapter.

A prefill engine and a decode engine that hand KV over by NIXL, behind a gateway.

The right answer is that of the decode engine alone, whose cache is emptied after it. The model is
small, and its weights are wide: answers depend on every token of the prompt.
"""

import asyncio
import json
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from e2e.gpu.control_plane import ControlPlane, compare_index
from e2e.gpu.engines import (
    COMPARED_SHAPE,
    MODEL,
    START_SECONDS,
    EngineGroup,
    EngineSettings,
    used_memory_bytes,
    write_adapter,
)
from e2e.vllm.client import (
    MAX_TIE_NATS,
    TextPrompt,
    logprob_gap,
    make_prompts,
    openai_client,
    send_prompt,
    send_prompts,
)
from e2e.vllm.engine.engine_processes import GatewayProcess, fetch, nixl
from e2e.vllm.report import Numbers, VllmReport, require, spread
from fairlead.engines.sleep_mode import sleep_client

STREAMS: Final = 48
STREAM_TOKENS: Final = 800
_KILL_AFTER_SECONDS: Final = 2.0
_VICTIM: Final = 0
_SLEEP_LEVEL: Final = 1
_SLOT_OPTIONS: Final = ("--enable-sleep-mode", "--enable-lora", "--max-loras", "2", "--max-lora-rank", "8")
_ADAPTER: Final = "gpu-adapter"
_POLL_SECONDS: Final = 0.2
_INDEX_CHATS: Final = 8
"""A multiple of the number of engines, so that a chat reaches the same one each time."""

PROMPTS: Final = 24
_LEAST_TOKENS: Final = 1_300
"""Shorter prompts stay on one engine."""
_ROLES: Final = ("kv_producer", "kv_consumer")


class EngineFaults:
    """The parts `kill`, `sleep` and `adapter`: one after another on the engines of a fleet."""

    def __init__(self, group: EngineGroup, plane: ControlPlane, report: VllmReport, folder: Path) -> None:
        self._group = group
        self._plane = plane
        self._report = report
        self._folder = folder

    async def kill(self) -> None:
        """Kills an engine under streams, and starts another in its place, with adapters and sleep
        mode.
        """
        gateway = self._plane.start_gateway("dual-hash")
        try:
            await self._report.check("SIGKILL of an engine under streams", lambda: self._kill_under_streams(gateway))
            await self._report.check("another engine in its place", lambda: self._replace(gateway))
        finally:
            await asyncio.to_thread(gateway.stop)

    async def sleep(self) -> None:
        """Puts the new engine to sleep while the others serve, and wakes it."""
        gateway = self._plane.start_gateway("dual-hash")
        try:
            await self._report.check("sleep and wake", lambda: self._sleep_and_wake(gateway))
            await self._report.check("index compared with the engines after it", self._probe_index)
        finally:
            await asyncio.to_thread(gateway.stop)

    async def adapter(self) -> None:
        """Serves a LoRA adapter on the new engine."""
        source = write_adapter(self._folder / "adapter", self._group.shape, seed=3)
        self._plane.adapters = [{"name": _ADAPTER, "source": str(source)}]
        fleet = self._plane.fleet("dual-hash")
        fleet["models"][0]["instances"] = fleet["models"][0]["instances"][_VICTIM : _VICTIM + 1]
        gateway = self._plane.start_gateway("dual-hash")
        try:
            gateway.serve(fleet)
            await self._report.check("a LoRA adapter", lambda: self._use_adapter(gateway))
        finally:
            self._plane.adapters = []
            await asyncio.to_thread(gateway.stop)

    async def _kill_under_streams(self, gateway: GatewayProcess) -> Numbers:
        prompts = [_stream(f"{number} " + " abc def ghi" * 400) for number in range(STREAMS)]
        victim = self._group.engines[_VICTIM]
        async with openai_client(gateway.url) as client:
            streams = [asyncio.create_task(send_prompt(client, prompt)) for prompt in prompts]
            await asyncio.sleep(_KILL_AFTER_SECONDS)
            running = round(await asyncio.to_thread(victim.running))
            await asyncio.to_thread(victim.kill)
            answers = await asyncio.gather(*streams)
        whole = [answer for answer in answers if answer.ended and answer.reported == STREAM_TOKENS]
        metrics = fetch(f"{gateway.manage}/metrics").decode().splitlines()
        numbers: Numbers = {
            "streams": STREAMS,
            "tokens_each": STREAM_TOKENS,
            "on_the_killed_engine": running,
            "whole": len(whole),
            "lost": STREAMS - len(whole),
            "seconds": spread([answer.seconds for answer in answers]),
            "continued": [line for line in metrics if line.startswith("fairlead_gateway_continued_total")],
            "first_lost": [
                f"{answer.status} {answer.reported} {answer.error}" for answer in answers if answer not in whole
            ][:5],
        }
        require(running, "the killed engine ran no stream, so nothing was shown", numbers)
        require(not numbers["lost"], "streams were lost", numbers)
        return numbers

    async def _replace(self, gateway: GatewayProcess) -> Numbers:
        engine = self._group.start(_VICTIM, *_SLOT_OPTIONS)
        await asyncio.to_thread(engine.await_health, START_SECONDS)
        began = time.monotonic()
        async with openai_client(gateway.url) as client:
            for number in range(600):
                answer = await send_prompt(client, _prompt(f"{number} who is there", 4))
                require(answer.ended, f"a request failed: {answer.status} {answer.error}")
                if await asyncio.to_thread(engine.metric, "vllm:request_success_total") > 0:
                    return {"start_seconds": engine.started_seconds, "used_after_seconds": _since(began)}
                await asyncio.sleep(_POLL_SECONDS)
        raise AssertionError("the gateway does not use the new engine")

    async def _sleep_and_wake(self, gateway: GatewayProcess) -> Numbers:
        engine = self._group.engines[_VICTIM]
        prompt = _prompt("which tokens follow" + " abc def" * 300, 16)
        sleeper = sleep_client()
        async with openai_client(engine.url) as direct:
            before = await send_prompt(direct, prompt)
            memory = used_memory_bytes()
            began = time.monotonic()
            await sleeper.sleep(engine.url, _SLEEP_LEVEL)
            asleep_seconds, asleep_memory = _since(began), used_memory_bytes()
            gateway.serve(self._fleet_with_state("Sleeping"))
            async with openai_client(gateway.url) as client:
                others = await send_prompts(
                    client, [_prompt(f"{number} is it day", 8) for number in range(12)], at_once=4
                )
            began = time.monotonic()
            await sleeper.wake(engine.url, _SLEEP_LEVEL)
            wake_seconds = _since(began)
            after = await send_prompt(direct, prompt)
            again = await send_prompt(direct, prompt)
        gateway.serve(self._fleet_with_state("Ready"))
        numbers: Numbers = {
            "asleep_after_seconds": asleep_seconds,
            "awake_after_seconds": wake_seconds,
            "gpu_memory_gib_freed": None
            if memory is None or asleep_memory is None
            else round((memory - asleep_memory) / 2**30, 1),
            "requests_meanwhile": len(others),
            "failed_meanwhile": sum(not answer.ended for answer in others),
            "same_answer": after.tokens == before.tokens,
            "same_answer_from_the_cache": again.tokens == before.tokens,
        }
        require(before.ended and after.ended, "the engine does not answer", numbers)
        require(not numbers["failed_meanwhile"], "requests failed while it slept", numbers)
        require(numbers["same_answer"], "the engine answers otherwise after its sleep", numbers)
        if memory is not None and asleep_memory is not None:
            require(asleep_memory < memory, "sleep freed no memory", numbers)
        return numbers

    async def _probe_index(self) -> Numbers:
        chats = [[{"role": "user", "content": f"{number} " + " abc def ghi" * 400}] for number in range(_INDEX_CHATS)]
        return await compare_index(self._group, self._plane, [*chats, *chats])

    def _fleet_with_state(self, state: str) -> dict[str, Any]:
        fleet = self._plane.fleet("dual-hash")
        fleet["models"][0]["instances"][_VICTIM]["state"] = state
        return fleet

    async def _use_adapter(self, gateway: GatewayProcess) -> Numbers:
        text = "an adapter or the base" + " abc def" * 300
        async with openai_client(gateway.url) as client:
            base = await send_prompt(client, _prompt(text, 16))
            began = time.monotonic()
            first = await send_prompt(client, _prompt(text, 16, model=_ADAPTER))
            first_seconds = _since(began)
            second = await send_prompt(client, _prompt(text, 16, model=_ADAPTER))
        models = json.loads(fetch(f"{self._group.engines[_VICTIM].url}/v1/models"))["data"]
        numbers: Numbers = {
            "first_answer_seconds": first_seconds,
            "second_answer_seconds": round(second.seconds, 3),
            "listed": any(model["id"] == _ADAPTER for model in models),
            "answers_like_the_base": first.tokens == base.tokens,
            "answers_alike": first.tokens == second.tokens,
            "errors": [answer.error for answer in (base, first, second) if answer.error],
        }
        require(all(answer.ended for answer in (base, first, second)), "a request failed", numbers)
        require(numbers["listed"], "the engine does not list the adapter", numbers)
        require(not numbers["answers_like_the_base"], "the adapter changes nothing", numbers)
        return numbers


def _prompt(text: str, tokens: int, *, model: str = MODEL) -> TextPrompt:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
    return TextPrompt(0, "chat", "/v1/chat/completions", body)


def _stream(text: str) -> TextPrompt:
    """Returns a greedy stream. It does not ask for token ids, since no other engine could continue
    those.
    """
    prompt = _prompt(text, STREAM_TOKENS)
    body = {name: value for name, value in prompt.body.items() if name != "return_token_ids"}
    return replace(prompt, body={**body, "stream": True, "stream_options": {"include_usage": True}})


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


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
