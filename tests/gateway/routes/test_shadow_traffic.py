"""Shadow traffic at a gateway: what is copied and what ends a copy. Originals notice nothing."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Model, RequestPolicy, Role
from fairlead.limits import Limits
from fairlead.routes.model import FailureKind, Fallback, RequestRewrite, Route, RouteTarget, Shadow
from fairlead.tenants.model import CacheSharing, Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import EngineCall, HangUp, hang_up, responds, scripted_engine, token, usage
from fairlead_testing.gateway.limited_gateway import limited_gateway
from fairlead_testing.gateway.running_gateway import RunningGateway, fleet_of, running_gateway
from fairlead_testing.gateway.tenant_keys import authorization, keys_of
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

ROUTE = Route("chat", "assistant", (RouteTarget("chat/big"),), names=("assistant",), shadow=Shadow("chat/next"))
BIG, NEXT = "chat/big", "chat/next"
Script = Callable[[EngineCall], Awaitable[None]]


async def answer(call: EngineCall) -> None:
    """Answers with three tokens, the shadow with four."""
    name = call.json["model"]
    words = ["a", "b", "c", "d"] if name == "next" else ["a", "b", "c"]
    if not call.json.get("stream"):
        counted = usage(7, 0, len(words))["usage"]
        await call.respond({"model": name, "choices": [{"message": {"content": "".join(words)}}], "usage": counted})
        return
    await call.start_stream()
    for word in words:
        await call.event({"model": name, **token(word, "stop" if word == words[-1] else None)})
    if (call.json.get("stream_options") or {}).get("include_usage"):
        await call.event(usage(7, 0, len(words)))
    await call.finish()


fail = responds({"error": {"message": "oh", "type": "x", "code": 500}}, "500 Internal Server Error")
overload = responds({"error": {"message": "full", "type": "x", "code": 503}}, "503 Service Unavailable")


class PausedAnswer:
    """A script that answers when it is let go, and notices who leaves."""

    def __init__(self, *, stream_first: bool = False) -> None:
        self.let_go = asyncio.Event()
        self.waiting = self.closed = 0
        self._stream_first = stream_first

    async def __call__(self, call: EngineCall) -> None:
        self.waiting += 1
        if self._stream_first and call.json.get("stream"):
            await call.start_stream()
            await call.event({"model": "next", **token("a")})
        closed = asyncio.create_task(call.wait_closed())
        released = asyncio.create_task(self.let_go.wait())
        await asyncio.wait((closed, released), return_when=asyncio.FIRST_COMPLETED)
        released.cancel()
        if closed.done():
            self.closed += 1
            raise HangUp
        closed.cancel()
        await asyncio.gather(closed, return_exceptions=True)
        await answer(call)


@asynccontextmanager
async def shadowed(
    route: Route = ROUTE, *tenants: Tenant, limits: Limits | None = None, policy: RequestPolicy | None = None,
    profile: EngineProfile | None = None, role: Role = Role.SERVE, **scripts: Script,
) -> AsyncIterator[tuple[RunningGateway, list[EngineCall]]]:  # fmt: skip
    """Runs a gateway with one engine, which serves the models `big` and `next`."""

    async def script(call: EngineCall) -> None:
        await scripts.get(call.json["model"], answer)(call)

    async with scripted_engine(script) as engine:
        base = fleet_of([engine.url])
        ((instance,),) = base.instances.values()
        models = {f"chat/{name}": Model("chat", name, requests=policy or RequestPolicy()) for name in ("big", "next")}
        placed = {
            key: (replace(instance, namespace="chat", model=model.name, id=f"{model.name}/0", profile=profile),)
            for key, model in models.items()
        }
        if role is not Role.SERVE:
            placed[NEXT] = (*placed[NEXT], replace(placed[NEXT][0], id="next/1", role=role))
        fleet = replace(base, models=models, instances=placed, routes={route.key: route})
        keys = keys_of(*tenants) if tenants else None
        async with running_gateway(fleet, limits, api_keys=keys) as running:
            yield running, engine.calls


def chat(text: str = "Why?", **more: Any) -> dict[str, Any]:
    return {"model": "assistant", "messages": [{"role": "user", "content": text}], **more}


def copies(running: RunningGateway) -> dict[str, int]:
    """Returns the copies by outcome."""
    series = running.gateway.telemetry.models.get(NEXT)
    return {} if series is None else {outcome: count for (_, outcome), count in series.shadow_copies.items()}


def sums(running: RunningGateway) -> dict[str, int]:
    series = running.gateway.telemetry.models.get(NEXT)
    return {} if series is None else {name: count for (_, name), count in series.shadow_sums.items()}


async def until_compared(running: RunningGateway, count: int = 1) -> dict[str, int]:
    await wait_until(lambda: sums(running).get("compared", 0) >= count)
    return sums(running)


async def until_ended(running: RunningGateway, outcome: str, count: int = 1) -> None:
    await wait_until(lambda: copies(running).get(outcome, 0) >= count)


@pytest.mark.parametrize("stream", [False, True])
async def test_copy_is_answered_by_the_shadow_and_compared(stream: bool) -> None:
    async with shadowed() as (running, calls):
        for number in range(2):  # a further connection, then an idle one, which has a path of its own
            reply = await request(running.url, chat(stream=stream))
            assert (reply.status, reply.fields["x-fairlead-model"]) == (200, BIG)
            assert b'"model":"assistant"' in reply.body
            assert b"next" not in reply.body
            seen = await until_compared(running, number + 1)
        assert Counter(call.json["model"] for call in calls) == {"big": 2, "next": 2}
        assert copies(running) == {"answered": 2}
        assert (seen["output_tokens"], seen["output_tokens:copy"], seen["output_tokens:original"]) == (2, 8, 6)
        assert (seen["errors:copy"], seen["errors:original"]) == (0, 0)
        assert ("ttft:copy" in seen, "tpot:original" in seen) == (stream, stream)
        assert {load.inflight for load in running.loads().values()} == {0}
        assert running.gateway.copies.running_count() == 0


async def test_decision_log_names_the_shadow_and_holds_no_copy() -> None:
    async with shadowed() as (running, _):
        reply = await request(running.url, chat())
        await until_compared(running)
        (logged,) = running.gateway.decisions.latest(10)
        assert logged.records[0].request_id == reply.fields["x-fairlead-decision"]
        assert logged.latest.route.describe().endswith("its only target; a copy is for chat/next")
        routed = running.gateway.telemetry.models[NEXT]
        assert (routed.by_rule, routed.by_status) == ({}, {})


@pytest.mark.parametrize(
    ("script", "outcome"), [(fail, "failed"), (hang_up, "failed"), (overload, "no-room")]
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
async def test_failing_shadow_changes_nothing_for_the_original(script: Script, outcome: str, stream: bool) -> None:
    async with shadowed(next=script) as (running, _):
        assert (await request(running.url, chat(stream=stream))).status == 200
        await until_ended(running, outcome)
        if outcome == "failed":
            seen = await until_compared(running)
            assert (seen["errors:copy"], seen["errors:original"]) == (1, 0)
            assert "output_tokens" not in seen
        assert (await request(running.url, chat(stream=stream))).status == 200


async def test_original_does_not_wait_for_its_copy() -> None:
    paused = PausedAnswer()
    async with shadowed(next=paused) as (running, _):
        assert (await request(running.url, chat())).status == 200
        await wait_until(lambda: paused.waiting == 1)
        assert running.gateway.inflight_count() == 0
        assert running.gateway.copies.running_count() == 1
        paused.let_go.set()
        await until_compared(running)


async def test_failed_original_is_compared_also_if_a_fallback_answers() -> None:
    route = replace(ROUTE, fallbacks=(Fallback(NEXT, frozenset({FailureKind.UNAVAILABLE})),))
    async with shadowed(big=fail) as (running, _):
        assert (await request(running.url, chat())).status == 502
        seen = await until_compared(running)
        assert (seen["errors:copy"], seen["errors:original"]) == (0, 1)
    async with shadowed(route, big=fail) as (running, calls):
        reply = await request(running.url, chat())
        assert (reply.status, reply.fields["x-fairlead-model"]) == (200, NEXT)
        seen = await until_compared(running)
        assert (seen["errors:copy"], seen["errors:original"]) == (0, 1)
        assert Counter(call.json["model"] for call in calls) == {"big": 1, "next": 2}  # the fallback is no copy


async def test_copies_beyond_the_limit_are_not_made() -> None:
    paused = PausedAnswer()
    async with shadowed(next=paused, limits=Limits(shadow_copies=2)) as (running, _):
        for number in range(5):
            assert (await request(running.url, chat(f"{number}"))).status == 200
        await until_ended(running, "too-many", 3)
        assert running.gateway.copies.running_count() == 2
        paused.let_go.set()
        await until_ended(running, "answered", 2)
        await request(running.url, chat("again"))
        await until_ended(running, "answered", 3)


async def test_only_a_share_of_conversations_is_copied_with_all_of_their_turns() -> None:
    async with shadowed(replace(ROUTE, shadow=Shadow(NEXT, 50))) as (running, calls):
        for session in range(12):
            for _ in range(3):
                await request(running.url, chat(), more=f"x-session-id: s{session}\r\n")
                await wait_until(lambda: running.gateway.copies.running_count() == 0)
        turns = Counter(call.header("x-session-id") for call in calls if call.json["model"] == "next")
        assert set(turns.values()) == {3}
        assert 0 < len(turns) < 12


async def test_the_copy_of_a_response_is_not_stored() -> None:
    async with shadowed() as (running, calls):
        body = {"model": "assistant", "input": "Why?", "store": True}
        assert (await request(running.url, body, path="/v1/responses")).status == 200
        await wait_until(lambda: len(calls) == 2)
        assert sorted((call.json["model"], call.json["store"]) for call in calls) == [("big", False), ("next", False)]


async def test_requests_without_text_are_not_copied() -> None:
    async with shadowed() as (running, calls):
        body = {"model": "assistant", "input": "Why?"}
        assert (await request(running.url, body, path="/v1/embeddings")).status == 200
        await until_ended(running, "unsupported")
        assert [call.json["model"] for call in calls] == ["big"]


async def test_large_bodies_are_not_copied() -> None:
    async with shadowed() as (running, calls):
        assert (await request(running.url, chat("x" * 300_000))).status == 200
        await until_ended(running, "too-large")
        assert [call.json["model"] for call in calls] == ["big"]


async def test_request_that_goes_to_the_shadow_itself_is_not_copied() -> None:
    async with shadowed(replace(ROUTE, targets=(RouteTarget(NEXT), RouteTarget(BIG, 0)))) as (running, calls):
        assert (await request(running.url, chat())).fields["x-fairlead-model"] == NEXT
        assert (copies(running), len(calls)) == ({}, 1)


async def test_model_with_prefill_instances_gets_no_copies() -> None:
    async with shadowed(role=Role.PREFILL) as (running, _):
        assert (await request(running.url, chat())).status == 200
        assert copies(running) == {"unsupported": 1}


async def test_copy_is_ended_when_clients_need_its_instance() -> None:
    paused = PausedAnswer(stream_first=True)
    slow = EngineProfile("slow", prefill_token_seconds=0.01)
    async with shadowed(next=paused, profile=slow) as (running, _), asyncio.TaskGroup() as group:
        await request(running.url, chat(stream=True))
        await wait_until(lambda: paused.waiting == 1)
        # A client's own prompt waits there, of far more than half a second.
        real = group.create_task(request(running.url, chat("word " * 2_000, model="next")))
        await until_ended(running, "shed")
        await wait_until(lambda: paused.closed == 1)
        await request(running.url, chat("another"))
        await until_ended(running, "no-room")
        paused.let_go.set()
        assert (await real).status == 200
        assert "compared" not in sums(running)


async def test_copy_ends_with_the_connection_of_its_client() -> None:
    shadow, big = PausedAnswer(), PausedAnswer(stream_first=True)
    async with shadowed(next=shadow, big=big) as (running, _):
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(chat(stream=True)))
        await wait_until(lambda: shadow.waiting == 1 and big.waiting == 1)
        await connection.close()
        await until_ended(running, "abandoned")
        await wait_until(lambda: shadow.closed == 1)


async def test_drain_ends_copies_and_makes_no_more() -> None:
    paused = PausedAnswer()
    async with shadowed(next=paused) as (running, _):
        await request(running.url, chat())
        await wait_until(lambda: paused.waiting == 1)
        running.gateway.drain()
        await until_ended(running, "drained")
        assert running.gateway.copies.running_count() == 0
        await wait_until(lambda: paused.closed == 1)


async def test_copy_keeps_the_salt_of_its_tenant_and_comes_last() -> None:
    policy = RequestPolicy(sets_priority=True, engines=frozenset({"vllm"}))
    tenants = (Tenant("acme"), Tenant("open", cache_sharing=CacheSharing.CLUSTER))
    async with shadowed(ROUTE, *tenants, policy=policy) as (running, calls):
        for number, tenant in enumerate(("acme", "open")):
            await request(running.url, chat(), more=authorization(tenant))
            await until_compared(running, number + 1)
    bodies = {(index, call.json["model"]): call.json for index, call in enumerate(calls)}
    by_model = {name: [body for (_, model), body in bodies.items() if model == name] for name in ("big", "next")}
    assert [body.get("cache_salt") for body in by_model["big"]] == [body.get("cache_salt") for body in by_model["next"]]
    assert by_model["next"][0]["cache_salt"]
    assert [body["priority"] for body in by_model["big"]] == [1, 1]
    assert [body["priority"] for body in by_model["next"]] == [3, 3]
    assert all(call.header("authorization") is None for call in calls)


async def test_copy_comes_last_also_without_tenants() -> None:
    policy = RequestPolicy(sets_priority=True, engines=frozenset({"vllm"}))
    async with shadowed(policy=policy) as (running, calls):
        await request(running.url, chat())
        await until_compared(running)
        assert {call.json["model"]: call.json.get("priority") for call in calls} == {"big": None, "next": 3}


async def test_tenant_that_may_not_use_the_shadow_is_not_copied() -> None:
    async with shadowed(ROUTE, Tenant("acme", models=frozenset({BIG}))) as (running, calls):
        assert (await request(running.url, chat(), more=authorization("acme"))).status == 200
        assert (copies(running), len(calls)) == ({}, 1)


async def test_limits_count_no_copy_and_a_refused_request_has_none() -> None:
    limit = Limit(LimitUnit.REQUESTS, 2, Window.DAY)
    route = Route("default", "assistant", (RouteTarget("default/tiny"),), names=("assistant",), shadow=Shadow(NEXT))
    async with limited_gateway(answer, [Tenant("acme", limits=(limit,))], routes=[route]) as gateway:
        running = gateway.running
        fleet = running.gateway.stages.routers.fleet
        instance = replace(fleet.instances["default/tiny"][0], namespace="chat", model="next", id="next/0")
        models = {**fleet.models, NEXT: Model("chat", "next")}
        running.gateway.update_fleet(replace(fleet, models=models, instances={**fleet.instances, NEXT: (instance,)}))
        replies = [await gateway.chat("acme", model="assistant") for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        await until_compared(running, 2)
        assert Counter(call.json["model"] for call in gateway.calls) == {"tiny": 2, "next": 2}


async def test_parameters_of_the_route_are_set_in_copies_too() -> None:
    async with shadowed(replace(ROUTE, rewrite=RequestRewrite(caps=(("max_tokens", 5),)))) as (running, calls):
        await request(running.url, chat(max_tokens=50))
        await until_compared(running)
        assert [call.json["max_tokens"] for call in calls] == [5, 5]


async def test_metrics_show_both_sides() -> None:
    async with shadowed() as (running, _):
        await request(running.url, chat(stream=True))
        await until_compared(running)
        gateway = running.gateway
        text = gateway.telemetry.render(gateway.stages.routers.fleet, running.loads(), 1.0).decode()
        labels = 'model="chat/next",original="chat/big"'
        assert f'fairlead_gateway_shadow_copies_total{{{labels},outcome="answered"}} 1' in text
        assert f"fairlead_gateway_shadow_compared_total{{{labels}}} 1" in text
        assert f'fairlead_gateway_shadow_errors_total{{{labels},side="copy"}} 0' in text
        assert f'fairlead_gateway_shadow_output_tokens_sum{{{labels},side="copy"}} 4' in text
        assert f'fairlead_gateway_shadow_output_tokens_sum{{{labels},side="original"}} 3' in text
        assert f'fairlead_gateway_shadow_ttft_seconds_count{{{labels},side="original"}} 1' in text


async def test_shadow_outside_the_cluster_gets_no_copies() -> None:
    async with shadowed(policy=RequestPolicy(engines=frozenset({"openai"}))) as (running, calls):
        fleet = running.gateway.stages.routers.fleet
        assert fleet.models[NEXT].leaves_cluster
        running.gateway.update_fleet(replace(fleet, models={**fleet.models, BIG: Model("chat", "big")}))
        assert (await request(running.url, chat())).status == 200
        assert copies(running) == {"unsupported": 1}
        assert [call.json["model"] for call in calls] == ["big"]
