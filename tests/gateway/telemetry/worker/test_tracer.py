"""Trace contexts reach every engine; only sampled requests have spans; none holds a prompt."""

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.fleet.model import Fleet, Instance, Model, Role
from fairlead.limits import Limits
from fairlead_gateway.telemetry.worker.observers import RequestObservers
from fairlead_gateway.telemetry.worker.settings import ObservabilitySettings
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    ScriptedEngine,
    hang_up,
    responds,
    role,
    scripted_engine,
    streams,
    token,
    usage,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request
from fairlead_testing.http.raw_client import request as ask
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer
from fairlead_testing.simulated.event_loop import running_clock
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

Script = Callable[[EngineCall], Awaitable[None]]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "canary-7c1e"
LONG = f"tell me everything about {CANARY} " * 40
LIMITS = Limits(handoff_min_tokens=16, span_batch_seconds=0.0)
COLLECTED = {"/v1/traces": CannedResponse([b"{}"])}


def parent(flags: str, *more: str) -> str:
    return f"traceparent: 00-{TRACE}-{SPAN}-{flags}\r\n" + "".join(f"{header}\r\n" for header in more)


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": LONG}], "stream": True, "temperature": 0, **more}


failing = responds({"error": {"message": CANARY}}, "500 Internal Server Error")


async def prefilling(call: EngineCall) -> None:
    params = {"do_remote_prefill": True, "remote_block_ids": [[1]], "remote_engine_id": "e", "remote_request_id": "r"}
    params |= {"remote_host": "127.0.0.1", "remote_port": 5801, "tp_size": 1}
    await call.respond({"choices": [{"index": 0}], "kv_transfer_params": params})


def breaking_once() -> Script:
    met: list[EngineCall] = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.start_stream()
        named = {"id": f"c{len(met)}", "created": 1, "model": "tiny"}
        await call.event({**named, **role()})
        await call.event({**named, **token("one ")})
        if len(met) == 1:
            raise HangUp
        await call.event({**named, **token("two", "stop")})
        await call.event({**named, **usage(9, 4, 2)})
        await call.finish()

    return script


def sent(engine: ScriptedEngine, name: str = "traceparent") -> list[list[str]]:
    """The values of a header in every request that an engine got."""
    return [[value for key, value in call.fields if key == name] for call in engine.calls]


def observed(collector: str, share: float = 0.0) -> RequestObservers:
    what = ObservabilitySettings(trace_endpoint=collector, trace_share=share)
    draw = random.Random(7).getrandbits
    return RequestObservers(what, clock=running_clock(), limits=LIMITS, instance_id="gw", draw_bits=draw)


@dataclass
class Scene:
    """A gateway with a collector; ``spans`` are complete once it has closed."""

    collector: CannedServer
    engines: list[ScriptedEngine]
    own: dict[str, int] = field(default_factory=dict)
    spans: list[dict[str, Any]] = field(default_factory=list)


@asynccontextmanager
async def playing(
    scripts: Sequence[Script], share: float = 0.0, roles: Sequence[Role] = ()
) -> AsyncIterator[tuple[Scene, RunningGateway]]:
    async with AsyncExitStack() as stack:
        collector = stack.enter_context(CannedServer(COLLECTED))
        engines = [await stack.enter_async_context(scripted_engine(script)) for script in scripts]
        fleet = fleet_of([engine.url for engine in engines])
        if roles:
            instances = tuple(
                Instance(f"{role.value[0]}{n}", "default", "tiny", role.value, engine.url, role=role, transfer="nixl")
                for n, (role, engine) in enumerate(zip(roles, engines, strict=True))
            )
            fleet = Fleet(1, 1, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: instances})
        scene = Scene(collector, engines)
        async with running_gateway(fleet, LIMITS, observers=observed(collector.url, share)) as running:
            yield scene, running
            scene.own = running.gateway.telemetry.non_model_counters
    bodies = [json.loads(asked.body) for asked in collector.requests]
    assert CANARY not in str(bodies)
    scene.spans = [
        {
            **span,
            "attributes": {
                attribute["key"]: next(iter(attribute["value"].values())) for attribute in span["attributes"]
            },
        }
        for body in bodies
        for resource in body["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


# --- propagation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["00", "01", "03"])
async def test_without_tracing_the_clients_context_reaches_the_engine_as_it_came(flags: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await ask(running.url, chat(), more=parent(flags, "tracestate: a=1", "tracestate: b=2"))
        assert answer.status == 200
        assert sent(engine) == [[f"00-{TRACE}-{SPAN}-{flags}"]]
        assert sent(engine, "tracestate") == [["a=1,b=2"]]
        assert "traceresponse" not in answer.fields
        assert (await ask(running.url, chat())).status == 200
        assert sent(engine)[1] == []


@pytest.mark.parametrize("wrong", [f"00-{'0' * 32}-{SPAN}-01", "x", f"00-{TRACE}-{SPAN}-01\r\ntraceparent: x"])
async def test_a_malformed_context_is_dropped_with_its_state(wrong: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        await ask(running.url, chat(), more=f"traceparent: {wrong}\r\ntracestate: a=1\r\n")
        assert (sent(engine), sent(engine, "tracestate")) == ([[]], [[]])


async def test_both_legs_of_a_hand_off_get_the_clients_context() -> None:
    async with playing([prefilling, well_behaved], roles=[Role.PREFILL, Role.DECODE]) as (scene, running):
        assert (await ask(running.url, chat(), more=parent("00"))).status == 200
    assert scene.spans == []
    assert sent(scene.engines[0]) == sent(scene.engines[1]) == [[f"00-{TRACE}-{SPAN}-00"]]


# --- sampling -----------------------------------------------------------------------------------------------------------


async def test_sampled_flag_of_the_client_is_honoured_and_the_engine_gets_the_attempt_span() -> None:
    async with playing([well_behaved], share=0.0) as (scene, running):
        answer = await ask(running.url, chat(max_tokens=9), more=parent("01", "tracestate: a=1"))
        assert answer.fields["traceresponse"].startswith(f"00-{TRACE}-")
    request, attempt = scene.spans
    assert (request["traceId"], request["parentSpanId"], request["kind"]) == (TRACE, SPAN, 2)
    assert (attempt["traceId"], attempt["parentSpanId"], attempt["kind"]) == (TRACE, request["spanId"], 3)
    assert sent(scene.engines[0]) == [[f"00-{TRACE}-{attempt['spanId']}-01"]]
    assert sent(scene.engines[0], "tracestate") == [["a=1"]]
    assert request["traceState"] == "a=1"
    assert request["name"] == "chat tiny"
    shown = request["attributes"]
    assert shown["gen_ai.operation.name"] == "chat"
    assert shown["gen_ai.provider.name"] == "fairlead"
    assert shown["gen_ai.request.model"] == MODEL_KEY
    assert shown["gen_ai.request.max_tokens"] == "9"
    assert shown["http.response.status_code"] == "200"
    assert shown["url.path"] == "/v1/chat/completions"
    assert int(shown["gen_ai.usage.input_tokens"]) > 0
    assert int(shown["gen_ai.usage.output_tokens"]) > 0
    assert shown["gen_ai.response.time_to_first_chunk"] > 0
    assert attempt["attributes"]["fairlead.instance"] == "e-0/0/0"
    assert attempt["attributes"]["fairlead.rule"] == "only-one"
    assert int(request["startTimeUnixNano"]) <= int(attempt["startTimeUnixNano"])
    assert int(attempt["endTimeUnixNano"]) <= int(request["endTimeUnixNano"])
    assert request["status"] == {}


async def test_what_its_caller_does_not_record_is_not_recorded_here_either() -> None:
    async with playing([well_behaved], share=1.0) as (scene, running):
        assert "traceresponse" not in (await ask(running.url, chat(), more=parent("00"))).fields
    assert scene.spans == []
    assert sent(scene.engines[0]) == [[f"00-{TRACE}-{SPAN}-00"]]


@pytest.mark.parametrize("more", ["", f"traceparent: 00-{TRACE}-{SPAN}\r\ntracestate: a=1\r\n"])
async def test_a_request_without_a_right_context_begins_a_trace_when_it_is_drawn(more: str) -> None:
    async with playing([well_behaved], share=1.0) as (scene, running):
        assert (await ask(running.url, chat(), more=more)).status == 200
    request, attempt = scene.spans
    assert "parentSpanId" not in request
    assert request["traceId"] not in (TRACE, "0" * 32)
    assert sent(scene.engines[0]) == [[f"00-{request['traceId']}-{attempt['spanId']}-01"]]
    assert sent(scene.engines[0], "tracestate") == [[]]


async def test_about_the_share_of_requests_is_drawn_and_the_others_make_nothing() -> None:
    async with playing([well_behaved], share=0.25) as (scene, running):
        connection = await RawConnection.connect(running.url)
        for _ in range(80):
            await connection.send(post_request(chat(stream=False), close=False))
            assert (await connection.read_response()).status == 200
        await connection.close()
    spans = scene.spans
    assert 8 <= len(spans) / 2 <= 36
    assert sum(bool(values) for values in sent(scene.engines[0])) == len(spans) / 2
    assert scene.own["spans_exported_total"] == len(spans)


async def test_heads_that_repeat_on_one_connection_keep_their_context_each_time() -> None:
    async with playing([well_behaved]) as (scene, running):
        connection = await RawConnection.connect(running.url)
        for flags in ("01", "01", "00", "01"):
            await connection.send(post_request(chat(stream=False), more=parent(flags), close=False))
            assert (await connection.read_response()).status == 200
        await connection.close()
    spans = scene.spans
    attempts = [span["spanId"] for span in spans if span["kind"] == 3]
    first, second, third = (f"00-{TRACE}-{attempt}-01" for attempt in attempts)
    assert sent(scene.engines[0]) == [[first], [second], [f"00-{TRACE}-{SPAN}-00"], [third]]
    assert {span["parentSpanId"] for span in spans if span["kind"] == 2} == {SPAN}


# --- what the spans tell ------------------------------------------------------------------------------------------------


async def test_every_engine_that_was_asked_has_its_span_and_the_failed_one_says_why() -> None:
    async with playing([failing, well_behaved], share=1.0) as (scene, running):
        for number in range(8):
            assert (await ask(running.url, chat(user=str(number), stream=False))).status == 200
    spans = scene.spans
    failed = [span for span in spans if span["attributes"].get("fairlead.instance") == "e-0/0/0" and span["kind"] == 3]
    assert failed
    for span in failed:
        assert span["status"] == {"code": 2, "message": "status-500"}
        assert span["attributes"]["error.type"] == "status-500"
        siblings = [sibling for sibling in spans if sibling.get("parentSpanId") == span["parentSpanId"]]
        assert [sibling["attributes"]["fairlead.rule"] for sibling in siblings][-1] == "retry-1"
        assert siblings[-1]["status"] == {}


async def test_a_continued_stream_has_both_engines() -> None:
    script = breaking_once()
    async with playing([script, script], share=1.0) as (scene, running):
        assert (await ask(running.url, chat())).events[-1] == "[DONE]"
    request, first, second = scene.spans
    assert (first["attributes"]["fairlead.step"], first["attributes"]["error.type"]) == ("attempt", "cut")
    assert (second["attributes"]["fairlead.step"], second["status"]) == ("continuation", {})
    assert request["attributes"]["fairlead.attempts"] == "2"
    assert int(first["endTimeUnixNano"]) <= int(second["startTimeUnixNano"])


async def test_both_legs_of_a_hand_off_have_one_id_that_the_client_did_not_choose() -> None:
    decisions: list[str] = []
    async with playing([prefilling, well_behaved], roles=[Role.PREFILL, Role.DECODE]) as (scene, running):
        more = parent("01", "x-request-id: mine")
        answer = await ask(running.url, chat(), more=more)
        assert answer.fields["x-request-id"] == "mine"
        decisions.append(answer.fields["x-fairlead-decision"])
    span, *_ = scene.spans
    assert decisions != ["mine"]
    for engine in scene.engines:
        assert sent(engine, "x-request-id") == [decisions]
    attributes = span["attributes"]
    assert (attributes["fairlead.request_id"], attributes["fairlead.decision"]) == ("mine", decisions[0])


async def test_a_hand_off_has_a_span_for_the_prefill_leg() -> None:
    async with playing([prefilling, well_behaved], share=1.0, roles=[Role.PREFILL, Role.DECODE]) as (scene, running):
        assert (await ask(running.url, chat())).status == 200
    request, prefill, decode = scene.spans
    assert (prefill["name"], decode["name"]) == ("prefill tiny", "attempt tiny")
    assert request["attributes"]["fairlead.handoff.outcome"] == "done"
    assert int(prefill["endTimeUnixNano"]) <= int(decode["startTimeUnixNano"])
    for number, span in enumerate((prefill, decode)):
        assert sent(scene.engines[number]) == [[f"00-{request['traceId']}-{span['spanId']}-01"]]


async def test_stream_that_ends_in_an_error_event_fails_request_and_attempt_spans() -> None:
    async with playing([streams(token("one "), end=hang_up)], share=1.0) as (scene, running):
        await ask(running.url, chat(temperature=1))
    request, attempt = scene.spans
    assert request["status"] == attempt["status"] == {"code": 2, "message": "cut"}


async def test_a_request_that_never_reached_an_engine_has_its_span_too() -> None:
    async with playing([well_behaved]) as (scene, running):
        running.gateway.update_fleet(Fleet(2, 2, {MODEL_KEY: Model("default", "tiny")}, {MODEL_KEY: ()}))
        assert (await ask(running.url, chat(), more=parent("01"))).status == 503
    (request,) = scene.spans
    assert request["attributes"]["http.response.status_code"] == "503"
    assert request["status"] == {"code": 2, "message": "no_ready_instance"}


# --- the collector ------------------------------------------------------------------------------------------------------


async def test_a_collector_that_is_not_there_costs_spans_and_no_request() -> None:
    with CannedServer(COLLECTED) as gone:
        url = gone.url
    async with scripted_engine() as engine:
        watching = observed(url, share=1.0)
        async with running_gateway(fleet_of([engine.url]), LIMITS, observers=watching) as running:
            for _ in range(3):
                assert (await ask(running.url, chat())).status == 200
        assert running.gateway.telemetry.non_model_counters == {"spans_exported_total": 0, "spans_dropped_total": 6}


async def test_a_collector_that_refuses_is_not_asked_again() -> None:
    async with playing([well_behaved], 1.0) as (scene, running):
        scene.collector.responses["/v1/traces"] = CannedResponse([b"no"], 400)
        assert (await ask(running.url, chat())).status == 200
    assert len(scene.collector.requests) == 1
    assert scene.own == {"spans_exported_total": 0, "spans_dropped_total": 2}


async def test_a_full_queue_drops_spans_and_counts_them() -> None:
    watching = RequestObservers(
        ObservabilitySettings(trace_endpoint="http://127.0.0.1:9", trace_share=1.0),
        clock=running_clock(),
        limits=Limits(spans_pending=0),
        instance_id="gw",
        draw_bits=random.Random(1).getrandbits,
    )
    async with gateway_of(well_behaved, observers=watching) as (running, *_):
        assert (await ask(running.url, chat())).status == 200
        assert running.gateway.telemetry.non_model_counters["spans_dropped_total"] == 2


@pytest.mark.sockets
async def test_the_collector_gets_the_headers_it_wants_and_learns_who_sends() -> None:
    with CannedServer(COLLECTED) as collector:
        what = ObservabilitySettings(
            trace_endpoint=collector.url + "/otlp/", trace_headers=(("authorization", "Bearer s"),), trace_share=1.0
        )
        collector.responses["/otlp/v1/traces"] = CannedResponse([b"{}"])
        draw = random.Random(1).getrandbits
        watching = RequestObservers(what, clock=running_clock(), limits=LIMITS, instance_id="gw-7", draw_bits=draw)
        async with scripted_engine() as engine:
            async with running_gateway(fleet_of([engine.url]), LIMITS, observers=watching) as running:
                await ask(running.url, chat())
            await wait_until(lambda: bool(collector.requests))
        (asked,) = collector.requests
        assert asked.path == "/otlp/v1/traces"
        assert asked.headers["authorization"] == "Bearer s"
        assert asked.headers["content-type"] == "application/json"
        resource = json.loads(asked.body)["resourceSpans"][0]["resource"]["attributes"]
        assert {"key": "service.instance.id", "value": {"stringValue": "gw-7"}} in resource
