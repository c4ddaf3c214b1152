"""Requests to engines and responses to clients without faults."""

import asyncio
import json

import pytest

from fairlead.fleet.model import Fleet, Instance, Model, RequestPolicy, SloTargets
from fairlead_testing.engines.scripted import (
    EngineCall,
    event,
    responds,
    scripted_engine,
    streams,
    token,
    usage,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import GOOD, MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, get_request, post_request, request, send

pytestmark = pytest.mark.simulated


async def test_a_request_is_framed_anew_and_loses_what_belongs_to_the_client_connection() -> None:
    dropped = {
        "te": "trailers",
        "upgrade": "h2c",
        "keep-alive": "timeout=5",
        "x-hop": "1",
        "authorization": "Bearer secret",
        "cookie": "a=b",
        "x-forwarded-for": "10.0.0.1",
        "x-forwarded-host": "evil",
        "forwarded": "for=evil",
        "x-fairlead-instance": "evil",
        "x_underscored": "1",
        "accept-encoding": "gzip",
        "x-data-parallel-rank": "3",
        "proxy-authorization": "x",
        "x-http-method-override": "DELETE",
        "x-original-url": "/admin",
        "x-rewrite-url": "/admin",
        "x-vault-token": "s.1",
        "openai-organization": "org-1",
        "api-key": "k",
        "x-custom": "1",
        "x-prefiller-host-port": "evil:80",
        "x-gateway-destination-endpoint": "evil:80",
        "target-pod": "evil",
        "l5d-dst-override": "evil:80",
        "metadata-flavor": "Google",
        "range": "bytes=0-1",
        "x-stainless-lang": "python",
    }
    kept = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "x-session-id": "s-1",
        "user-agent": "me/1",
        "accept": "text/event-stream",
        "accept-language": "de",
        "openai-beta": "a=1",
        "anthropic-version": "  2023-06-01 ",
        "anthropic-beta": "tools",
    }
    more = "".join(f"{name}: {value}\r\n" for name, value in (dropped | kept).items())
    more += "connection: x-hop, keep-alive\r\nx-request-id: mine-1\r\n"

    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url + "/base/"])) as running:
        answer = await request(running.url, GOOD, more=more)
        assert answer.status == 200
        call = engine.calls[0]
        names = [name for name, _ in call.fields]
        assert len(set(names)) == len(names)
        assert set(names) == {"host", "content-type", "content-length", "x-request-id", "x-fairlead-hops", *kept}
        assert call.path == "/base/v1/chat/completions"
        assert call.header("host") == engine.url.removeprefix("http://")
        assert call.header("content-length") == str(len(call.body))
        assert call.header("x-request-id") == answer.fields["x-fairlead-decision"]
        assert call.header("anthropic-version") == "2023-06-01"
        assert call.header("traceparent") == kept["traceparent"]
        assert answer.fields["x-request-id"] == "mine-1"


async def test_what_an_engine_does_not_get_is_counted_and_explained() -> None:
    body = json.dumps(GOOD | {"rid": "x", "kv_transfer_params": {}}).encode()
    more = "target-pod: evil\r\nx-custom: 1\r\nuser-agent: me/1\r\nx-stainless-lang: python\r\n"
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for _ in range(2):
            answer = await request(running.url, body, more=more)
        (logged,) = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])
        fields, headers = ("field kv_transfer_params", "field rid"), ("header target-pod", "header x-custom")
        assert logged.latest.kept_back == fields + headers
        refused = await request(running.url, GOOD | {"chat_template": "x"}, more="x-request-id: mine\r\n")
        assert refused.status == 400
        (logged,) = running.gateway.decisions.find("mine")
        assert "chat_template: is a program" in logged.latest.decision.reason
        assert running.gateway.telemetry.models[MODEL_KEY].kept_back == {
            ("removed-field", "kv_transfer_params"): 2,
            ("removed-field", "rid"): 2,
            ("dropped-header", "target-pod"): 2,
            ("dropped-header", "x-custom"): 2,
            ("refused-field", "chat_template"): 1,
        }


async def test_long_names_of_headers_are_not_kept() -> None:
    """Thousands of requests are kept, and their names were as long as a whole head."""
    more = "".join(f"x-{number}-{'a' * 1_990}: 1\r\n" for number in range(16))
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD, more=more)
        assert answer.status == 200
        (logged,) = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])
        names = [f"x-{number}-{'a' * 1_990}"[:64] for number in range(16)]
        assert logged.latest.kept_back == tuple(f"header {name}" for name in names)
        counted = running.gateway.telemetry.models[MODEL_KEY].kept_back
        assert set(counted) == {("dropped-header", name) for name in names}


async def test_a_header_that_the_model_allows_reaches_its_engines() -> None:
    policy = RequestPolicy(allowed_headers=frozenset({"x-custom", "origin", "x-absent", "x-hop"}))
    more = "X-Custom: 1\r\norigin: http://x\r\nx-other: 1\r\nx-hop: 1\r\nconnection: x-hop\r\n"
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url], requests=policy)) as running:
        answer = await request(running.url, GOOD, more=more)
        call = engine.calls[0]
        assert (call.header("x-custom"), call.header("origin")) == ("1", "http://x")
        assert not {"x-other", "x-hop"} & {name for name, _ in call.fields}
        (logged,) = running.gateway.decisions.find(answer.fields["x-fairlead-decision"])
        assert logged.latest.kept_back == ("header x-other",)


async def test_a_request_id_that_could_do_harm_is_replaced() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for given in ("a b", "x" * 200, "ümlaut", 'a"b', "<script>"):
            answer = await request(running.url, GOOD, more=f"x-request-id: {given}\r\n")
            assert answer.fields["x-request-id"].startswith("req-")
            assert engine.calls[-1].header("x-request-id") == answer.fields["x-request-id"]


async def test_every_answer_says_where_it_went_and_why() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        routed = await request(running.url, GOOD)
        assert routed.fields["x-fairlead-instance"] == "e-0/0/0"
        assert routed.fields["x-fairlead-reason"] in ("affinity", "only-one")
        assert running.gateway.decisions.find(routed.fields["x-fairlead-decision"])
        assert "engine;dur=" in routed.fields["server-timing"]
        for data in (
            get_request("/v1/models"),
            get_request("/readyz"),
            get_request("/nowhere"),
            b"nonsense\r\n\r\n",
            post_request(b"{}"),
        ):
            own = (await send(running.url, data))[0]
            assert own.fields["x-fairlead-instance"] == "gateway"
            assert own.fields["x-fairlead-reason"]
            assert own.fields["x-fairlead-decision"] == "none"
            assert own.fields["x-request-id"].startswith("req-")
            assert "server-timing" in own.fields


async def test_of_an_engines_head_only_listed_fields_are_passed_on() -> None:
    more = "server: uvicorn\r\nset-cookie: a=b\r\nx-fairlead-instance: evil\r\nvary: Origin\r\nx-request-id: other\r\n"

    async with gateway_of(responds({"ok": 1}, more=more + "endpoint-load-metrics: JSON {}\r\n")) as (running, *_):
        answer = await request(running.url, GOOD)
        assert answer.json == {"ok": 1}
        assert not {"server", "set-cookie", "vary"} & set(answer.fields)
        assert answer.fields["endpoint-load-metrics"] == "JSON {}"
        assert answer.fields["x-fairlead-instance"] == "e-0/0/0"
        assert answer.fields["x-request-id"].startswith("req-")


async def test_the_engine_gets_the_name_that_it_serves_and_not_a_byte_else_changes() -> None:
    content = b'"\\u00e9 \\ud83d\\ude00 {\\"model\\":\\"default/tiny\\"}"'
    body = b'{ "messages" : [{"role":"user","content":' + content + b'}],\n "model":\t"default/tiny" , "x":1.0e2}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, body)).status == 200
        assert engine.calls[0].body == body.replace(b'\t"default/tiny"', b'\t"tiny"')


def _namespaces(urls: list[str]) -> Fleet:
    models = [Model("a", "twin"), Model("b", "twin"), Model("b", "tiny")]
    instances = {
        model.key: (Instance(f"i-{number}", model.namespace, model.name, "main", urls[number % len(urls)]),)
        for number, model in enumerate(models)
    }
    return Fleet(1, 1, {model.key: model for model in models}, instances)


async def test_models_are_listed_and_found_by_the_names_that_clients_may_use() -> None:
    async with scripted_engine() as engine, running_gateway(_namespaces([engine.url])) as running:
        listed = (await send(running.url, get_request("/v1/models")))[0].json
        assert [model["id"] for model in listed["data"]] == ["a/twin", "tiny", "b/twin"]
        assert {model["object"] for model in listed["data"]} == {"model"}
        for name in ("tiny", "b/tiny", "b%2Ftiny", "a/twin"):
            reply = (await send(running.url, get_request(f"/v1/models/{name}")))[0]
            assert reply.status == 200
            assert reply.json["object"] == "model"
        assert (await send(running.url, get_request("/v1/models/nope")))[0].error["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("name", "near"), [("tinny", "tiny"), ("TINY", "tiny"), ("c/twin", "a/twin"), ("qqqqqq", None)]
)
async def test_an_unknown_model_is_a_404_that_names_near_ones(name: str, near: str | None) -> None:
    async with scripted_engine() as engine, running_gateway(_namespaces([engine.url])) as running:
        answer = await request(running.url, GOOD | {"model": name})
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert (near or "GET /v1/models") in answer.error["message"]
        assert engine.calls == []


async def test_near_names_are_found_among_a_thousand_models_without_blocking_the_loop() -> None:
    names = [f"{'m' * 180}-{number}" for number in range(998)] + ["llama-8b", "llama-70b"]
    fleet = Fleet(1, 1, {f"a/{name}": Model("a", name) for name in names}, {})
    async with running_gateway(fleet) as running:
        assert "llama-8b" in (await request(running.url, GOOD | {"model": "lama-8b"})).error["message"]
        assert "llama-70b" in (await request(running.url, GOOD | {"model": "llama-70"})).error["message"]
        assert (await request(running.url, GOOD | {"model": "m" * 179})).status == 404


async def test_a_bare_name_in_two_namespaces_must_be_written_in_full() -> None:
    async with scripted_engine() as engine, running_gateway(_namespaces([engine.url])) as running:
        answer = await request(running.url, GOOD | {"model": "twin"})
        assert answer.status == 404
        assert "a/twin, b/twin" in answer.error["message"]
        assert (await request(running.url, GOOD | {"model": "a/twin"})).status == 200
        assert engine.calls[0].json["model"] == "twin"


async def test_a_stream_of_a_thousand_tokens_arrives_in_the_pieces_that_the_engine_sent() -> None:
    sent: list[bytes] = []

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        for number in range(1_000):
            piece = event(token(f" {number}"))
            sent.append(piece)
            await call.chunk(piece)
            if number % 7 == 0:
                await asyncio.sleep(0)
        sent.append(event("[DONE]"))
        await call.finish()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD | {"stream": True})
        assert answer.complete
        assert answer.fields["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.pieces == sent


async def test_a_piece_leaves_for_the_client_before_the_next_one_exists() -> None:
    go_on = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        for text in ("a", "b", "c"):
            go_on.clear()
            await call.event(token(text))
            await go_on.wait()
        await call.finish()

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD | {"stream": True}))
        await connection.reader.readuntil(b"\r\n\r\n")
        for text in ("a", "b", "c"):
            await asyncio.wait_for(connection.reader.readuntil(f'"content":"{text}"'.encode()), 30)
            go_on.set()
        assert b"[DONE]" in await connection.reader.read()
        await connection.close()


@pytest.mark.parametrize("size", [1, 3, 64, 100_000])
async def test_events_come_whole_however_the_engine_cuts_them(size: int) -> None:
    text = b"".join([event(token("a")), b": keep-alive\n\n", event(token("b")), event(usage(9, 8, 2)), event("[DONE]")])

    script = streams(*[text[start : start + size] for start in range(0, len(text), size)], b"", end=None)
    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        answer = await request(running.url, GOOD | {"stream": True})
        assert answer.complete
        assert answer.body == text.replace(event(usage(9, 8, 2)), b"")
        assert all(piece.endswith(b"\n\n") for piece in answer.pieces)
        outcome = running.gateway.decisions.latest(1)[0]
        assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens) == (9, 8, 2)


async def test_usage_is_always_asked_for_and_shown_only_to_those_who_asked() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for options, shown in (
            (None, False),
            ({}, False),
            ({"include_usage": False}, False),
            ({"include_usage": True}, True),
        ):
            body = GOOD | {"stream": True} | ({} if options is None else {"stream_options": options})
            answer = await request(running.url, body)
            assert [("usage" in data) for data in answer.events] == [False] * 3 + [True] * shown + [False]
            assert answer.events[-1] == "[DONE]"
            asked = {"stream_options": {"include_usage": True}, "return_token_ids": True}
            assert engine.calls[-1].json == body | asked
            outcome = running.gateway.decisions.latest(1)[0]
            assert (outcome.prompt_tokens, outcome.cached_tokens, outcome.output_tokens) == (7, 4, 3)


@pytest.mark.parametrize("is_in_stream", [False, True])
async def test_words_of_a_client_in_a_refusal_end_no_counting_of_others(is_in_stream: bool) -> None:
    """Engines quote what they refuse: one such stream made all later ones uncounted."""
    refusal = {"message": "tool_choice: 'stream_options' is not a valid choice", "code": 400}

    async def script(call: EngineCall) -> None:
        if "tool_choice" not in call.json:
            await well_behaved(call)
        elif is_in_stream:
            await call.start_stream()
            await call.event({"error": refusal})
            await call.finish()
        else:
            await call.respond({"error": refusal}, status="400 Bad Request")

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        refused = await request(running.url, GOOD | {"stream": True, "tool_choice": "stream_options"})
        assert refused.status == 400
        assert (await request(running.url, GOOD | {"stream": True})).status == 200
        assert [call.json.get("stream_options") for call in engine.calls] == [
            {"include_usage": True},
            None,
            {"include_usage": True},
        ]


async def test_words_of_a_client_in_a_refusal_are_no_dead_engine() -> None:
    """One such stream was sent to three engines, as if each had died."""
    refusal = {"message": "tool_choice: 'EngineCore encountered an issue' is not a valid choice", "code": 400}

    script = streams({"error": refusal})
    async with scripted_engine(script) as first, scripted_engine(script) as second:
        async with running_gateway(fleet_of([first.url, second.url])) as running:
            assert (await request(running.url, GOOD | {"stream": True})).status == 400
        assert len(first.calls) + len(second.calls) == 1


async def test_an_engine_that_counts_no_streams_is_remembered() -> None:
    async def script(call: EngineCall) -> None:
        if "stream_options" in call.json:
            await call.respond({"error": {"message": "stream_options: extra field", "code": 400}}, status="400 Bad")
        else:
            await well_behaved(call)

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        for _ in range(2):
            assert (await request(running.url, GOOD | {"stream": True})).status == 200
        assert ["stream_options" in call.json for call in engine.calls] == [True, False, False]


async def test_an_old_client_gets_a_stream_without_chunks() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        data = post_request(GOOD | {"stream": True}).replace(b"HTTP/1.1", b"HTTP/1.0")
        answer = (await send(running.url, data))[0]
        assert "transfer-encoding" not in answer.fields
        assert answer.fields["connection"] == "close"
        assert answer.events[-1] == "[DONE]"


async def test_connections_are_kept_alive_on_both_sides() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        for number in range(20):
            await connection.send(post_request(GOOD | {"stream": number % 2 == 0}, close=False))
            answer = await connection.read_response()
            assert answer.status == 200
            assert "connection" not in answer.fields
        await connection.close()
        assert engine.connections == 1
        assert len(engine.calls) == 20


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\n"
        b"content-type: application/json\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\nx-trailer: y\r\n\r\n",
        b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n{\"a\":1}",
    ],
)  # fmt: skip
async def test_an_engine_may_frame_its_answer_as_http_allows(answer: bytes) -> None:
    async def script(call: EngineCall) -> None:
        for start in range(0, len(answer), 10):
            await call.send(answer[start : start + 10])

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        got = await request(running.url, GOOD)
        assert (got.status, got.json) == (200, {"a": 1})
        assert got.fields["content-length"] == "7"


async def test_two_hundred_streams_at_once_are_all_complete() -> None:
    async with gateway_of(well_behaved, well_behaved) as (running, first, second):
        bodies = [GOOD | {"stream": True, "messages": [{"role": "user", "content": f"{n} " * 50}]} for n in range(200)]
        answers = await asyncio.gather(*[request(running.url, body) for body in bodies])
        assert {answer.status for answer in answers} == {200}
        assert all(answer.complete and answer.events[-1] == "[DONE]" for answer in answers)
        assert len(first.calls) + len(second.calls) == 200
        assert {load.inflight for load in running.loads().values()} == {0}


async def test_equal_prompts_stay_together_and_the_ledger_ends_at_zero() -> None:
    async with gateway_of(well_behaved, well_behaved, well_behaved) as (running, *_):
        text = "a long system prompt " * 300
        seen = set()
        for turn in range(5):
            body = GOOD | {"messages": [{"role": "system", "content": text}] + [{"role": "user"}] * (turn + 1)}
            seen.add((await request(running.url, body)).fields["x-fairlead-instance"])
        assert len(seen) == 1
        assert {load.inflight for load in running.loads().values()} == {0}


async def test_the_same_request_id_twice_at_once_are_two_requests() -> None:
    together = asyncio.Event()

    async def script(call: EngineCall) -> None:
        if len(engine.calls) > 1:
            together.set()
        await together.wait()
        await call.respond({"ok": 1})

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        two = await asyncio.gather(*[request(running.url, GOOD, more="x-request-id: same\r\n") for _ in range(2)])
        assert [answer.status for answer in two] == [200, 200]
        assert {answer.fields["x-request-id"] for answer in two} == {"same"}
        assert len({answer.fields["x-fairlead-decision"] for answer in two}) == 2
        assert {call.header("x-request-id") for call in engine.calls} == {
            answer.fields["x-fairlead-decision"] for answer in two
        }
        assert {load.inflight for load in running.loads().values()} == {0}


async def test_objectives_are_judged_and_counted() -> None:
    async with scripted_engine() as engine:
        fleet = fleet_of([engine.url], objectives=SloTargets(ttft_seconds=60.0, itl_seconds=60.0))
        async with running_gateway(fleet) as running:
            await request(running.url, GOOD | {"stream": True})
            outcome = running.gateway.decisions.latest(1)[0]
            assert outcome.within_objective is True
            assert outcome.ttft_seconds is not None
            assert outcome.itl_mean_seconds is not None
            text = running.gateway.telemetry.render(fleet, running.loads(), 0.0).decode()
            assert f'model="{MODEL_KEY}"' in text or "tiny" in text


async def test_the_body_is_parsed_the_same_way_by_json_itself() -> None:
    """Checks that a spliced body is the same JSON but for the intended fields."""
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        body = GOOD | {
            "model": "default/tiny",
            "stream": True,
            "stream_options": {"include_usage": False, "x": [1]},
        }
        for text in (json.dumps(body), json.dumps(body, indent=3), json.dumps(body, separators=(",", ":"))):
            assert (await request(running.url, text.encode())).status == 200
            options = {"include_usage": True, "x": [1]}
            wanted = body | {"model": "tiny", "stream_options": options, "return_token_ids": True}
            assert engine.calls[-1].json == wanted
