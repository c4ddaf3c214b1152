"""Adapters at a gateway before simulated engines: what is loaded, where, and what clients see."""

import asyncio
import random
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fairlead.adapters.model import LoraAdapter
from fairlead.limits import Limits
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.gateway.gateway_process import Setting
from fairlead_testing.gateway.gateway_process import adapted as adapted_gateway
from fairlead_testing.gateway.running_gateway import MODEL_KEY, running_gateway
from fairlead_testing.http.raw_client import RawResponse, get_request, request, send
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

FAST = EngineSettings(model="tiny", served_names=("tiny",), speed=50.0, max_loaded_adapters=8)


adapted = partial(adapted_gateway, settings=FAST)


def chat(name: str, text: str = "Why?", **more: Any) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


def reason_of(setting: Setting, reply: RawResponse) -> str:
    (logged,) = setting.running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
    return logged.latest.decision.reason


@pytest.mark.parametrize("stream", [False, True])
async def test_adapter_is_loaded_while_its_request_waits(stream: bool) -> None:
    async with adapted(["sql", "legal"], settings=replace(FAST, adapter_load_seconds=0.5)) as setting:
        first = await request(setting.running.url, chat("sql", stream=stream))
        assert first.status == 200, first.body
        assert b'"model":"sql"' in first.body.replace(b" ", b"")
        assert setting.loaded() == [{"sql"}]
        assert reason_of(setting, first).startswith("adapter sql cold, loaded in ")
        assert list(setting.running.gateway.stages.adapter_loader.loaded().values()) == [["sql"]]
        second = await request(setting.running.url, chat("sql", stream=stream))
        assert reason_of(setting, second).startswith("adapter sql loaded at 1 of 1; then only-one")


async def test_clients_see_adapters_with_their_base() -> None:
    async with adapted(["sql"]) as setting:
        (listed,) = await send(setting.running.url, get_request("/v1/models"))
        models = {model["id"]: model.get("parent") for model in listed.json["data"]}
        assert models == {"tiny": None, "sql": "tiny"}
        (reply,) = await send(setting.running.url, get_request("/v1/models/sql"))
        assert reply.json["parent"] == "tiny"
        for name in ("sql", "default/sql"):
            assert (await request(setting.running.url, chat(name))).json["model"] == name
        assert (await request(setting.running.url, chat("tiny"))).json["model"] == "tiny"
        assert (await request(setting.running.url, chat("sq"))).status == 404


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_carry_the_name_that_the_client_wrote(stream: bool) -> None:
    async with adapted(["sql", "law"]) as setting:
        fleet = setting.running.gateway.stages.routers.fleet
        adapters = (LoraAdapter("sql", "/sql", ("sql", "acme/sql")), LoraAdapter("law", "/law", ()))
        model = replace(fleet.models[MODEL_KEY], adapters=adapters)
        setting.running.gateway.update_fleet(replace(fleet, version=2, models={MODEL_KEY: model}))
        (listed,) = await send(setting.running.url, get_request("/v1/models"))
        assert [model["id"] for model in listed.json["data"]] == ["tiny", "sql", "acme/sql"]
        for name in ("sql", "acme/sql", "default/law"):
            reply = await request(setting.running.url, chat(name, stream=stream))
            assert f'"model":"{name}"' in reply.body.decode().replace(" ", ""), name
        assert (await request(setting.running.url, chat("law"))).status == 404
        assert setting.loaded() == [{"sql", "law"}]


async def test_large_and_unknown_paths_reach_the_adapter() -> None:
    async with adapted(["sql"], settings=replace(FAST, max_model_len=30_000)) as setting:
        large = await request(setting.running.url, chat("sql", "x" * 300_000))
        assert large.status == 400  # the engine's own error: it is longer than the context
        tokens = await request(setting.running.url, {"model": "sql", "prompt": "a b c"}, path="/tokenize")
        assert tokens.status == 200
        answered = await request(setting.running.url, {"model": "sql", "input": "Why?"}, path="/v1/responses")
        assert answered.json["model"] == "sql"


async def test_base_and_adapters_share_no_prefix() -> None:
    async with adapted(["sql", "legal"]) as setting:
        chains = []
        for name in ("tiny", "sql", "legal"):
            body = chat(name, "x" * 2_000)
            reply = await request(setting.running.url, body)
            assert reply.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
            again = await request(setting.running.url, body)
            assert again.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
            (logged,) = setting.running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
            assert logged.latest.decision.matched_tokens == 0
            chains.append(reply.json["choices"][0]["message"]["content"])
        assert len(set(chains)) == 3  # each adapter answers in its own way


async def test_least_wanted_adapter_is_evicted() -> None:
    async with adapted(["a", "b", "c"], slots=2, settings=replace(FAST, adapter_load_seconds=5.0)) as setting:
        for name in (*["a"] * 10, "b", "c"):
            assert (await request(setting.running.url, chat(name))).status == 200
        assert setting.loaded() == [{"a", "c"}]


async def test_adapter_with_requests_is_not_evicted() -> None:
    async with adapted(["a", "b"], slots=1, settings=replace(FAST, speed=1.0)) as setting:
        long = asyncio.create_task(request(setting.running.url, chat("a", stream=True, max_tokens=40)))
        await wait_until(lambda: bool(setting.loaded()[0]))
        assert (await request(setting.running.url, chat("b"))).status == 200
        assert setting.loaded() == [{"b"}]
        assert (await long).body.endswith(b"data: [DONE]\n\n")


async def test_adapter_with_requests_is_not_evicted_after_its_engine_was_forgotten() -> None:
    async with adapted(["a", "b"], slots=1, settings=replace(FAST, speed=1.0)) as setting:
        long = asyncio.create_task(request(setting.running.url, chat("a", stream=True, max_tokens=40)))
        await wait_until(lambda: bool(setting.loaded()[0]))
        (instance,) = setting.running.gateway.stages.adapter_loader._instances.values()
        await wait_until(lambda: bool(instance.inflight))
        instance.forget()  # as after a load that has failed
        assert (await request(setting.running.url, chat("b"))).status == 200
        assert long.done()
        assert not instance.inflight


async def test_adapter_that_cannot_be_loaded_is_503_with_retry_after() -> None:
    settings = replace(FAST, missing_adapters=frozenset({"/adapters/gone"}))
    async with adapted(["gone", "sql"], engines=2, settings=settings) as setting:
        for _ in range(2):
            reply = await request(setting.running.url, chat("gone"))
            assert (reply.status, reply.error["code"]) == (503, "adapter_not_loaded")
            assert int(reply.fields["retry-after"]) >= 1
        assert (await request(setting.running.url, chat("sql"))).status == 200
        assert (await request(setting.running.url, chat("tiny"))).status == 200


async def test_full_slots_are_503_after_the_wait() -> None:
    settings = replace(FAST, speed=1.0)
    limits = Limits(adapter_wait_seconds=0.05)
    async with adapted(["a", "b"], slots=1, settings=settings, limits=limits) as setting:
        long = asyncio.create_task(request(setting.running.url, chat("a", stream=True, max_tokens=100)))
        await wait_until(lambda: bool(setting.loaded()[0]))
        reply = await request(setting.running.url, chat("b"))
        assert (reply.status, reply.error["code"]) == (503, "adapter_not_loaded")
        assert (await long).status == 200


async def test_adapter_that_others_unloaded_is_loaded_again() -> None:
    async with adapted(["sql"]) as setting:
        assert (await request(setting.running.url, chat("sql"))).status == 200
        more = "content-type: application/json\r\n"
        body, path = {"lora_name": "sql"}, "/v1/unload_lora_adapter"
        assert (await request(setting.engines[0].url, body, path=path, more=more)).status == 200
        reply = await request(setting.running.url, chat("sql"))
        assert reply.json["model"] == "sql"
        assert "adapter-missing" in reason_of(setting, reply)


async def test_changed_source_is_loaded_anew() -> None:
    async with adapted(["sql"]) as setting:
        fleet = setting.running.gateway.stages.routers.fleet
        assert (await request(setting.running.url, chat("sql"))).status == 200
        model = replace(fleet.models[MODEL_KEY], adapters=(LoraAdapter("sql", "/adapters/sql-2"),))
        setting.running.gateway.update_fleet(replace(fleet, version=2, models={MODEL_KEY: model}))
        assert (await request(setting.running.url, chat("sql"))).status == 200
        assert [adapter.path for adapter in setting.engines[0].engine.models.adapters] == ["/adapters/sql-2"]


def with_replicas(setting: Setting, version: int, **replicas: int) -> None:
    """Gives the gateway a fleet in which these adapters have so many replicas."""
    fleet = setting.running.gateway.stages.routers.fleet
    model = fleet.models[MODEL_KEY]
    adapters = tuple(replace(adapter, replicas=replicas.get(adapter.name, 0)) for adapter in model.adapters)
    changed = {MODEL_KEY: replace(model, adapters=adapters)}
    setting.running.gateway.update_fleet(replace(fleet, version=version, models=changed))


async def test_adapters_with_replicas_are_loaded_before_a_request_and_stay() -> None:
    async with adapted(["sql", "a", "b", "c"], engines=3, slots=2) as setting:
        with_replicas(setting, 2, sql=2)
        await wait_until(lambda: sum("sql" in names for names in setting.loaded()) == 2)
        keepers = [number for number, names in enumerate(setting.loaded()) if "sql" in names]
        first = await request(setting.running.url, chat("sql"))
        assert reason_of(setting, first).startswith("adapter sql loaded at 2 of 3")
        for _ in range(4):
            for name in ("a", "b", "c"):
                assert (await request(setting.running.url, chat(name))).status == 200
        assert all("sql" in setting.loaded()[number] for number in keepers)
        with_replicas(setting, 3, a=3)
        await wait_until(lambda: all("a" in names for names in setting.loaded()))


async def test_an_engine_whose_slots_are_all_kept_loads_no_others() -> None:
    async with adapted(["sql", "law"], slots=1) as setting:
        with_replicas(setting, 2, sql=1)
        await wait_until(lambda: setting.loaded() == [{"sql"}])
        reply = await request(setting.running.url, chat("law"))
        assert (reply.status, reply.error["code"]) == (503, "adapter_not_loaded")
        assert (await request(setting.running.url, chat("sql"))).status == 200


async def test_zipf_traffic_survives_a_killed_and_a_restarted_engine() -> None:
    names = [f"lora-{number}" for number in range(200)]
    weights = [1.0 / (number + 1) for number in range(200)]
    settings = replace(FAST, adapter_load_seconds=0.2)
    third = shortened(300, 120)
    drawn = random.Random(7).choices(names, weights, k=3 * third)

    async with adapted(names, engines=3, slots=8, settings=settings) as setting:
        todo, answers = iter(drawn), Counter[int]()

        async def client(number: int) -> None:
            for name in todo:
                # A stream that breaks is continued elsewhere if its answer is determined.
                body = chat(name, f"question {number}", stream=number % 2 == 0, temperature=0)
                reply = await request(setting.running.url, body)
                assert reply.status == 200, (name, reply.body)
                assert f'"model":"{name}"'.encode() in reply.body.replace(b" ", b""), reply.body
                if number % 2 == 0:
                    assert reply.body.endswith(b"data: [DONE]\n\n"), reply.body[-600:]
                answers[0] += 1

        async def faults() -> None:
            await wait_until(lambda: answers[0] >= third)
            setting.engines[1].kill()
            await wait_until(lambda: answers[0] >= 2 * third)
            await setting.restart(1, settings)

        async with asyncio.TaskGroup() as group:
            group.create_task(faults())
            for number in range(16):
                group.create_task(client(number))
        assert answers[0] == len(drawn)
        assert all(len(loaded) <= 8 for loaded in setting.loaded())


async def test_two_gateways_share_the_slots_of_engines() -> None:
    names = [f"lora-{number}" for number in range(40)]
    drawn = random.Random(3).choices(names, [1.0 / (number + 1) for number in range(40)], k=shortened(400, 200))
    settings = replace(FAST, adapter_load_seconds=0.2, max_loaded_adapters=4)

    async with adapted(names, engines=2, slots=4, settings=settings) as setting:
        fleet = setting.running.gateway.stages.routers.fleet
        async with running_gateway(fleet) as other:
            urls, todo = (setting.running.url, other.url), iter(drawn)

            async def client(number: int) -> None:
                for name in todo:
                    reply = await request(urls[number % 2], chat(name))
                    assert (reply.status, reply.json.get("model")) == (200, name), reply.body

            async with asyncio.TaskGroup() as group:
                for number in range(8):
                    group.create_task(client(number))
            assert all(len(loaded) <= 4 for loaded in setting.loaded())
