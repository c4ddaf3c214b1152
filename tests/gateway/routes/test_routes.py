"""Routes at a gateway: the engine that a client's name leads to, and what the client sees of it."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Fleet, Model
from fairlead.routes.model import RequestRewrite, Route, RouteRule, RouteTarget
from fairlead.tenants.model import Tenant
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, token
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, get_request, request, send

pytestmark = pytest.mark.simulated

STABLE, CANARY = RouteTarget("chat/stable", 1), RouteTarget("chat/canary", 1)
SPLIT = Route("chat", "assistant", (STABLE, CANARY), names=("assistant", "acme/assistant"))


async def answer(call: EngineCall) -> None:
    name = call.json["model"]
    if call.json.get("stream"):
        await call.start_stream()
        await call.event({"model": name, **token("hi", "stop")})
        await call.finish()
        return
    await call.respond({"model": name, "choices": [{"message": {"content": "hi"}}]})


def fleet_with(url: str, routes: Sequence[Route]) -> Fleet:
    base = fleet_of([url])
    (instances,) = base.instances.values()
    models, placed = {}, {}
    for name in ("stable", "canary"):
        models[f"chat/{name}"] = Model("chat", name)
        placed[f"chat/{name}"] = tuple(
            replace(pod, namespace="chat", model=name, id=f"{name}/{number}") for number, pod in enumerate(instances)
        )
    return replace(base, models=models, instances=placed, routes={route.key: route for route in routes})


@asynccontextmanager
async def routed(*routes: Route, tenants: Sequence[Tenant] = ()) -> AsyncIterator[RunningGateway]:
    async with scripted_engine(answer) as engine:
        keys = keys_of(*tenants) if tenants else None
        async with running_gateway(fleet_with(engine.url, routes), api_keys=keys) as running:
            yield running


def chat(name: str = "assistant", text: str = "Why?", **more: Any) -> dict[str, Any]:
    return {"model": name, "messages": [{"role": "user", "content": text}], **more}


def model_of(reply: RawResponse) -> str | None:
    assert reply.status == 200, reply.body
    return reply.fields.get("x-fairlead-model")


@pytest.mark.parametrize("name", ["assistant", "acme/assistant", "chat/assistant"])
@pytest.mark.parametrize("stream", [False, True])
async def test_alias_leads_to_its_target_and_stays_in_the_answer(name: str, stream: bool) -> None:
    async with routed(replace(SPLIT, targets=(CANARY,))) as running:
        reply = await request(running.url, chat(name, stream=stream))
        assert model_of(reply) == "chat/canary"
        assert f'"model":"{name}"'.encode() in reply.body
        assert b"canary" not in reply.body


async def test_model_named_by_its_client_is_served_as_without_routes() -> None:
    async with routed(SPLIT) as running:
        for name in ("stable", "chat/stable"):
            reply = await request(running.url, chat(name))
            assert (reply.json["model"], model_of(reply)) == ("stable", None)
        missing = await request(running.url, chat("asistant"))
        assert missing.status == 404
        assert "did you mean: assistant" in missing.error["message"]


async def test_conversation_stays_with_its_target() -> None:
    async with routed(SPLIT) as running:
        targets = set()
        for number in range(12):
            first = chat(text=f"{number}")
            model = model_of(await request(running.url, first))
            targets.add(model)
            reply = {"role": "assistant", "content": "hi"}
            later = {**first, "messages": [*first["messages"], reply, {"role": "user", "content": "And?"}]}
            assert model_of(await request(running.url, later)) == model
            large = {**first, "messages": [*first["messages"], reply, {"role": "user", "content": "x" * 300_000}]}
            assert model_of(await request(running.url, large)) == model
        assert targets == {"chat/stable", "chat/canary"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "TEXT"}]}),
        ("/v1/completions", {"prompt": "TEXT"}),
        ("/v1/embeddings", {"input": "TEXT"}),
        ("/v1/rerank", {"query": "TEXT", "documents": ["b"]}),
        ("/v1/audio/speech", {"input": "TEXT", "voice": "a"}),
    ],
)
async def test_session_decides_whatever_the_prompt_is(path: str, body: dict[str, Any]) -> None:
    async with routed(SPLIT) as running:
        targets = set()
        for number in range(10):
            models = set()
            for text in ("one", "two", "three"):
                text_body = {
                    key: value if key != "messages" else [{"role": "user", "content": text}]
                    for key, value in body.items()
                }
                text_body |= {key: text for key, value in body.items() if value == "TEXT"}
                more = f"x-session-id: {number}\r\n"
                answered = await request(running.url, {"model": "assistant", **text_body}, path=path, more=more)
                models.add(model_of(answered))
            assert len(models) == 1
            targets |= models
        assert len(targets) == 2


async def test_override_takes_requests_with_its_header() -> None:
    route = replace(SPLIT, targets=(STABLE,), overrides=(RouteRule((CANARY,), headers=(("x-canary", "yes"),)),))
    async with routed(route) as running:
        assert model_of(await request(running.url, chat(), more="X-Canary: yes\r\n")) == "chat/canary"
        assert model_of(await request(running.url, chat(), more="X-Canary: no\r\n")) == "chat/stable"
        preview = await running.preview_route(
            "/v1/chat/completions", b'{"model":"assistant","messages":[{"role":"user","content":"a"}]}', None
        )
        assert preview.records[0].route is not None
        assert preview.records[0].route.target == preview.records[0].model_key == "chat/stable"
        body = b'{"model":"assistant","messages":[{"role":"user","content":"a"}]}'
        preview = await running.preview_route("/v1/chat/completions", body, None, headers=[("x-canary", "yes")])
        assert preview.records[0].model_key == "chat/canary"
        counted = running.gateway.telemetry.models
        assert {key: series.by_route for key, series in counted.items() if series.by_route} == {
            "chat/canary": {("200", "chat/assistant"): 1},
            "chat/stable": {("200", "chat/assistant"): 1},
        }


async def test_decision_log_has_the_route() -> None:
    async with routed(replace(SPLIT, targets=(CANARY,))) as running:
        reply = await request(running.url, chat())
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        (record,) = logged.records
        assert record.model_key == "chat/canary"
        assert record.route.describe() == "assistant is the route chat/assistant → chat/canary, its only target"
        plain = await request(running.url, chat("stable"))
        (logged,) = running.gateway.decisions.find(plain.fields["x-fairlead-decision"])
        assert logged.records[0].route is None


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((replace(STABLE, weight=0),), "no target of this route has a weight above 0"),
        ((RouteTarget("chat/gone"),), "the target that this route has chosen is not served"),
    ],
)
async def test_route_without_target_is_refused(targets: tuple[RouteTarget, ...], message: str) -> None:
    async with routed(replace(SPLIT, targets=targets)) as running:
        for text in ("Why?", "x" * 300_000):
            reply = await request(running.url, chat(text=text))
            assert (reply.status, reply.error["code"]) == (503, "route_without_target")
            assert message in reply.error["message"]
        gone = running.gateway.telemetry.models.get("chat/gone")
        assert (gone is not None) == (targets[0].model == "chat/gone")
        assert gone is None or gone.by_route == {("503", "chat/assistant"): 2}


async def test_a_target_is_the_key_of_a_model_and_no_other_name() -> None:
    adapter = LoraAdapter("sql", "acme/sql")
    routes = [Route("chat", name, (RouteTarget(f"chat/{name}"),), names=(name,)) for name in ("renamed", "sql")]

    async with scripted_engine(answer) as engine:
        fleet = fleet_with(engine.url, routes)
        models = {
            **fleet.models,
            "chat/stable": Model("chat", "stable", served_names=("chat/renamed",), adapters=(adapter,)),
        }
        async with running_gateway(replace(fleet, models=models)) as running:
            for name in ("renamed", "sql"):
                reply = await request(running.url, chat(name))
                assert (reply.status, reply.error["code"]) == (503, "route_without_target")


async def test_tenant_sees_and_uses_only_routes_to_models_that_it_may_use() -> None:
    other = Route("chat", "steady", (STABLE,), (RouteRule((CANARY,), tenants=frozenset({"acme"})),), ("steady",))
    acme = Tenant("acme", models=frozenset({"chat/stable"}))
    every = Tenant("zeta", shows_placement=False)
    async with routed(SPLIT, other, tenants=(acme, every)) as running:

        async def listed(tenant: str) -> set[str]:
            answers = await send(running.url, get_request("/v1/models", more=authorization(tenant)))
            return {model["id"] for model in answers[0].json["data"]}

        assert await listed("acme") == {"stable", "steady"}
        assert await listed("zeta") == {"stable", "canary", "steady", "assistant", "acme/assistant"}
        more = authorization("acme")
        assert model_of(await request(running.url, chat("steady"), more=more)) == "chat/stable"
        assert (await request(running.url, chat(), more=more)).status == 404
        assert (await send(running.url, get_request("/v1/models/assistant", more=more)))[0].status == 404
        hidden = await request(running.url, chat(), more=authorization("zeta"))
        assert model_of(hidden) is None


async def echo(call: EngineCall) -> None:
    body = {name: value for name, value in call.json.items() if name not in ("messages", "prompt", "input")}
    await call.respond({"model": call.json["model"], "choices": [{"message": {"content": json.dumps(body)}}]})


def body_of(reply: RawResponse) -> dict[str, Any]:
    assert reply.status == 200, reply.body
    body: dict[str, Any] = json.loads(reply.json["choices"][0]["message"]["content"])
    return body


CAPPED = RequestRewrite((("temperature", 0.2),), (("max_tokens", 10),))


async def test_engines_get_the_parameters_that_a_route_sets() -> None:
    premium = RouteRule((STABLE,), headers=(("x-premium", "1"),), rewrite=RequestRewrite((), (("max_tokens", 100),)))
    route = replace(SPLIT, targets=(STABLE,), overrides=(premium,), rewrite=CAPPED)
    async with scripted_engine(echo) as engine, running_gateway(fleet_with(engine.url, [route])) as running:
        plain = {"model": "stable", "max_tokens": 10, "temperature": 0.2}
        assert body_of(await request(running.url, chat())) == plain
        asked = chat(max_completion_tokens=500, temperature=1)
        assert body_of(await request(running.url, asked)) == {
            "model": "stable",
            "max_completion_tokens": 10,
            "temperature": 1,
        }
        assert body_of(await request(running.url, chat(text="x" * 300_000, max_tokens=500))) == plain
        raised = body_of(await request(running.url, chat(max_tokens=500), more="x-premium: 1\r\n"))
        assert raised == {"model": "stable", "max_tokens": 100}
        own = body_of(await request(running.url, chat("stable", max_tokens=500)))
        assert own == {"model": "stable", "max_tokens": 500}
        passed = {"model": "assistant", "input": "a", "max_output_tokens": 500}
        sent = body_of(await request(running.url, passed, path="/v1/responses"))
        assert sent == {"model": "stable", "max_output_tokens": 10, "temperature": 0.2, "store": False}


async def test_decision_log_has_the_parameters_that_were_set() -> None:
    async with routed(replace(SPLIT, targets=(CANARY,), rewrite=CAPPED)) as running:
        reply = await request(running.url, chat())
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        assert logged.records[0].route.describe().endswith("its only target; sets max_tokens=10, temperature=0.2")


async def test_routes_follow_the_fleet() -> None:
    async with scripted_engine(answer) as engine:
        fleet = fleet_with(engine.url, [replace(SPLIT, targets=(STABLE,))])
        async with running_gateway(fleet) as running:
            assert model_of(await request(running.url, chat())) == "chat/stable"
            changed = replace(SPLIT, targets=(CANARY,))
            running.gateway.update_fleet(replace(fleet, version=2, routes={changed.key: changed}))
            assert model_of(await request(running.url, chat())) == "chat/canary"
            running.gateway.update_fleet(replace(fleet, version=3, routes={}))
            assert (await request(running.url, chat())).status == 404


async def test_a_picture_needs_as_much_context_as_pictures_of_its_size_have_tokens() -> None:
    rule = RouteRule((CANARY,), min_context_tokens=500)
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 40_000}"}}
    async with routed(replace(SPLIT, targets=(STABLE,), overrides=(rule,))) as running:
        for pictures, expected in ((1, "chat/stable"), (2, "chat/canary")):  # of 256 tokens each
            message = {"role": "user", "content": [picture] * pictures}
            assert model_of(await request(running.url, chat() | {"messages": [message]})) == expected


async def test_long_requests_go_to_the_model_with_more_context() -> None:
    route = replace(SPLIT, targets=(STABLE,), overrides=(RouteRule((CANARY,), min_context_tokens=500),))
    async with routed(route) as running:
        for text, limit, expected in (
            ("Why?", None, "chat/stable"),
            ("x" * 2_000, None, "chat/canary"),
            ("Why?", 600, "chat/canary"),
            ("x" * 300_000, None, "chat/canary"),
        ):
            reply = await request(running.url, chat(text=text, **{} if limit is None else {"max_tokens": limit}))
            assert model_of(reply) == expected
            (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
            why = logged.latest.route.describe()
            assert ("overrides[0] by about" in why and "tokens of context" in why) == (expected == "chat/canary")
