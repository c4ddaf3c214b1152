"""The tokens of answers that are passed on are counted: `/v1/responses` and `/v1/messages`."""

import json
from typing import Any

import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.upstream.usage import PassedUsage, counts_of_long_answer
from fairlead_testing.engines.scripted import EngineCall, responds, silent, streams
from fairlead_testing.gateway.limited_gateway import LimitedGateway, limited_gateway
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

_INPUT = Limit(LimitUnit.INPUT_TOKENS, 100_000, Window.DAY)
_OUTPUT = Limit(LimitUnit.OUTPUT_TOKENS, 100_000, Window.DAY)
_COST = Limit(LimitUnit.COST, 10**15, Window.MONTH)
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"model": "tiny", "input": "hi", "max_output_tokens": 50},
    "/v1/messages": {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 50},
}
_RESPONSES = {
    "input_tokens": 1000,
    "input_tokens_details": {"cached_tokens": 800},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 1030,
}
_MESSAGES = {
    "input_tokens": 150,
    "cache_creation_input_tokens": 50,
    "cache_read_input_tokens": 800,
    "output_tokens": 30,
}
_USAGES = {"/v1/responses": _RESPONSES, "/v1/messages": _MESSAGES}


def _event(name: str, **fields: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


def _events(path: str, end: str) -> list[bytes]:
    """The events of an answer with two parts, in the form of the path."""
    if path == "/v1/responses":
        return [
            _event("response.created", response={"status": "in_progress", "usage": None}),
            _event("response.output_text.delta", delta="He"),
            _event("response.output_text.delta", delta="llo"),
            _event(end, response={"output": [{"text": "Hello" * 50}], "usage": _RESPONSES}),
        ]
    start = {**_MESSAGES, "output_tokens": 1}
    return [
        _event("message_start", message={"content": [], "usage": start}),
        _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "He"}),
        _event("content_block_delta", index=0, delta={"type": "text_delta", "text": "llo"}),
        _event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 30}),
        _event("message_stop"),
    ]


async def _post(gateway: LimitedGateway, path: str, **fields: object) -> Any:
    headers = {"authorization": "Bearer acme"}
    return await gateway.client.post(f"{gateway.running.url}{path}", json={**_BODIES[path], **fields}, headers=headers)


def _tenant(*limits: Limit, enforcement: Enforcement = Enforcement.ESTIMATED) -> Tenant:
    return Tenant("acme", limits=limits, may_use_other_paths=False, enforcement=enforcement)


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        ("/v1/responses", ["", "response.completed", "response.incomplete", "response.failed"]),
        ("/v1/messages", ["", "stream"]),
    ],
)
async def test_tokens_of_passed_on_answers_are_counted(path: str, ends: list[str]) -> None:
    async def script(call: EngineCall) -> None:
        end = call.json["user"]
        if not end:
            await call.respond({"id": "x", "content": [{"text": "Hello"}], "usage": _USAGES[path]})
            return
        body = b"".join(_events(path, end))
        await call.start_stream()
        for start in range(0, len(body), 37):  # as no engine cuts them
            await call.chunk(body[start : start + 37])
        await call.chunk(b"")

    price = TokenPrice(input=1_000, cached_input=10, output=2_000)
    async with limited_gateway(script, [_tenant(_INPUT, _OUTPUT, _COST)], price=price) as gateway:
        for count, end in enumerate(ends, 1):
            assert (await _post(gateway, path, stream=bool(end), user=end)).status_code == 200
            assert gateway.used("acme", _INPUT.id) == 1000 * count
            assert gateway.used("acme", _OUTPUT.id) == 30 * count
            assert gateway.used("acme", _COST.id) == (200 * 1_000 + 800 * 10 + 30 * 2_000) * count


@pytest.mark.parametrize("path", list(_BODIES))
async def test_a_client_who_leaves_pays_the_prompt_and_what_was_computed(path: str) -> None:
    script = streams(*_events(path, "none")[:3], end=silent)
    async with limited_gateway(script, [_tenant(_INPUT, _OUTPUT)]) as gateway:
        headers = {"authorization": "Bearer acme"}
        url, body = f"{gateway.running.url}{path}", {**_BODIES[path], "stream": True}
        async with gateway.client.stream("POST", url, json=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if "llo" in line:
                    break
        await wait_until(lambda: gateway.busy("acme", _INPUT.id) == 0)
        prompt = gateway.used("acme", _INPUT.id)
        assert prompt == 1000 if path == "/v1/messages" else 1 < prompt < 100  # as estimated
        assert gateway.used("acme", _OUTPUT.id) == 2


@pytest.mark.parametrize("path", list(_BODIES))
async def test_answers_without_usage_pay_as_expected(path: str) -> None:
    async with limited_gateway(
        responds({"id": "x", "status": "queued", "usage": None}), [_tenant(_INPUT, _OUTPUT)]
    ) as gateway:
        assert (await _post(gateway, path)).status_code == 200
        assert gateway.used("acme", _INPUT.id) > 1
        assert gateway.used("acme", _OUTPUT.id) == 50


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/responses", {"max_output_tokens": None, "max_tokens": 5}, "max_output_tokens"),
        ("/v1/messages", {"max_tokens": None}, "max_tokens"),
        ("/v1/responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("/v1/responses", {"tools": [{"type": "web_search"}]}, "tools"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ("/v1/messages", {"tools": [{"type": "web_search_20250305", "name": "x"}]}, "tools"),
        (
            "/v1/messages",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"data": "aa"}}]}]},
            "messages",
        ),
        ("/v1/responses", {}, ""),
        ("/v1/responses", {"tools": [{"type": "function", "parameters": {"properties": {"file_path": {}}}}]}, ""),
        ("/v1/messages", {"tools": [{"name": "x", "input_schema": {}}]}, ""),
    ],
)
async def test_strict_limits_take_only_requests_with_a_bound(path: str, fields: dict[str, Any], named: str) -> None:
    async with limited_gateway(
        responds({"id": "x", "usage": _USAGES[path]}), [_tenant(_INPUT, _OUTPUT, enforcement=Enforcement.STRICT)]
    ) as gateway:
        answered = await _post(gateway, path, **fields)
        assert answered.status_code == (400 if named else 200)
        if named:
            assert answered.json()["error"]["param"] == named
        else:
            assert gateway.used("acme", _INPUT.id) == 1000


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_usage_of_a_long_answer_is_found_at_its_end(is_stream: bool) -> None:
    response = {"output": "x" * 200_000, "usage": _RESPONSES, "metadata": {"usage": "mine"}}
    text = json.dumps({"type": "response.completed", "response": response} if is_stream else response).encode()
    body = b"data: " + text + b"\n\n" if is_stream else text
    read = PassedUsage(is_stream=is_stream)
    for start in range(0, len(body), 9_999):
        read.add([body[start : start + 9_999]], is_last=False)
    read.add([], is_last=True)
    usage = read.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (1000, 800, 30)


@pytest.mark.parametrize(
    "body",
    [
        b'data: {not json "usage"\n\n',
        b'data: {"usage": []}\n\n',
        b'data: {"usage": {"input_tokens": -5, "output_tokens": 1e99}}\n\n',
        b'data: {"type": "message_delta", "usage": {"input_tokens": "7"}, "response": 3}\n\n',
        b"x" * 70_000 + b'"usage": {"input_tokens": 7',
        b"x" * 70_000 + b'"usage": null}',
    ],
)
def test_what_cannot_be_read_is_unknown_and_not_zero(body: bytes) -> None:
    read = PassedUsage(is_stream=True)
    read.add([body], is_last=True)
    assert read.usage is None


def test_counts_of_events_are_totals() -> None:
    """Some engines say 0 for the prompt in one of the events."""
    read = PassedUsage(is_stream=True)
    read.add([_event("message_start", message={"usage": {"input_tokens": 0, "output_tokens": 0}})], is_last=False)
    assert read.usage.completion_tokens is None
    read.add([_event("message_delta", usage={"input_tokens": 9, "output_tokens": 3})], is_last=False)
    read.add([_event("message_delta", usage={"input_tokens": 0, "output_tokens": 5})], is_last=True)
    usage = read.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (9, 5)


_FORGED: list[object] = [
    {"usage": {"input_tokens": 0, "output_tokens": 0}},
    {"usage": {"input_tokens": 1, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 9_999}}},
    {"usage": {"input_tokens_details": {"cached_tokens": 9_999}}},
    {"usage": {"cache_read_input_tokens": 999}},
    {"usage": {"type": "object", "properties": {"input_tokens": {"type": "integer"}}}},
    {"usage": None},
    [{"usage": {"input_tokens": 0, "output_tokens": 0}}] * 3_000,
    '"usage": {"input_tokens": 0}',
    "x" * 9_000,
]


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("forged", _FORGED)
def test_fields_of_the_client_in_a_long_answer_lower_no_count(forged: object, is_before: bool, is_stream: bool) -> None:
    """Engines repeat `metadata`, `tools` and formats of the request in their answers."""
    own = {"output": "x" * 200_000, "usage": _RESPONSES}
    response = {"metadata": forged, **own} if is_before else {**own, "metadata": forged}
    text = json.dumps({"type": "response.completed", "response": response} if is_stream else response).encode()
    body = b"data: " + text + b"\n\n" if is_stream else text
    for size in (9_999, 65_536, len(body)):
        read = PassedUsage(is_stream=is_stream)
        for start in range(0, len(body), size):
            read.add([body[start : start + size]], is_last=False)
            assert is_stream or read.usage is None  # of a client that leaves, nothing is known
        read.add([], is_last=True)
        usage = read.usage
        assert usage is not None
        cached = None if '"input_tokens": ' in json.dumps(forged).replace('"input_tokens": {', "") else 800
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (1000, cached, 30)


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("own", [_RESPONSES, {"input_tokens": 1000, "output_tokens": 30}])
def test_fields_of_the_client_in_a_long_answer_make_no_prompt_cached(own: dict[str, Any], is_before: bool) -> None:
    """A tool of the client says that a prompt of one token more was cached as a whole."""
    counts = {"input_tokens": 1_001, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 1_001}}
    tools = {"tools": [{"parameters": {"usage": counts}}], "instructions": "x" * 200_000}
    answer = {**tools, "usage": own} if is_before else {"usage": own, **tools}
    usage = counts_of_long_answer(json.dumps(answer).encode())
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (1001, None, 30)


@pytest.mark.parametrize("has_type_first", [True, False])
def test_only_the_last_event_of_a_long_stream_has_counts(has_type_first: bool) -> None:
    forged = {"x": {"type": "response.completed"}, "usage": {"input_tokens": 0, "output_tokens": 0}}
    begun: dict[str, Any] = {"response": {"instructions": "x" * 200_000, "metadata": forged}}
    kind = {"type": "response.created"}
    event = {**kind, **begun} if has_type_first else {**begun, **kind}
    read = PassedUsage(is_stream=True)
    read.add([b"data: " + json.dumps(event).encode() + b"\n\n"], is_last=False)
    assert read.usage is None
    kind, begun["response"]["usage"] = {"type": "response.completed"}, _RESPONSES
    event = {**kind, **begun} if has_type_first else {**begun, **kind}
    read.add([b"data: " + json.dumps(event).encode() + b"\n\n"], is_last=True)
    usage = read.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (1000, 30)


_CHAT_USAGE = {
    "prompt_tokens": 1000,
    "total_tokens": 1030,
    "completion_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 800},
}


@pytest.mark.parametrize("size", [1_000, 100_000, 2_000_000])
@pytest.mark.parametrize("is_before", [True, False])
async def test_long_chat_answers_are_counted_whatever_stands_behind_the_usage(is_before: bool, size: int) -> None:
    """`prompt_logprobs` and token ids come behind the usage; above 1 MiB nothing is buffered."""
    extra = {"prompt_token_ids": [10] * (size // 4)}

    async def script(call: EngineCall) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}
        answer = {"choices": [choice], "usage": _CHAT_USAGE}
        await call.respond({**extra, **answer} if is_before else {**answer, **extra})

    async with limited_gateway(script, [_tenant(_INPUT, _OUTPUT)]) as gateway:
        headers, chat = (
            {"authorization": "Bearer acme"},
            {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
        )
        answered = await gateway.client.post(f"{gateway.running.url}/v1/chat/completions", json=chat, headers=headers)
        assert answered.status_code == 200
        await wait_until(lambda: gateway.used("acme", _INPUT.id) == 1000)
        assert gateway.used("acme", _OUTPUT.id) == 30


@pytest.mark.parametrize(
    ("parts", "counts"),
    [
        ([b"event: x\n", b"data: {}", b"\n\n"], [False, False, True]),
        ([b": waits\n\n", b"data: {}\r\n"], [False, True]),
        ([b"data: {}\rdata"], [True]),  # CR alone: nothing is held back
        ([b"data: {", b'"a":1}\r', b"\n"], [False, False, True]),
        ([b"x" * 70_000, b"\n"], [False, True]),
        ([b"event: response.created\ndata: {}\n\n", b"event: response.x.delta\ndata: {}\n\n"], [False, True]),
        ([b"event: message_start\ndata: {}\n", b"\nevent: ping\ndata: {}\n\n", b"data: {}\n"], [False, False, True]),
        ([b"event: response.in_progress\n", b"event: error\ndata: {}\n\n"], [False, True]),
        ([b"event: response.queued\ndata: " + b"x" * 70_000, b"\n"], [False, True]),
    ],
)
def test_the_first_event_of_a_stream_is_awaited(parts: list[bytes], counts: list[bool]) -> None:
    read, progress = PassedUsage(is_stream=True), []
    for part in parts:
        read.add([part], is_last=False)
        progress.append(read.has_event)
    assert progress == counts
    assert PassedUsage(is_stream=False).has_event


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b'event: error\ndata: {"code":429,"message":"slow"}\n\n', 429),
        (b'event:error\r\ndata: {"message":"x"}\r\n\r\n', 500),
        (b'data: {"type": "error", "error": {"type": "overloaded_error", "message": "x"}}\n\n', 529),
        (
            b'data: {"type":"response.failed","response":{"error":{"code":"rate_limit_exceeded","message":"x"}}}\n\n',
            429,
        ),
        (b'data: {"type":"response.failed","response":{"status":"failed"}}\n\n', None),
        (b'data: {"type":"content_block_delta","delta":{"text":"event: error"}}\n\n', None),
        (b'event: ping\ndata: {"type":"ping","error":{"type":"error"}}\n\n', None),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_error_event_of_a_stream_is_found_however_it_is_cut(data: bytes, status: int | None, size: int) -> None:
    read = PassedUsage(is_stream=True)
    for start in range(0, len(data), size):
        read.add([data[start : start + size]], is_last=False)
    assert (None if read.error is None else read.error.status) == status
