"""Endpoints outside the cluster as fallbacks: what leaves, what comes back, and who may not."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.fleet.model import EXTERNAL_API, EngineAuth, Fleet, Instance, InstanceState, Model, RequestPolicy
from fairlead.routes.fallback_graph import fallback_edges, find_loop
from fairlead.routes.model import FailureKind, Fallback, Route, RouteTarget
from fairlead.tenants.model import Tenant
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper
from fairlead_testing.engines.scripted import EngineCall, ScriptedEngine, scripted_engine, token
from fairlead_testing.gateway.decision_view import decision_out
from fairlead_testing.gateway.running_gateway import RunningGateway, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, get_request, request, send
from fairlead_testing.simulated.event_loop import running_clock

pytestmark = pytest.mark.simulated

NO_AUTH = EngineAuth()
KINDS = tuple(FailureKind)
EVERY = frozenset(FailureKind)
OPEN, CLOSED = Tenant("open"), Tenant("closed", may_leave_cluster=False)
EXTERNAL = RequestPolicy(frozenset({EXTERNAL_API}))
OWN = RequestPolicy(frozenset({"vllm"}))


def instance(name: str, url: str, **more: Any) -> Instance:
    return Instance(f"{name}/0", "chat", name, "main", url, **more)


def fleet(*routes: Route, own: Mapping[str, Instance], external: Mapping[str, Instance]) -> Fleet:
    placed = {**own, **external}
    models = {f"chat/{name}": Model("chat", name, requests=EXTERNAL if name in external else OWN) for name in placed}
    return Fleet(
        1, 1, models, {f"chat/{name}": (pod,) for name, pod in placed.items()}, routes={r.key: r for r in routes}
    )


def chat(model: str = "assistant", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Why?"}], **more}


def answered(reply: RawResponse) -> tuple[int, str | None, str | None]:
    return reply.status, reply.fields.get("x-fairlead-model"), reply.fields.get("x-fairlead-fallback")


async def script(call: EngineCall) -> None:
    """Fails as the model's name says."""
    name = call.json["model"]
    failures = {
        "down": (500, "oh"),
        "full": (503, "full"),
        "long": (400, "maximum context length is 8"),
        "no": (400, "no tools"),
        "key": (401, "Incorrect API key provided: sk-abc"),
        "paid": (402, "the account of Example Ltd is empty"),
    }
    status, message = failures.get(name.partition("-")[0], (200, ""))
    if status != 200:
        body = {"error": {"message": message, "type": "x", "param": None, "code": status}}
        await call.respond(body, f"{status} Failed")
    elif call.json.get("stream"):
        await call.start_stream()
        await call.event({"model": name, **token("hi", "stop")})
        await call.finish()
    else:
        usage = {"prompt_tokens": 3, "completion_tokens": 1}
        more = "set-cookie: a=b\r\nopenai-organization: example\r\n"
        await call.respond({"model": name, "choices": [{"message": {"content": "hi"}}], "usage": usage}, more=more)


@asynccontextmanager
async def served(
    target: str, external: str, *fallbacks: Fallback, access: EngineAuth = NO_AUTH, base: str = ""
) -> AsyncIterator[tuple[RunningGateway, ScriptedEngine]]:
    """Runs a gateway with an engine of its own for `target`, and an API outside for `external`."""
    route = Route("chat", "assistant", (RouteTarget(f"chat/{target}"),), names=("assistant",), fallbacks=fallbacks)
    async with scripted_engine(script) as engine, scripted_engine(script) as api:
        own = {name: instance(name, engine.url) for name in (target, "own")}
        outside = instance(external, api.url + base, engine=EXTERNAL_API, served_name="gpt-x", access=access)
        if external != "api":
            outside = replace(outside, served_name=external)
        initial = fleet(route, own=own, external={external: outside})
        environ = {"TOKEN": "of-the-provider"}
        async with running_gateway(initial, api_keys=keys_of(OPEN, CLOSED), environ=environ) as running:
            yield running, api


def to(model: str, *when: FailureKind, after: str | None = None) -> Fallback:
    return Fallback(f"chat/{model}", frozenset(when) or EVERY, after and f"chat/{after}")


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_of_the_client_but_its_body_leaves(stream: bool) -> None:
    more = authorization("open") + "x-team: secret\r\ncookie: a=b\r\nuser-agent: mine\r\nx-session-id: s\r\n"
    traced = more + "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"
    access = EngineAuth(token_env="TOKEN")
    async with served("down", "api", to("api"), access=access, base="/openai") as (running, api):
        for _ in range(2):  # a further connection, then an idle one
            reply = await request(running.url, chat(stream=stream), more=traced)
            assert answered(reply) == (200, "chat/api", "chat/down Unavailable")
            assert b'"model":"assistant"' in reply.body
            assert "set-cookie" not in reply.fields
            assert "openai-organization" not in reply.fields
        for call in api.calls:
            assert call.path == "/openai/v1/chat/completions"
            assert call.header("authorization") == "Bearer of-the-provider"
            assert call.header("user-agent") == "fairlead-gateway"
            names = [name for name, _ in call.fields]
            assert len(names) == len(set(names))
            assert set(names) <= {
                *("host", "content-type", "content-length", "accept", "user-agent", "authorization"),
                *("x-request-id", "x-fairlead-hops"),
            }, names
            assert call.json["model"] == "gpt-x"
            assert not call.json.keys() - {"model", "messages", "stream", "stream_options"}


@pytest.mark.parametrize("name", ["key-api", "paid-api"])
async def test_client_learns_nothing_of_the_account(name: str) -> None:
    async with served("down", name, to(name)) as (running, _):
        reply = await request(running.url, chat(), more=authorization("open"))
        assert answered(reply) == (502, f"chat/{name}", "chat/down Unavailable")
        assert b"sk-abc" not in reply.body
        assert b"Example" not in reply.body


@pytest.mark.parametrize("name", ["key-api", "paid-api"])
async def test_refusal_of_the_gateways_own_token_has_a_word_of_its_own(name: str) -> None:
    async with scripted_engine(script) as api:
        models = {name: instance(name, api.url, engine=EXTERNAL_API)}
        async with running_gateway(fleet(own={}, external=models)) as running:
            answer = await request(running.url, chat(name))
            assert (answer.status, "last: token-refused" in answer.error["message"]) == (502, True)


REFUSALS = [
    (429, "You exceeded your quota for org-AbCdEf12 on key sk-abcdefgh", "insufficient_quota", None),
    (404, "The model gpt-x does not exist or org-AbCdEf12 has no access", "model_not_found", None),
    (400, "Billing hard limit has been reached", "billing_hard_limit_reached", None),
    (
        400,
        "no tools in proj_abcdef123; see https:\\/\\/api.example.com\\/docs.",
        "x",
        "no tools in (hidden); see (hidden)",
    ),
    (422, "max_tokens is too large for user-4711abcd", "x", "max_tokens is too large for (hidden)"),
]


@pytest.mark.parametrize(("status", "words", "code", "kept"), REFUSALS)
@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_of_a_provider_names_no_account(
    status: int, words: str, code: str, kept: str | None, stream: bool
) -> None:
    async def refuse(call: EngineCall) -> None:
        text = f'{{"error":{{"message":"{words}","type":"t","param":null,"code":"{code}"}}}}'
        framing = f"content-type: application/json\r\ncontent-length: {len(text)}\r\n"
        await call.send(f"HTTP/1.1 {status} No\r\n{framing}retry-after: 99999\r\n\r\n{text}".encode())

    async with scripted_engine(refuse) as api:
        models = {"a": instance("a", api.url, engine=EXTERNAL_API)}
        async with running_gateway(fleet(own={}, external=models)) as running:
            answer = await request(running.url, chat("a", stream=stream))
            assert answer.status == status
            assert answer.fields["retry-after"] == "60"
            for name in (b"org-", b"sk-", b"proj_", b"4711", b"api.example", b"quota", b"Billing"):
                assert name not in answer.body
            assert kept is None or answer.json["error"]["message"] == kept
            assert status != 429 or answer.json["error"]["code"] == "provider_limit"


DELTAS = {
    "/v1/messages": ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "hi"}}),
    "/v1/responses": ("response.output_text.delta", {"delta": "hi"}),
}
FAILURES = [
    ("/v1/messages", "error", {"error": {"type": "rate_limit_error", "message": "WORDS"}}),
    ("/v1/responses", "error", {"code": "rate_limit_exceeded", "message": "WORDS", "param": None}),
    ("/v1/responses", "response.failed", {"response": {"error": {"code": "server_error", "message": "WORDS"}}}),
]


@pytest.mark.parametrize(("path", "name", "fields"), FAILURES)
async def test_error_within_a_stream_of_a_provider_names_no_account(path: str, name: str, fields: Any) -> None:
    words = "limit of org-AbCdEf12 and proj_abcdef123, see https://api.example.com/docs"

    async def fail(call: EngineCall) -> None:
        await call.start_stream()
        for kind, more in (DELTAS[path], (name, fields)):
            data = json.dumps({"type": kind} | more).replace("WORDS", words)
            await call.chunk(f"event: {kind}\ndata: {data}\n\n".encode())
            await asyncio.sleep(1.0)  # the first part has passed

    async with scripted_engine(fail) as api:
        models = {"a": instance("a", api.url, engine=EXTERNAL_API)}
        async with running_gateway(fleet(own={}, external=models)) as running:
            body = chat("a", stream=True, max_tokens=9) if path == "/v1/messages" else {"model": "a", "input": "Why?"}
            answer = await request(running.url, body | {"stream": True}, path=path)
            assert b"limit of (hidden) and (hidden), see (hidden)" in answer.body


async def test_two_models_at_one_address_have_their_own_tokens() -> None:
    async with scripted_engine(script) as api:
        models = {
            "a": instance("a", api.url, engine=EXTERNAL_API, access=EngineAuth(token_env="A")),
            "b": instance("b", api.url, engine=EXTERNAL_API, access=EngineAuth(token_env="B")),
            "c": instance("c", api.url, engine=EXTERNAL_API),
        }
        environ = {"A": "token-a", "B": "token-b"}
        async with running_gateway(fleet(own={}, external=models), environ=environ) as running:
            for _ in range(2):
                for name in models:
                    assert (await request(running.url, chat(name))).status == 200
        sent = {(call.json["model"], call.header("authorization")) for call in api.calls}
        assert sent == {("a", "Bearer token-a"), ("b", "Bearer token-b"), ("c", None)}


async def test_tenant_that_refuses_it_gets_the_next_model_of_the_cluster() -> None:
    async with served("down", "api", to("api"), to("own", after="api")) as (running, api):
        reply = await request(running.url, chat(), more=authorization("closed"))
        assert answered(reply) == (200, "chat/own", "chat/down Unavailable, chat/api ExternalRefused")
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        decision = logged.latest.route
        assert decision.describe().endswith("; withheld: chat/api, since the tenant refuses external endpoints"), (
            decision.describe()
        )
        shown = decision_out(logged).route
        assert (shown.reason, shown.withheld) == (decision.describe(), ["chat/api"])
        assert api.calls == []
        reply = await request(running.url, chat(), more=authorization("open"))
        assert answered(reply) == (200, "chat/api", "chat/down Unavailable")


@pytest.mark.parametrize("text", ["Why?", "x" * 300_000])
async def test_tenant_that_refuses_it_gets_a_typed_error_without_another_model(text: str) -> None:
    messages = [{"role": "user", "content": text}]
    async with served("down", "api", to("api")) as (running, api):
        reply = await request(running.url, chat(messages=messages), more=authorization("closed"))
        assert answered(reply) == (502, "chat/down", "chat/api ExternalRefused")
        named = await request(running.url, chat("api", messages=messages), more=authorization("closed"))
        assert (named.status, named.error["code"]) == (403, "external_endpoint_refused")
        (logged,) = running.gateway.decisions.find(named.fields["x-request-id"])
        assert (logged.latest.model_key, logged.latest.caller) == ("chat/api", "closed")
        assert (logged.latest.decision.chosen, logged.latest.decision.rule) == (None, "external")
        assert (logged.status, logged.error) == (403, "external_endpoint_refused")
        assert api.calls == []
        assert (await request(running.url, chat("api"), more=authorization("open"))).status == 200


async def test_target_that_the_tenant_refuses_falls_back() -> None:
    async with served("down", "api") as (running, api):
        current = running.gateway.stages.routers.fleet
        (known,) = current.routes.values()
        alone = replace(known, targets=(RouteTarget("chat/api"),), fallbacks=())
        both = replace(alone, name="both", names=("both",), fallbacks=(to("own"),))
        running.gateway.update_fleet(replace(current, version=2, routes={route.key: route for route in (alone, both)}))
        reply = await request(running.url, chat(), more=authorization("closed"))
        assert answered(reply) == (403, None, "chat/api ExternalRefused")
        (logged,) = running.gateway.decisions.latest(1, "chat/assistant")
        assert (logged.latest.decision.rule, logged.latest.route.withheld) == ("external", ("chat/api",))
        reply = await request(running.url, chat("both"), more=authorization("closed"))
        assert answered(reply) == (200, "chat/own", "chat/api ExternalRefused")
        assert api.calls == []


async def test_list_of_a_refusing_tenant_has_nothing_that_leads_outside_alone() -> None:
    async def get(running: RunningGateway, path: str, tenant: str) -> RawResponse:
        (reply,) = await send(running.url, get_request(path, more=authorization(tenant)))
        return reply

    async def listed(running: RunningGateway, tenant: str) -> set[str]:
        return {model["id"] for model in (await get(running, "/v1/models", tenant)).json["data"]}

    async with served("down", "api", to("api")) as (running, _):
        current = running.gateway.stages.routers.fleet
        (inside,) = current.routes.values()
        outside = replace(inside, name="outside", names=("outside",), targets=(RouteTarget("chat/api"),))
        routes = (
            inside,
            replace(outside, fallbacks=(to("own", KINDS[0]),)),  # of a kind that is not the refusal's
            replace(outside, name="both", names=("both",), fallbacks=(to("own"),)),
        )
        running.gateway.update_fleet(replace(current, version=2, routes={route.key: route for route in routes}))
        everything = {"down", "own", "api", "assistant", "outside", "both"}
        assert await listed(running, "open") == everything
        assert await listed(running, "closed") == everything - {"api", "outside"}
        for name in ("api", "chat/api", "outside"):
            reply = await get(running, f"/v1/models/{name}", "closed")
            assert (reply.status, reply.error["code"]) == (403, "external_endpoint_refused")
            assert (await get(running, f"/v1/models/{name}", "open")).status == 200


async def test_metrics_of_an_api_are_not_asked_for() -> None:
    async with scripted_engine(script) as api:
        outside = fleet(own={}, external={"api": instance("api", api.url, engine=EXTERNAL_API)})
        scraper = MetricsScraper(lambda: outside, running_clock())
        await scraper.scrape_once()
        assert (api.calls, scraper.errors) == ([], {})


def random_route(draw: random.Random, names: list[str]) -> Route:
    """Returns a route over these models, without loops."""
    targets = tuple(map(RouteTarget, dict.fromkeys(draw.choices(names, k=draw.randint(1, 3)))))
    route = Route("chat", "assistant", targets, names=("assistant",))
    for _ in range(draw.randint(1, 12)):
        after = draw.choice([None, *names])
        fallback = Fallback(draw.choice(names), frozenset(draw.sample(KINDS, draw.randint(1, 5))), after)
        longer = replace(route, fallbacks=(*route.fallbacks, fallback))
        if not find_loop(fallback_edges(longer)):
            route = longer
    return route


async def test_no_random_graph_leads_a_refusing_tenant_out_of_the_cluster() -> None:
    """200 graphs of models that answer or fail in all ways: each request ends with an answer of the
    cluster, or with an error.
    """
    draw, prefixes = random.Random(7), ("down", "full", "long", "no", "ok", "gone")
    counts = {"own": 0, "error": 0, "withheld": 0, "left": 0}
    async with scripted_engine(script) as engine, scripted_engine(script) as api:
        own = {f"{kind}-own{n}": instance(f"{kind}-own{n}", engine.url) for kind in prefixes for n in range(2)}
        outside = {
            name: replace(instance(name, api.url), engine=EXTERNAL_API)
            for name in [f"{kind}-api{n}" for kind in prefixes for n in range(2)]
        }
        for name in [name for name in (*own, *outside) if name.startswith("gone")]:
            place = own if name in own else outside
            place[name] = replace(place[name], state=InstanceState.DRAINING)
        keys = [f"chat/{name}" for name in (*own, *outside)]
        base = fleet(own=own, external=outside)
        async with running_gateway(base, api_keys=keys_of(OPEN, CLOSED)) as running:
            for number in range(200):
                route = random_route(draw, draw.sample(keys, draw.randint(2, 10)))
                running.gateway.update_fleet(replace(base, version=number + 2, routes={route.key: route}))
                body = chat(stream=draw.random() < 0.3)
                reply = await request(running.url, body, more=authorization("closed"))
                assert api.calls == [], route
                counts["own" if reply.status == 200 else "error"] += 1
                counts["withheld"] += "ExternalRefused" in (reply.fields.get("x-fairlead-fallback") or "")
                assert reply.status == 200 or reply.json["error"]["code"]
                await request(running.url, body, more=authorization("open"))
                counts["left"] += bool(api.calls)
                api.calls.clear()
            assert running.gateway.inflight_count() == 0
    assert min(counts.values()) > 20, counts


async def test_token_file_is_read_and_the_log_has_no_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text("of-the-file\n")
    async with served("down", "api", to("api"), access=EngineAuth(token_file=str(file))) as (running, api):
        reply = await request(running.url, chat(), more=authorization("open"))
        assert reply.status == 200
        assert [call.header("authorization") for call in api.calls] == ["Bearer of-the-file"]
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        assert "of-the-file" not in repr(decision_out(logged))
        assert "of-the-file" not in repr(reply)
    assert "of-the-file" not in caplog.text
