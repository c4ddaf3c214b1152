"""`/v1/models` shows the context length of models, as their engines state it."""

from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import InstanceState
from fairlead.routes.model import Route, RouteTarget
from fairlead_gateway.proxy import context_lengths
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import get_request, send

pytestmark = pytest.mark.simulated


async def _entry(running: RunningGateway, name: str = "") -> dict[str, Any]:
    (answered,) = await send(running.url, get_request(f"/v1/models{'/' if name else ''}{name}"))
    entry: dict[str, Any] = answered.json if name else answered.json["data"][0]
    return entry


@pytest.mark.parametrize("name", ["", "tiny"])
async def test_the_first_answer_has_the_length(name: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        engine.max_model_len = 4_096
        assert (await _entry(running, name))["max_model_len"] == 4_096
        engine.max_model_len = 8_192  # it is asked again after some minutes only
        assert (await _entry(running, name))["max_model_len"] == 4_096
        assert not engine.calls


async def test_a_length_that_no_engine_states_is_not_shown() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert "max_model_len" not in await _entry(running)
    for urls in ([engine.url], []):  # nothing listens there any more
        async with running_gateway(fleet_of(urls)) as running:
            assert "max_model_len" not in await _entry(running)


async def test_another_instance_is_asked_when_the_first_has_gone() -> None:
    async with scripted_engine() as first, scripted_engine() as second:
        first.max_model_len, second.max_model_len = 4_096, 8_192
        fleet = fleet_of([first.url, second.url])
        async with running_gateway(fleet) as running:
            assert (await _entry(running))["max_model_len"] == 4_096
            left = replace(fleet, version=2, instances={MODEL_KEY: fleet.instances[MODEL_KEY][1:]})
            running.gateway.update_fleet(left)
            assert (await _entry(running))["max_model_len"] == 8_192
            last = replace(left.instances[MODEL_KEY][0], state=InstanceState.DRAINING)
            running.gateway.update_fleet(replace(left, version=3, instances={MODEL_KEY: (last,)}))
            assert (await _entry(running))["max_model_len"] == 8_192


async def test_a_route_has_the_shortest_length_of_its_models() -> None:
    async with scripted_engine() as engine:
        fleet = fleet_of([engine.url])
        route = Route("default", "chat", (RouteTarget(MODEL_KEY), RouteTarget("default/long")), names=("chat",))
        long = replace(fleet.models[MODEL_KEY], name="long")
        fleet = replace(fleet, models={**fleet.models, long.key: long}, routes={route.key: route})
        async with running_gateway(fleet) as running:
            engine.max_model_len = 4_096
            assert (await _entry(running, "tiny"))["max_model_len"] == 4_096
            assert "max_model_len" not in await _entry(running, "chat")  # that of one model is unknown
            running.gateway.stages.context_lengths.by_model[long.key] = 2_048
            assert (await _entry(running, "chat"))["max_model_len"] == 2_048


@pytest.mark.parametrize("value", [0, -1, 1 << 40])
async def test_impossible_lengths_are_not_shown(value: int) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        engine.max_model_len = value
        assert "max_model_len" not in await _entry(running)


@pytest.mark.parametrize(
    "answer", [b'{"data":[{"id":"\xff"}]}', b'{"x":' + b"[" * 9_000 + b"]" * 9_000 + b',"data":[]}']
)
async def test_an_engine_whose_answer_cannot_be_read_is_not_asked_each_time(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    async def call_engine(*arguments: object, **options: object) -> bytes:
        calls.append((arguments, options))
        return answer

    monkeypatch.setattr(context_lengths, "call_engine", call_engine)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for _ in range(3):
            assert "max_model_len" not in await _entry(running)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["", "tiny", "chat"])
async def test_a_stated_length_is_shown_and_no_engine_is_asked(name: str) -> None:
    async with scripted_engine() as engine:
        fleet = fleet_of([engine.url])
        stated = replace(fleet.models[MODEL_KEY], context_length=32_768)
        route = Route("default", "chat", (RouteTarget(MODEL_KEY),), names=("chat",))
        fleet = replace(fleet, models={MODEL_KEY: stated}, routes={route.key: route})
        async with running_gateway(fleet) as running:
            engine.max_model_len = 4_096
            assert (await _entry(running, name))["max_model_len"] == 32_768
            assert not running.gateway.stages.context_lengths.by_model
            measured = replace(fleet, version=2, models={MODEL_KEY: replace(stated, context_length=None)})
            running.gateway.update_fleet(measured)
            assert (await _entry(running, name))["max_model_len"] == 4_096
