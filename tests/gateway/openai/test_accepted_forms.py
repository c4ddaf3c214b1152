"""Gateways accept what engines accept: other forms of values, of bodies and of paths.

The engine gets the value that the gateway has read, or the request is refused by name.
"""

import json
from typing import Any

import pytest

from fairlead.fleet.model import RequestPolicy
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_testing.engines.scripted import EngineCall, scripted_engine, well_behaved
from fairlead_testing.gateway.limited_gateway import answer, limited_gateway
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import get_request, request, send

pytestmark = pytest.mark.simulated

PATHS = {
    "/v1/chat/completions": GOOD,
    "/v1/completions": {"model": "tiny", "prompt": "hi"},
    "/v1/messages": GOOD,
    "/v1/responses": {"model": "tiny", "input": "hi"},
}
LONG = "x" * 300_000


CASES = [(path, text, "") for path in PATHS for text in ("100.0", '"100"', "1e2", '"100.0"')]


@pytest.mark.parametrize(("path", "text", "more"), [*CASES, ("/v1/completions", '"100"', LONG)])
async def test_a_number_in_another_form_is_that_number(path: str, text: str, more: str) -> None:
    body = json.dumps(PATHS[path] | {"metadata": {"a": more}})[:-1] + f', "max_tokens": {text}}}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, body.encode(), path=path)).status == 200
        received = engine.calls[0].body
        assert json.loads(received)["max_tokens"] == 100
        assert b'"max_tokens": 100' in received
        assert text.encode() not in received.rpartition(b"metadata")[2]


@pytest.mark.parametrize("text", ['"true"', '"True"', "1", '"yes"', "1.0"])
async def test_a_stream_in_another_form_is_a_stream(text: str) -> None:
    body = json.dumps(GOOD)[:-1] + f', "stream": {text}, "temperature": "0.5", "top_k": 4.0}}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, body.encode())).events[-1] == "[DONE]"
        received = engine.calls[0].json
        assert (received["stream"], received["temperature"], received["top_k"]) == (True, 0.5, 4)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("more", ["", LONG])
@pytest.mark.parametrize(
    ("text", "received", "has_usage"),
    [
        ('{"include_usage":"true"}', {"include_usage": True}, True),
        ('{"include_usage":1,"x":2}', {"include_usage": True, "x": 2}, True),
        ('{"include_usage":"off"}', {"include_usage": True}, False),
        (
            '{"include_usage":0.0,"continuous_usage_stats":"no"}',
            {"include_usage": True, "continuous_usage_stats": False},
            False,
        ),
        ('{"include_usage":null}', {"include_usage": True}, False),
    ],
)
async def test_options_of_a_stream_in_another_form_are_those_options(
    path: str, more: str, text: str, received: dict[str, Any], has_usage: bool
) -> None:
    body = json.dumps(PATHS[path] | {"stream": True, "metadata": {"a": more}})[:-1] + f', "stream_options": {text}}}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        reply = await request(running.url, body.encode(), path=path)
        assert reply.events[-1] == "[DONE]"
        assert (b'"usage"' in reply.body) is has_usage
        assert engine.calls[0].json["stream_options"] == received


@pytest.mark.parametrize(
    ("text", "param"),
    [
        ('"yes"', "stream_options"),
        ("true", "stream_options"),
        ("[]", "stream_options"),
        ('{"include_usage":"maybe"}', "stream_options.include_usage"),
        ('{"include_usage":2}', "stream_options.include_usage"),
        ('{"continuous_usage_stats":{}}', "stream_options.continuous_usage_stats"),
    ],
)
async def test_options_of_a_stream_that_no_engine_accepts_are_refused_by_name(text: str, param: str) -> None:
    body = json.dumps(GOOD | {"stream": True})[:-1] + f', "stream_options": {text}}}'
    async with running_gateway(fleet_of(["http://127.0.0.1:9"])) as running:
        reply = await request(running.url, body.encode())
        assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("item", ["x", [1]])
async def test_more_inputs_than_openai_takes_are_refused_by_name_and_with_the_way_out(item: object) -> None:
    body = {"model": "tiny", "input": [item] * 2_049}
    async with running_gateway(fleet_of(["http://127.0.0.1:9"])) as running:
        reply = await request(running.url, body, path="/v1/embeddings")
        assert (reply.status, reply.error["param"]) == (400, "input")
        assert reply.error["message"] == "input: at most 2048 inputs are accepted (send the rest in further requests)"


BATCHES: dict[str, list[dict[str, Any]]] = {
    "/v1/rerank": [{"query": "q", "documents": ["x"]}, {"query": "q", "documents": [{"content": []}]}],
    "/rerank": [{"query": "q", "documents": {"content": [{"type": "text", "text": "x"}]}}],
    "/v1/score": [{"text_1": "q", "text_2": ["x"]}, {"data_1": ["x"], "data_2": "x"}, {"query": "q", "items": ["x"]}],
    "/classify": [{"input": ["x"]}, {"input": [[1]]}],
}


@pytest.mark.parametrize(("path", "fields"), [(path, fields) for path in BATCHES for fields in BATCHES[path]])
async def test_more_documents_than_a_request_may_have_are_refused_by_name(path: str, fields: dict[str, Any]) -> None:
    def with_items(value: Any, count: int) -> Any:
        return value * count if isinstance(value, list) else {"content": value["content"] * count}

    (name,) = [name for name, value in fields.items() if isinstance(value, list | dict)]
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        body = {"model": "tiny"} | fields | {name: with_items(fields[name], 2_049)}
        reply = await request(running.url, body, path=path)
        assert (reply.status, reply.error["param"]) == (400, name)
        assert f"{name}: at most 2048 " in reply.error["message"]
        assert "further requests" in reply.error["message"]
        assert (await request(running.url, body | {name: with_items(fields[name], 2_048)}, path=path)).status == 200


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/detokenize", {"tokens": [1] * 3_000}),
        ("/v1/responses", {"input": [{"role": "user", "content": "x"}] * 3_000}),
        ("/classify", {"input": [1] * 3_000}),
    ],
)
async def test_one_long_prompt_is_no_list_of_requests(path: str, fields: dict[str, Any]) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, {"model": "tiny"} | fields, path=path)).status == 200


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("max_tokens", "100.5"),
        ("max_tokens", "true"),
        ("max_tokens", '"many"'),
        ("max_tokens", "[100]"),
        ("max_tokens", "1e300"),
        ("stream", '"maybe"'),
        ("stream", "2"),
        ("temperature", '"nan"'),
        ("temperature", '"inf"'),
        ("model", "7"),
    ],
)
async def test_values_that_no_engine_accepts_are_refused_by_name(field: str, text: str) -> None:
    body = json.dumps({name: value for name, value in GOOD.items() if name != field})[:-1] + f', "{field}": {text}}}'
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        reply = await request(running.url, body.encode())
        assert (reply.status, reply.error["param"]) == (400, field)
        assert not engine.calls


async def test_limits_count_the_value_that_the_engine_gets() -> None:
    limit = Limit(LimitUnit.OUTPUT_TOKENS, 100, Window.DAY)

    async def script(call: EngineCall) -> None:
        assert call.json["max_tokens"] <= 100
        await call.respond(answer(output=call.json["max_tokens"]))

    tenants = [Tenant("acme", limits=(limit,), enforcement=Enforcement.STRICT)]
    async with limited_gateway(script, tenants) as gateway:
        url, headers = f"{gateway.running.url}/v1/chat/completions", {"authorization": "Bearer acme"}
        bodies = [
            json.dumps(GOOD)[:-1] + members
            for members in (
                ', "max_tokens": "101"}',
                ', "max_tokens": 1, "max_tokens": "101"}',
                ', "max_tokens": "1", "max_\\u0074okens": 101.0}',
                ', "max_tokens": 60.0}',
                ', "max_tokens": "60"}',
            )
        ]
        headers["content-type"] = "application/json"
        seen = [(await gateway.client.post(url, content=body, headers=headers)).status_code for body in bodies]
        assert seen == [429, 429, 429, 200, 429]


@pytest.mark.parametrize(("path", "more"), [*((path, "") for path in PATHS), ("/v1/completions", LONG)])
async def test_a_byte_order_mark_is_taken_off(path: str, more: str) -> None:
    body = json.dumps(PATHS[path] | {"metadata": {"a": more}}).encode()
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, b"\xef\xbb\xbf" + body, path=path)).status == 200
        assert json.loads(engine.calls[0].body)["model"] == "tiny"
        assert engine.calls[0].body.startswith(b"{")
        assert (await request(running.url, b"\xef\xbb\xbf" * 2 + body, path=path)).status == 400


@pytest.mark.parametrize("text", [r"\ud83d", r"cut \ud83d here", r"\ude00", r"\ud83d\ud83d\ude00", r"\\\ud83d"])
async def test_half_a_character_is_named(text: str) -> None:
    body = json.dumps(GOOD).replace("hi", text).encode()
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        reply = await request(running.url, body)
        assert (reply.status, reply.error["code"]) == (400, "invalid_json")
        assert "half of a surrogate pair" in reply.error["message"]
        assert (await request(running.url, body.replace(text.encode(), rb"\ud83d\ude00 \\ud83d"))).status == 200


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("//v1/chat/completions", "/v1/chat/completions"),
        ("/v1//chat///completions//", "/v1/chat/completions"),
        ("/v1/responses/", "/v1/responses"),
        ("/v1/%63hat/completion%73", "/v1/chat/completions"),
    ],
)
async def test_slashes_too_many_change_no_path(written: str, path: str) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, PATHS[path], path=written)).status == 200
        assert engine.calls[0].path == path


ENCODED = [
    *("/v1%2fchat/completions", "/v1%2Fchat/completions", "/v1/chat%2fcompletions", "/v1%252fchat/completions"),
    *("%2fv1/chat/completions", "/%2fv1/chat/completions", "/v1/chat/completions%2f", "/v1/chat%5ccompletions"),
    *("/v1/chat/completions%00", "/v1/chat/completions%3f", "/v1/chat/completions%23", "/v1/chat/completions%20"),
    *("/v1/x/%2e%2e/chat/completions", "/v1/%2e/chat/completions", "/v1/chat/completions%", "/v1/chat/completions%zz"),
    *("/v1/models/..%2fchat/completions", "/v1/models/%2e%2e/chat/completions", "/v1/chat/completions%c0%af"),
    *("/v1%2fresponses", "/v1/responses%2finput_tokens", "/v1/load_lora%5fadapter", "/tokenize%2f"),
]


@pytest.mark.parametrize("has_all_paths", [False, True])
async def test_no_path_has_another_reading(has_all_paths: bool) -> None:
    requests = RequestPolicy(allowed_paths=frozenset({"/v1/*"} if has_all_paths else ()))
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url], requests=requests)) as running:
        for written in ENCODED:
            reply = await request(running.url, GOOD, path=written)
            expected = (404, "unknown_url") if written.startswith("/") else (400, "malformed_http")
            if written.startswith("/v1/models/"):
                expected = (405, "method_not_allowed")
            assert (reply.status, reply.error["code"]) == expected, written
        assert not engine.calls
        (reply,) = await send(running.url, get_request("/v1/models/default%2Ftiny"))
        assert reply.status == 200
        reply = await request(running.url, GOOD, path="/v1%2fchat/completions")
        assert "percent" in reply.error["message"]


@pytest.mark.parametrize("written", ["/v1/models/", "//v1/models", "/readyz/"])
async def test_local_paths_take_them_too(written: str) -> None:
    async with scripted_engine(well_behaved) as engine, running_gateway(fleet_of([engine.url])) as running:
        (reply,) = await send(running.url, get_request(written))
        assert reply.status == 200


@pytest.mark.parametrize("written", ["/v1/../v1/files/", "//", "/v1//load_lora_adapter/", "/v1/files//x/"])
async def test_no_path_is_opened_by_slashes(written: str) -> None:
    fields: dict[str, Any] = {"model": "tiny"}
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        assert (await request(running.url, fields, path=written)).status == 404
        assert not engine.calls
