"""Reasoning and calls of tools, with SGLang's parsers, directly and through a gateway.

The model says what a script says (`e2e/vllm/engine/scripted_model.py`), so it is known what each
parser must find.
"""

import asyncio
import json
import subprocess
from typing import Any

import httpx

from e2e.sglang.engine.sglang_stage import MODEL, SglangStage, fleet
from e2e.sglang.scenarios.api import read_stream
from e2e.vllm.client import openai_client
from e2e.vllm.engine.engine_processes import EngineProcess, GatewayProcess
from e2e.vllm.engine.installation import HERE as MODEL_MAKERS
from e2e.vllm.report import Numbers, VllmReport, require
from e2e.vllm.scenarios.continued import chat, send

NAME = "parsers"
_MAKER = MODEL_MAKERS / "scripted_model.py"
_OPTIONS = ("--tool-call-parser", "hermes", "--reasoning-parser", "qwen3", "--dtype", "float32")
_PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
_LOOK = {"type": "function", "function": {"name": "look", "parameters": _PARAMETERS}}
_PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}
_CALLS = ("<|call|>", "<|split|>")
_NAMED: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 40, "tools": [{"name": "look", "input_schema": _PARAMETERS}]},
    "/v1/responses": {
        "max_output_tokens": 42,
        "tools": [{"type": "function", "name": "look", "parameters": _PARAMETERS}],
    },
}


class Parsers:
    """One engine with a scripted model, and all checks."""

    def __init__(self, stage: SglangStage, report: VllmReport) -> None:
        self._stage = stage
        self._report = report

    async def run(self) -> None:
        """Everything, in order; the engine is gone afterwards."""
        scripted = self._stage.with_model("scripted")
        command = [str(self._stage.installed.engine_python), str(_MAKER)]
        command += [str(self._stage.installed.model), str(scripted.installed.model)]
        await asyncio.to_thread(subprocess.run, command, check=True)
        engine = scripted.engine("parsers", *_OPTIONS)
        try:
            await asyncio.to_thread(engine.await_health)
            gateway = await asyncio.to_thread(self._stage.gateway, fleet(engine))
            check = self._report.check
            await check("reasoning of chats", lambda: _reason(engine, gateway))
            await check("calls of chats", lambda: _call(engine, gateway))
            for path in _NAMED:
                await check(f"calls of {path}", lambda: _call_named(engine, gateway, path))  # noqa: B023
        finally:
            engine.kill()


async def _reason(engine: EngineProcess, gateway: GatewayProcess) -> Numbers:
    async with openai_client(engine.url) as direct, openai_client(gateway.url) as through:
        asked = chat("<|reason|>", 30)
        alone, said = [await send(client, asked, "reason") for client in (direct, through)]
    numbers: Numbers = {"reasoning": said.reasoning, "text": said.text, "finish": said.finish}
    require(said.same() == alone.same() and said.is_whole, f"not as the engine: {alone} and {said}", numbers)
    require("Let me" in said.reasoning and "answer is" in said.text, "the parser found something else", numbers)
    return numbers


async def _call(engine: EngineProcess, gateway: GatewayProcess) -> Numbers:
    calls = []
    async with openai_client(engine.url) as direct, openai_client(gateway.url) as through:
        for mark in _CALLS:
            asked = chat(mark, 40, tools=[_LOOK], **_PLAIN)
            alone, said = [await send(client, asked, "call") for client in (direct, through)]
            require(said.same() == alone.same() and said.is_whole, f"not as the engine: {alone} and {said}")
            require(len(said.calls) == 1 and said.calls[0][0] == "look", f"another call: {said}")
            calls.append(json.loads(said.calls[0][1]))
            body = {**asked.body, "stream": False, "stream_options": None}
            whole = [(await client.post(asked.path, json=body)).json() for client in (direct, through)]
            arguments = [answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] for answer in whole]
            require([json.loads(one) for one in arguments] == [calls[-1]] * 2, f"another call when whole: {arguments}")
    return {"calls": calls}


async def _call_named(engine: EngineProcess, gateway: GatewayProcess, path: str) -> Numbers:
    """Calls in dialects whose events have names, whole and streamed."""
    found = []
    async with openai_client(engine.url) as direct, openai_client(gateway.url) as through:
        for mark in _CALLS:
            body = {"model": MODEL, "temperature": 0, **_NAMED[path]}
            body |= {"input": mark} if path == "/v1/responses" else {"messages": [{"role": "user", "content": mark}]}
            for client in (direct, through):
                found += [await _whole_call(client, path, body), await _streamed_call(client, path, body)]
            require(found[-4:] == found[-4:-3] * 4, f"calls differ: {found[-4:]}")
    return {"calls": found[::4]}


async def _whole_call(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    answer = (await client.post(path, json=body)).raise_for_status().json()
    items = answer.get("output") or answer.get("content")
    calls = [item for item in items if item["type"] in ("function_call", "tool_use")]
    return [[call["name"], call.get("input") or json.loads(call["arguments"])] for call in calls]


async def _streamed_call(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    names, arguments = [], ""
    for event in await read_stream(client, path, body):
        item = event.get("content_block") or event.get("item") or {}
        if event["type"] in ("content_block_start", "response.output_item.added") and "name" in item:
            names.append(item["name"])
        delta = event.get("delta")
        if event["type"] == "response.function_call_arguments.delta":
            arguments += str(delta)
        elif isinstance(delta, dict):
            arguments += delta.get("partial_json") or ""
    return [[name, json.loads(arguments)] for name in names]
