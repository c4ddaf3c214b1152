"""The tokens of messages and responses are counted, whole and as streams."""

import json
from typing import Any

import pytest

from fairlead.fleet.model import TokenPrice
from fairlead.tenants.model import Enforcement, Limit, LimitUnit, Tenant, Window
from fairlead_gateway.dialects.dialect import Dialect
from fairlead_gateway.dialects.messages import MESSAGES
from fairlead_gateway.dialects.responses import RESPONSES
from fairlead_gateway.dialects.table import dialect_of
from fairlead_gateway.upstream.named_events import NamedEventScanner
from fairlead_gateway.upstream.sse import filter_first_chunks
from fairlead_gateway.upstream.usage import LongAnswerCounts, counts_of_long_answer
from fairlead_testing.engines.scripted import EngineCall, responds, silent, streams
from fairlead_testing.engines.scripted import named_event as _event
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
        ("/v1/responses", ["", "response.completed", "response.incomplete"]),
        ("/v1/messages", ["", "stream"]),
    ],
)
async def test_tokens_of_answers_are_counted(path: str, ends: list[str]) -> None:
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
        assert prompt == 1000 if path == "/v1/messages" else 1 <= prompt < 100  # as estimated
        assert gateway.used("acme", _OUTPUT.id) == 2


@pytest.mark.parametrize("path", list(_BODIES))
async def test_answers_without_usage_pay_as_expected(path: str) -> None:
    async with limited_gateway(
        responds({"id": "x", "status": "queued", "usage": None}), [_tenant(_INPUT, _OUTPUT)]
    ) as gateway:
        assert (await _post(gateway, path)).status_code == 200
        assert gateway.used("acme", _INPUT.id) >= 1
        assert gateway.used("acme", _OUTPUT.id) == 50


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/responses", {"max_output_tokens": None, "max_tokens": 5}, "max_output_tokens"),
        ("/v1/messages", {"max_tokens": None}, "max_tokens"),
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


def _scanned(dialect: Dialect, body: bytes, size: int = 1 << 20) -> NamedEventScanner:
    """The scanner of a stream that has ended, cut as the network may cut it."""
    grammar = dialect.grammar
    assert grammar is not None
    scanner = NamedEventScanner(grammar, max_event_bytes=1 << 20)
    for start in range(0, len(body), size):
        chunks = [body[start : start + size]]
        if scanner.event_count == 0:
            filter_first_chunks(scanner, chunks)
        else:
            scanner.filter_chunks(chunks)
        if scanner.is_finished:
            break
    scanner.end()
    return scanner


@pytest.mark.parametrize("is_stream", [True, False])
def test_the_usage_of_a_long_answer_is_found_at_its_end(is_stream: bool) -> None:
    response = {"output": "x" * 200_000, "usage": _RESPONSES, "metadata": {"usage": "mine"}}
    if is_stream:
        usage = _scanned(RESPONSES, _event("response.completed", response=response), 9_999).usage
    else:
        body = json.dumps(response).encode()
        read = LongAnswerCounts()
        for start in range(0, len(body), 9_999):
            read.add([body[start : start + 9_999]], is_last=False)
        read.add([], is_last=True)
        usage = read.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (1000, 800, 30)


@pytest.mark.parametrize(
    ("data", "is_error"),
    [
        (b'event: message_start\ndata: {not json "usage"\n\n', True),
        (b'event: message_start\ndata: {"usage": []}\n\n', False),
        (b'event: message_start\ndata: {"usage": {"input_tokens": -5, "output_tokens": 1e99}}\n\n', False),
        (b'event: message_delta\ndata: {"usage": {"input_tokens": "x"}, "delta": {}}\n\n', False),
        (b"hello\n\n", True),
        (b"data: [1]\n\n", True),
    ],
)
def test_what_cannot_be_read_is_unknown_and_not_zero(data: bytes, is_error: bool) -> None:
    scanner = _scanned(MESSAGES, data)
    assert scanner.usage is None
    assert (scanner.error is not None) == is_error


def test_counts_of_events_are_totals() -> None:
    """Some engines say 0 for the prompt in one of the events."""
    start = _event("message_start", message={"usage": {"input_tokens": 0, "output_tokens": 0}})
    assert _scanned(MESSAGES, start).usage.completion_tokens is None
    first = _event("message_delta", usage={"input_tokens": 9, "output_tokens": 3}, delta={"stop_reason": "end_turn"})
    last = _event("message_delta", usage={"input_tokens": 0, "output_tokens": 5}, delta={})
    usage = _scanned(MESSAGES, start + first + last).usage
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


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("forged", _FORGED)
def test_fields_of_the_client_in_a_long_answer_lower_no_count(forged: object, is_before: bool) -> None:
    """Engines repeat `metadata`, `tools` and formats of the request in their answers."""
    own = {"output": "x" * 200_000, "usage": _RESPONSES}
    response = {"metadata": forged, **own} if is_before else {**own, "metadata": forged}
    body = json.dumps(response).encode()
    for size in (9_999, 65_536, len(body)):
        read = LongAnswerCounts()
        for start in range(0, len(body), size):
            read.add([body[start : start + size]], is_last=False)
        read.add([], is_last=True)
        usage = read.usage
        assert usage is not None
        cached = None if '"input_tokens": ' in json.dumps(forged).replace('"input_tokens": {', "") else 800
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (1000, cached, 30)
    streamed = _scanned(RESPONSES, _event("response.completed", response=response)).usage
    assert (streamed.prompt_tokens, streamed.cached_tokens, streamed.completion_tokens) == (1000, 800, 30)


@pytest.mark.parametrize("is_before", [True, False])
@pytest.mark.parametrize("own", [_RESPONSES, {"input_tokens": 1000, "output_tokens": 30}])
def test_fields_of_the_client_in_a_long_answer_make_no_prompt_cached(own: dict[str, Any], is_before: bool) -> None:
    """A tool of the client says that a prompt of one token more was cached as a whole."""
    counts = {"input_tokens": 1_001, "output_tokens": 1, "input_tokens_details": {"cached_tokens": 1_001}}
    tools = {"tools": [{"parameters": {"usage": counts}}], "instructions": "x" * 200_000}
    answer = {**tools, "usage": own} if is_before else {"usage": own, **tools}
    usage = counts_of_long_answer(json.dumps(answer).encode())
    assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (1001, None, 30)


@pytest.mark.parametrize("is_named", [True, False])
def test_only_the_last_event_of_a_stream_has_counts(is_named: bool) -> None:
    forged = {"x": {"type": "response.completed"}, "usage": {"input_tokens": 0, "output_tokens": 0}}
    begun = {"instructions": "x" * 200_000, "metadata": forged}
    first, last = (
        _event("response.created", response=begun),
        _event("response.completed", response={"usage": _RESPONSES}),
    )
    if not is_named:
        first, last = (event.partition(b"\n")[2] for event in (first, last))
    assert _scanned(RESPONSES, first).usage is None
    usage = _scanned(RESPONSES, first + last).usage
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


@pytest.mark.parametrize("path", list(_BODIES))
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_events_pass_as_they_are_however_they_are_cut(path: str, size: int) -> None:
    dialect = dialect_of(path)
    assert dialect.grammar is not None
    events = _events(path, "response.completed")
    body, scanner, passed = b"".join(events), NamedEventScanner(dialect.grammar, max_event_bytes=1 << 20), b""
    for start in range(0, len(body), size):
        chunks = [body[start : start + size]]
        has_begun = scanner.event_count > 0
        passed += b"".join(scanner.filter_chunks(chunks) if has_begun else filter_first_chunks(scanner, chunks))
    assert passed == body
    assert scanner.is_done
    assert scanner.event_count == 2


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
        (b'data: {"type":"response.failed","response":{"status":"failed"}}\n\n', 500),
        (
            b'data: {"type":"response.failed","response":{"error":{"code":"server_error",'
            b'"message":"The request queue is full."}}}\n\n',
            503,
        ),
        (b'event: response.x.delta\ndata: {"type":"response.x.delta","delta":"event: error"}\n\n', None),
        (b'event: ping\ndata: {"type":"ping","error":{"type":"error"}}\n\n', None),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_an_error_event_of_a_stream_is_found_however_it_is_cut(data: bytes, status: int | None, size: int) -> None:
    scanner = _scanned(RESPONSES, data, size)
    assert (None if scanner.error is None else scanner.error.status) == status


def test_a_message_that_the_engine_gave_up_is_aborted() -> None:
    """vLLM ends a message with a `stop_reason` of null if it has aborted the request."""
    body = _events("/v1/messages", "")[1] + _event("message_delta", delta={"stop_reason": None}, usage=_MESSAGES)
    assert _scanned(MESSAGES, body).is_aborted


def test_a_whole_message_without_its_last_event_gets_it() -> None:
    grammar = MESSAGES.grammar
    assert grammar is not None
    scanner = NamedEventScanner(grammar, max_event_bytes=1 << 20)
    scanner.filter_chunks([b"".join(_events("/v1/messages", "")[:-1])])
    assert b"".join(scanner.end()) == b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    assert scanner.is_done


def test_empty_lines_are_read_as_one() -> None:
    """An engine that sends 64 KiB of them costs a worker one event, not a line each."""
    scanner = _scanned(MESSAGES, b"\n" * 65_536)
    assert scanner.error is None
    assert scanner._inspected_count <= 1
