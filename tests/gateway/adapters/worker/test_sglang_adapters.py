"""Adapters of SGLang: requests name `base:adapter`, and refusals have a body of their own.

The scripted engine answers as SGLang 0.5.23 does. A model without a colon is the base, whatever its
name. An adapter that was never loaded is an error with status 400.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fairlead.adapters.model import LoraAdapter
from fairlead.engines.lora_api import adapter_prefix
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, token, usage
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

NOT_LOADED = "Got LoRA adapter that has never been loaded: {}\nAll loaded adapters: dict_keys([])."


@dataclass
class SglangEngine:
    """An SGLang server with its adapters.

    refusal: status of a refused load; SGLang says 400, and `success` in the body says it as well.
    """

    refusal: str = "400 Bad Request"
    refused: frozenset[str] = frozenset()
    loaded: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refusals: int = 0

    async def script(self, call: EngineCall) -> None:
        if call.path == "/v1/models":
            base = {"id": "tiny", "object": "model", "root": "tiny", "parent": None}
            cards = [{"id": name, "root": path, "parent": "tiny"} for name, path in self.loaded.items()]
            await call.respond({"object": "list", "data": [base, *cards]})
        elif call.path == "/load_lora_adapter":
            await self._load(call)
        elif call.path == "/unload_lora_adapter":
            self.loaded.pop(call.json["lora_name"], None)
            await call.respond(self._result(None))
        else:
            await self._answer(call)

    async def _load(self, call: EngineCall) -> None:
        name, path = call.json["lora_name"], call.json["lora_path"]
        if name in self.refused:
            self.refusals += 1
            why = f"Failed to load LoRA adapter '{name}' from path '{path}'"
            await call.respond(self._result(why), self.refusal)
            return
        self.loaded[name] = path
        await call.respond(self._result(None))

    def _result(self, problem: str | None) -> dict[str, Any]:
        known = {name: {"lora_name": name, "lora_path": path} for name, path in self.loaded.items()}
        fields = {"rid": None, "http_worker_ipc": None}
        return fields | {"success": problem is None, "error_message": problem, "loaded_adapters": known}

    async def _answer(self, call: EngineCall) -> None:
        model = call.json["model"]
        self.asked.append(model)
        adapter = model.partition(":")[2]
        if adapter and adapter not in self.loaded:
            message = NOT_LOADED.format(adapter)
            if call.json.get("stream"):
                await call.start_stream()
                await call.event({"error": {"object": "error", "message": message, "type": "BadRequest", "code": 400}})
                await call.finish()
                return
            error = {"object": "error", "message": message, "type": "BadRequest", "param": None, "code": 400}
            await call.respond(error, "400 Bad Request")
            return
        text = f"{adapter or 'base'} speaks"
        if call.json.get("stream"):
            await call.start_stream()
            await call.event({**token(text, "stop"), "model": model})
            await call.event(usage(9, 0, 2))
            await call.finish()
            return
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        counts = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        await call.respond(
            {"id": "1", "object": "chat.completion", "model": model, "choices": [choice], "usage": counts}
        )


@asynccontextmanager
async def before(engine: SglangEngine, limits: Limits | None = None) -> AsyncIterator[RunningGateway]:
    async with scripted_engine(engine.script) as running_engine:
        running_engine.scripts_models = True
        fleet = with_sglang(fleet_of([running_engine.url]))
        async with running_gateway(fleet, limits) as running:
            yield running


def with_sglang(fleet: Fleet) -> Fleet:
    adapters = (LoraAdapter("sql", "/adapters/sql"), LoraAdapter("acme/legal", "/adapters/legal"))
    model = replace(fleet.models[MODEL_KEY], adapters=adapters, adapter_slots=2)
    instances = tuple(replace(instance, engine="sglang") for instance in fleet.instances[MODEL_KEY])
    return replace(fleet, models={MODEL_KEY: model}, instances={MODEL_KEY: instances})


def chat(name: str, **more: Any) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4, **more}


@pytest.mark.parametrize("name", ["sql", "acme/legal"])
@pytest.mark.parametrize("stream", [False, True])
async def test_request_names_the_base_and_the_adapter(name: str, stream: bool) -> None:
    engine = SglangEngine()
    async with before(engine) as running:
        reply = await request(running.url, chat(name, stream=stream))
        assert reply.status == 200, reply.body
        assert f"{name} speaks".encode() in reply.body
        assert engine.asked == [f"tiny:{name}"]
        assert f'"model":"{name}"'.encode() in reply.body
        assert b"tiny:" not in reply.body
        base = await request(running.url, chat("tiny"))
        assert base.json["choices"][0]["message"]["content"] == "base speaks"


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_that_has_started_again_loads_the_adapter_again(stream: bool) -> None:
    engine = SglangEngine()
    async with before(engine) as running:
        assert (await request(running.url, chat("sql"))).status == 200
        engine.loaded.clear()
        reply = await request(running.url, chat("sql", stream=stream))
        assert reply.status == 200, reply.body
        assert b"sql speaks" in reply.body
        assert engine.asked == ["tiny:sql"] * 3


@pytest.mark.parametrize("refusal", ["400 Bad Request", "200 OK"])
async def test_refused_load_is_no_loaded_adapter(refusal: str) -> None:
    engine = SglangEngine(refusal, frozenset({"sql"}))
    async with before(engine, Limits(adapter_wait_seconds=0.05)) as running:
        reply = await request(running.url, chat("sql"))
        assert (reply.status, reply.error["code"]) == (503, "adapter_not_loaded")
        assert engine.asked == []  # else the base would have answered
        assert (await request(running.url, chat("acme/legal"))).status == 200


@pytest.mark.parametrize("refusal", ["400 Bad Request", "200 OK"])
async def test_load_that_is_always_refused_is_given_up_with_the_reason(
    refusal: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = SglangEngine(refusal, frozenset({"sql"}))
    async with before(engine) as running:
        for _ in range(2):  # the second request does not try it again
            reply = await request(running.url, chat("sql"))
            assert (reply.status, reply.error["code"]) == (503, "adapter_not_loaded")
    assert engine.refusals == 4
    reason = "Failed to load LoRA adapter 'sql' from path '/adapters/sql'"
    assert [line.message for line in caplog.records if "adapter" in line.message] == [
        f"e-0/0/0 does not load the adapter sql: {reason}"
    ]


def test_base_with_a_colon_does_not_change_the_adapter() -> None:
    assert adapter_prefix("sglang", "qwen:7b") == "qwen:"
    assert adapter_prefix("vllm", "qwen:7b") == adapter_prefix("llamacpp", "tiny") == ""


async def test_words_of_a_client_in_a_refusal_are_no_lost_adapter() -> None:
    """SGLang quotes what it refuses: one such request was sent 64 times."""
    message = "tool_choice: 'requested LoRA adapters are not loaded' is not a valid choice"

    async def script(call: EngineCall) -> None:
        if call.path == "/v1/chat/completions":
            engine.asked.append(call.json["model"])
            await call.respond({"object": "error", "message": message, "code": 400}, "400 Bad Request")
        else:
            await engine.script(call)

    engine = SglangEngine()
    async with scripted_engine(script) as running_engine:
        running_engine.scripts_models = True
        async with running_gateway(with_sglang(fleet_of([running_engine.url]))) as running:
            answer = await request(running.url, chat("sql"))
    assert (answer.status, answer.error["message"]) == (400, message)
    assert len(engine.asked) == 4
