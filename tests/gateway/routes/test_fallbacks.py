"""Fallbacks at a gateway: which model answers, and what client, log and metrics learn of it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import InstanceState, Model, RequestPolicy, TokenPrice, UnknownFields
from fairlead.limits import Limits
from fairlead.routes.model import FailureKind, Fallback, RequestRewrite, Route, RouteTarget
from fairlead.tenants.model import Tenant
from fairlead_gateway.journal import Journal, JournalBounds
from fairlead_gateway.profiles.messages import TimingEvent, TimingEventKind
from fairlead_testing.engines.scripted import EngineCall, HangUp, hang_up, responds, scripted_engine, silent, token
from fairlead_testing.gateway.running_gateway import RecordedReports, RunningGateway, fleet_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawResponse, request
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

MODELS = ("big", "middle", "small")
DOWN = frozenset({FailureKind.UNAVAILABLE})
EVERY = frozenset(FailureKind)
Script = Callable[[EngineCall], Awaitable[None]]


def route(*fallbacks: Fallback, target: str = "chat/big") -> Route:
    return Route("chat", "assistant", (RouteTarget(target),), names=("assistant",), fallbacks=fallbacks)


def to(model: str, when: frozenset[FailureKind] = DOWN, after: str | None = None) -> Fallback:
    return Fallback(f"chat/{model}", when, after and f"chat/{after}")


async def answer(call: EngineCall) -> None:
    name = call.json["model"]
    if call.json.get("stream"):
        await call.start_stream()
        await call.event({"model": name, **token("hi", "stop")})
        await call.finish()
        return
    content = f"from {name}"
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    await call.respond({"model": name, "choices": [{"message": {"content": content}}], "usage": usage})


fail = responds({"error": {"message": "oh", "type": "x", "param": None, "code": 500}}, "500 Internal Server Error")
overload = responds({"error": {"message": "full", "type": "x", "param": None, "code": 503}}, "503 Service Unavailable")


def refuse(message: str, status: str = "400 Bad Request") -> Script:
    return responds({"error": {"message": message, "type": "BadRequestError", "param": None, "code": 400}}, status)


async def break_off(call: EngineCall) -> None:
    await call.start_stream()
    await call.event({"model": call.json["model"], **token("hi")})
    raise HangUp


@asynccontextmanager
async def served(
    routes: Route, *tenants: Tenant, states: dict[str, InstanceState] | None = None,
    prices: dict[str, TokenPrice] | None = None, policies: dict[str, RequestPolicy] | None = None,
    limits: Limits | None = None, **scripts: Script,
) -> AsyncIterator[RunningGateway]:  # fmt: skip
    """Runs a gateway with one engine for each of `MODELS`; those that have no script answer."""

    async def script(call: EngineCall) -> None:
        await scripts.get(call.json["model"], answer)(call)

    async with scripted_engine(script) as engine:
        base = fleet_of([engine.url])
        ((instance,),) = base.instances.values()
        models: dict[str, Model] = {}
        placed = {}
        for name in MODELS:
            policy = (policies or {}).get(name, RequestPolicy())
            models[f"chat/{name}"] = Model("chat", name, price=(prices or {}).get(name), requests=policy)
            state = (states or {}).get(name, InstanceState.READY)
            placed[f"chat/{name}"] = (replace(instance, namespace="chat", model=name, id=f"{name}/0", state=state),)
        fleet = replace(base, models=models, instances=placed, routes={routes.key: routes})
        keys = keys_of(*tenants) if tenants else None
        async with running_gateway(fleet, limits, api_keys=keys) as running:
            yield running


def chat(text: str = "Why?", **more: Any) -> dict[str, Any]:
    return {"model": "assistant", "messages": [{"role": "user", "content": text}], **more}


def answered(reply: RawResponse) -> tuple[int, str | None, str | None]:
    return reply.status, reply.fields.get("x-fairlead-model"), reply.fields.get("x-fairlead-fallback")


CHAIN = route(to("middle", EVERY), to("small", EVERY, after="middle"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["Why?", "x" * 300_000])
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (fail, "Unavailable"),
        (hang_up, "Unavailable"),
        (overload, "NoCapacity"),
        (refuse("slow down", "429 Too Many Requests"), "NoCapacity"),
        (refuse("This model's maximum context length is 8 tokens."), "ContextTooLong"),
        (refuse("no tools here"), "Refused"),
    ],
)
async def test_next_model_answers_and_header_and_log_say_why(
    script: Script, kind: str, stream: bool, text: str
) -> None:
    async with served(CHAIN, big=script) as running:
        for _ in range(2):  # a further connection, then an idle one, which has a path of its own
            reply = await request(running.url, chat(text, stream=stream))
            assert answered(reply) == (200, "chat/middle", f"chat/big {kind}")
            assert b'"model":"assistant"' in reply.body
            (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
            assert [record.model_key for record in logged.records] == ["chat/big", "chat/middle"]
            assert [record.attempt for record in logged.records] == [1, 2]
            assert (logged.status, logged.model_key) == (200, "chat/middle")
            decision = logged.latest.route
            assert (
                f"→ chat/big, its only target; chat/big {kind} → chat/middle, of the least weight ("
                in decision.describe()
            )
        assert running.gateway.inflight_count() == 0
        assert running.gateway.telemetry.models["chat/big"].fallbacks == {(kind, "chat/middle"): 2}


async def test_model_without_a_ready_instance_is_passed_without_an_attempt() -> None:
    async with served(CHAIN, states={"big": InstanceState.DRAINING, "middle": InstanceState.DRAINING}) as running:
        reply = await request(running.url, chat())
        assert answered(reply) == (200, "chat/small", "chat/big Unavailable")
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        assert "past chat/middle without a ready instance" in logged.latest.route.describe()
    async with served(CHAIN, states=dict.fromkeys(MODELS, InstanceState.DRAINING)) as running:
        reply = await request(running.url, chat())
        assert (reply.status, reply.error["code"]) == (503, "no_ready_instance")
        assert "x-fairlead-fallback" not in reply.fields


async def test_target_that_is_not_served_has_fallbacks_too() -> None:
    async with served(route(to("small"), target="chat/gone")) as running:
        for text in ("Why?", "x" * 300_000):
            reply = await request(running.url, chat(text))
            assert answered(reply) == (200, "chat/small", "chat/gone Unavailable")


async def test_failures_cascade_to_the_last_model_and_to_its_error() -> None:
    async with served(CHAIN, big=fail, middle=overload) as running:
        reply = await request(running.url, chat())
        assert answered(reply) == (200, "chat/small", "chat/big Unavailable, chat/middle NoCapacity")
    async with served(CHAIN, big=fail, middle=overload, small=fail) as running:
        reply = await request(running.url, chat())
        assert answered(reply) == (502, "chat/small", "chat/big Unavailable, chat/middle NoCapacity")
        assert reply.error["code"] == "engine_failed"
    async with served(CHAIN, big=fail, middle=refuse("no"), small=refuse("not here either")) as running:
        reply = await request(running.url, chat())
        assert answered(reply) == (400, "chat/small", "chat/big Unavailable, chat/middle Refused")
        assert reply.json["error"]["message"] == "not here either"
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        assert logged.failures == (("big/0", "status-500"),)


@pytest.mark.parametrize(
    ("script", "status"), [(refuse("no"), 400), (overload, 503), (refuse("maximum context length is 8 tokens"), 400)]
)
async def test_failure_of_another_kind_stays_the_answer(script: Script, status: int) -> None:
    async with served(route(to("small")), big=script) as running:
        reply = await request(running.url, chat())
        assert answered(reply) == (status, "chat/big", None)


async def test_model_named_by_its_client_has_no_fallback() -> None:
    async with served(CHAIN, big=fail) as running:
        reply = await request(running.url, chat(model="big"))
        assert answered(reply) == (502, None, None)


async def test_nothing_is_tried_elsewhere_after_the_first_byte() -> None:
    async with served(CHAIN, big=break_off) as running:
        reply = await request(running.url, chat(stream=True))
        assert answered(reply) == (200, "chat/big", None)
        assert b"stream_cut" in reply.body
        assert running.gateway.telemetry.models["chat/big"].fallbacks == {}


async def test_request_that_broke_two_models_is_not_given_to_a_third() -> None:
    async with served(CHAIN, big=hang_up, middle=hang_up) as running:
        reply = await request(running.url, chat())
        assert answered(reply) == (502, "chat/middle", "chat/big Unavailable")


async def test_cheaper_of_two_models_is_next() -> None:
    prices = {"middle": TokenPrice(400, 400, 400), "small": TokenPrice(100, 100, 100)}
    async with served(route(to("middle"), to("small")), big=fail, prices=prices) as running:
        assert answered(await request(running.url, chat())) == (200, "chat/small", "chat/big Unavailable")
    async with served(route(to("middle"), to("small")), big=fail) as running:
        assert answered(await request(running.url, chat())) == (200, "chat/middle", "chat/big Unavailable")


async def test_tenant_gets_no_model_that_it_may_not_use_and_no_hidden_names() -> None:
    acme = Tenant("acme", models=frozenset({"chat/big", "chat/small"}))
    zeta = Tenant("zeta", shows_placement=False)
    async with served(route(to("middle"), to("small")), acme, zeta, big=fail) as running:
        reply = await request(running.url, chat(), more=authorization("acme"))
        assert answered(reply) == (200, "chat/small", "chat/big Unavailable")
        hidden = await request(running.url, chat(), more=authorization("zeta"))
        assert answered(hidden) == (200, None, None)


@pytest.mark.parametrize("text", ["Why?", "x" * 300_000])
async def test_fallback_that_takes_no_such_request_is_a_failure_too(text: str) -> None:
    strict = RequestPolicy(unknown_fields=UnknownFields.REFUSE)
    async with served(CHAIN, big=fail, policies={"middle": strict}) as running:
        reply = await request(running.url, chat(text, unheard_of=1))
        assert answered(reply) == (200, "chat/small", "chat/big Unavailable, chat/middle Refused")
    async with served(route(to("middle")), big=fail, policies={"middle": strict}) as running:
        reply = await request(running.url, chat(text, unheard_of=1))
        assert answered(reply) == (400, None, "chat/big Unavailable")


async def test_last_fallback_without_an_instance_ends_in_the_log() -> None:
    async with served(route(to("middle")), big=fail) as running:
        registry = running.gateway.stages.routers.serving
        router = registry.router("chat/middle")
        # Its instance leaves after the choice, before the request reaches it.
        router.update(registry.fleet.models["chat/middle"], [])
        reply = await request(running.url, chat())
        assert answered(reply) == (503, None, "chat/big Unavailable")
        (logged,) = running.gateway.decisions.latest(1)
        assert [(record.model_key, record.decision.rule) for record in logged.records][1:] == [
            ("chat/middle", "fallback")
        ]
        assert (logged.status, logged.error) == (503, "no_ready_instance")


async def test_fallback_gets_the_parameters_of_the_route_too() -> None:
    rewrite = RequestRewrite(caps=(("max_tokens", 4),))
    sent: list[Any] = []

    async def record(call: EngineCall) -> None:
        sent.append(call.json["max_tokens"])
        await answer(call)

    async with served(replace(CHAIN, rewrite=rewrite), big=fail, middle=record) as running:
        reply = await request(running.url, chat(max_tokens=100))
        assert answered(reply) == (200, "chat/middle", "chat/big Unavailable")
        (logged,) = running.gateway.decisions.find(reply.fields["x-fairlead-decision"])
        assert "; sets max_tokens=4; chat/big Unavailable → chat/middle" in logged.latest.route.describe()
    assert sent == [4]


async def test_many_requests_fall_back_at_once() -> None:
    async with served(CHAIN, big=fail, middle=overload) as running:
        replies = await asyncio.gather(*(request(running.url, chat(f"{number}")) for number in range(40)))
        assert {reply.status for reply in replies} == {200}
        assert {reply.fields["x-fairlead-model"] for reply in replies} == {"chat/small"}
        assert running.gateway.inflight_count() == 0


QUICK = Limits(first_token_min_seconds=0.05, first_token_factor=1.0)


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_that_wait_at_a_hanging_engine_fall_back_when_it_is_judged(stream: bool) -> None:
    async with served(route(to("middle")), limits=QUICK, big=silent) as running:
        waiting = [request(running.url, chat(f"{number}", stream=stream, max_tokens=1)) for number in range(4)]
        replies = await asyncio.gather(*waiting)
        assert {answered(reply) for reply in replies} == {(200, "chat/middle", "chat/big Unavailable")}
        assert running.gateway.telemetry.models["chat/big"].fallbacks == {("Unavailable", "chat/middle"): 4}
        assert {load.inflight for load in running.loads().values()} == {0}


async def test_one_silent_request_or_a_model_without_fallback_judges_nothing() -> None:
    async with served(route(to("middle")), limits=QUICK, big=silent) as running:
        reply = await request(running.url, chat(stream=True), more="x-request-timeout: 0.5\r\n")
        assert answered(reply) == (504, "chat/big", None)
    async with served(route(), limits=QUICK, big=silent) as running:
        waiting = [
            request(running.url, chat(f"{number}", stream=True), more="x-request-timeout: 0.5\r\n")
            for number in range(4)
        ]
        assert {reply.status for reply in await asyncio.gather(*waiting)} == {504}


def test_times_at_the_next_model_begin_when_it_gets_the_request() -> None:
    answered_at: list[float] = []

    async def overload_late(call: EngineCall) -> None:
        answered_at.append(asyncio.get_running_loop().time())
        await overload(call)

    async def main() -> list[TimingEvent]:
        sender = RecordedReports()
        async with served(CHAIN, big=overload_late) as running:
            for _ in range(2):  # the second one finds idle connections
                loop = asyncio.get_running_loop()
                running.gateway.stages._parts.journal = Journal(sender, loop, bounds=JournalBounds(timing_seconds=0.01))
                sender.reports.clear()
                assert answered(await request(running.url, chat()))[1] == "chat/middle"
                await wait_until(lambda: any(timing.kind == TimingEventKind.FINISHED for timing in sender.timings))
        return sender.timings

    (at_next,) = [attempt.at for attempt in run_async(main()) if attempt.instance == "middle/0"]
    assert at_next >= answered_at[-1]
