"""A gateway before SGLang: all dialects, metrics, clients that leave, a full engine.

The engine is small (`--max-running-requests`, `--max-queued-requests`), so that it refuses a crowd.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import httpx

from e2e.sglang.engine.sglang_stage import MODEL, SglangStage, fleet, running
from e2e.vllm.client import TextPrompt, openai_client, send_prompts
from e2e.vllm.engine.engine_processes import EngineProcess, GatewayProcess, fetch
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead_testing.waiting import wait_until

NAME = "api"
DIALECTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
PROMPTS = 5
TOKENS = 16
SEQUENCES, QUEUE = 8, 16
LEAVERS, LEAVER_EVENTS = 6, 60
CROWD = 48
MAX_LEFT_SECONDS = 5.0
_METRICS_SECONDS = 60.0
_OPTIONS = ("--max-running-requests", str(SEQUENCES), "--max-queued-requests", str(QUEUE))


def body_of(path: str, text: str, tokens: int = TOKENS) -> dict[str, Any]:
    """A greedy request of a dialect."""
    body: dict[str, Any] = {"model": MODEL, "temperature": 0}
    messages = [{"role": "user", "content": text}]
    if path == "/v1/responses":
        return body | {"input": text, "max_output_tokens": tokens}
    if path == "/v1/completions":
        return body | {"prompt": text, "max_tokens": tokens}
    return body | {"messages": messages, "max_tokens": tokens}


def plain_answer(answer: Mapping[str, Any]) -> tuple[str, object, tuple[int, int]]:
    """Text, reason of the end, and tokens of prompt and answer of a whole answer of any dialect."""
    usage = answer["usage"]
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    cached = (usage.get("cache_read_input_tokens") or 0) + (usage.get("cache_creation_input_tokens") or 0)
    counts = prompt + cached, usage.get("completion_tokens", usage.get("output_tokens"))
    if "choices" in answer:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return text, choice["finish_reason"], counts
    if "output" in answer:
        parts = [part for item in answer["output"] for part in item.get("content") or ()]
        return "".join(part["text"] for part in parts), answer["status"], counts
    return "".join(block["text"] for block in answer["content"]), answer["stop_reason"], counts


def streamed_answer(events: list[dict[str, Any]]) -> tuple[str, object]:
    """Text and reason of the end of a stream of any dialect."""
    text, end = "", None
    for event in events:
        for choice in event.get("choices") or ():
            text += (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            end = choice.get("finish_reason") or end
        if event.get("type") == "response.output_text.delta":
            text += event["delta"]
        elif event.get("type") == "content_block_delta":
            text += event["delta"].get("text") or ""
        elif event.get("type") in ("response.completed", "response.incomplete"):
            end = event["response"]["status"]
        elif event.get("type") == "message_delta":
            end = event["delta"]["stop_reason"]
    return text, end


async def read_stream(client: httpx.AsyncClient, path: str, body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the events of a stream. Raises CheckFailed if there is none."""
    async with client.stream("POST", path, json={**body, "stream": True}) as answer:
        require(answer.status_code == 200, f"{path}: {answer.status_code} {(await answer.aread())[:300]!r}")
        lines = [line[6:] async for line in answer.aiter_lines() if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


class Api:
    """One engine, one gateway, and all checks."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        engine = self._stage.engine("api", *_OPTIONS)
        try:
            await asyncio.to_thread(engine.await_health)
            self._report.add("the engine starts", {"holds": True, "start_seconds": engine.started_seconds})
            gateway = await asyncio.to_thread(self._stage.gateway, fleet(engine))
            check = self._report.check
            for path in DIALECTS:
                await check(f"{path}, whole and streamed", lambda: self._compare(engine, gateway, path))  # noqa: B023
            await check("metrics are read", lambda: self._read_metrics(engine, gateway))
            await check("clients that leave", lambda: self._leave(engine, gateway))
            await check("a full engine", lambda: self._overload(engine, gateway))
        finally:
            engine.kill()

    async def _compare(self, engine: EngineProcess, gateway: GatewayProcess, path: str) -> Numbers:
        """Compares what a client gets through the gateway with what the engine says."""
        wrong: list[str] = []
        async with openai_client(engine.url) as direct, openai_client(gateway.url) as through:
            for number in range(PROMPTS):
                body = body_of(path, f"def function_{number}(text: str) -> list[str]:")
                whole = [await client.post(path, json=body) for client in (direct, through)]
                require(all(one.status_code == 200 for one in whole), f"{[one.text[:300] for one in whole]}")
                said = [plain_answer(one.json()) for one in whole]
                streamed = [streamed_answer(await read_stream(client, path, body)) for client in (direct, through)]
                if said[0] != said[1] or streamed[0] != streamed[1] or streamed[0] != said[0][:2]:
                    wrong.append(f"{said} {streamed}")
        numbers: Numbers = {"prompts": PROMPTS, "answers": 2 * PROMPTS, "wrong": len(wrong), "first": wrong[:2]}
        require(not wrong, "answers are not those of the engine", numbers)
        return numbers

    async def _read_metrics(self, engine: EngineProcess, gateway: GatewayProcess) -> Numbers:
        """Fills the engine and its queue, until the gateway shows both, and then neither."""
        most = dict.fromkeys(("running", "waiting", "kv_usage"), 0.0)

        def signals() -> dict[str, float]:
            (model,) = json.loads(fetch(f"{gateway.manage}/api/fleet"))["models"]
            found = model["instances"][0]["signals"] or {}
            return {name: found.get(name) or 0.0 for name in most}

        async def watch() -> None:
            while True:
                for name, value in (await asyncio.to_thread(signals)).items():
                    most[name] = max(most[name], value)
                await asyncio.sleep(0.2)

        crowd = _crowd(SEQUENCES + QUEUE // 2, 200)
        watching = asyncio.create_task(watch())
        async with openai_client(engine.url) as direct:
            said = await send_prompts(direct, crowd, at_once=len(crowd))
        began = time.monotonic()
        await wait_until(lambda: signals()["running"] == 0.0, _METRICS_SECONDS, what="the gateway shows no request")
        watching.cancel()
        numbers = {**{f"most_{name}": round(value, 3) for name, value in most.items()}, "streams": len(said)}
        numbers["shows_none_after_seconds"] = round(time.monotonic() - began, 1)
        require(most["running"] == SEQUENCES, "not the engine's running requests", numbers)
        require(0 < most["waiting"] <= QUEUE // 2, "not the engine's waiting requests", numbers)
        require(0 < most["kv_usage"] <= 1, "not the engine's use of its cache", numbers)
        return numbers

    async def _leave(self, engine: EngineProcess, gateway: GatewayProcess) -> Numbers:
        """Streams that end with their clients: the engine must stop computing for them."""
        most = 0.0

        async def leave(client: httpx.AsyncClient, path: str, number: int) -> None:
            nonlocal most
            body = body_of(path, f"import os, number_{number}", 3_000) | {"stream": True, "ignore_eos": True}
            async with client.stream("POST", path, json=body) as answer:
                events = 0
                async for line in answer.aiter_lines():
                    events += line.startswith("data: {")
                    if events > LEAVER_EVENTS:
                        break
                most = max(most, await asyncio.to_thread(running, engine))

        async with openai_client(gateway.url) as client:
            await asyncio.gather(*(leave(client, DIALECTS[at % len(DIALECTS)], at) for at in range(LEAVERS)))
        began = time.monotonic()
        await wait_until(lambda: running(engine) == 0.0, _METRICS_SECONDS, what="the engine is idle")
        seconds = round(time.monotonic() - began, 1)
        numbers = {"clients": LEAVERS, "most_running": most, "idle_after_seconds": seconds}
        require(most >= 2, "the engine did not compute for several clients", numbers)
        require(seconds <= MAX_LEFT_SECONDS, "the engine goes on for a while", numbers)
        return numbers

    async def _overload(self, engine: EngineProcess, gateway: GatewayProcess) -> Numbers:
        """A full engine refuses requests. The gateway answers them, or refuses them with 503."""
        crowd = _crowd(CROWD, 48)
        async with openai_client(engine.url) as direct, openai_client(gateway.url) as through:
            alone = await send_prompts(direct, crowd, at_once=CROWD)
            said = await send_prompts(through, crowd, at_once=CROWD)
            bodies = [body_of("/v1/responses", f"{at} of a crowd", 48) | {"stream": at % 2 == 0} for at in range(CROWD)]
            responses = await asyncio.gather(*(through.post("/v1/responses", json=body) for body in bodies))
        numbers: Numbers = {
            "asked": CROWD,
            "engine_alone": dict(Counter("whole" if one.ended else f"{one.status}" for one in alone)),
            "engine_says": next((one.error for one in alone if not one.ended), ""),
            "through_the_gateway": dict(Counter("whole" if one.ended else f"{one.status}" for one in said)),
            "responses": dict(Counter(str(one.status_code) for one in responses)),
            "gateway_says": next((one.error for one in said if not one.ended), ""),
        }
        failed = [one.text for one in responses if one.status_code not in (200, 503) or "response.failed" in one.text]
        require(not failed, f"a response shows an overload as something else: {failed[:1]}", numbers)
        require(any(not one.ended for one in alone), "the engine was never full", numbers)
        require(
            all(one.ended or one.status in (429, 503) for one in said), "an overload shows as something else", numbers
        )
        return numbers


def _crowd(count: int, tokens: int) -> list[TextPrompt]:
    body = {"model": MODEL, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    return [
        TextPrompt(0, "text", "/v1/completions", body | {"prompt": f"number {at} of a crowd"}) for at in range(count)
    ]
