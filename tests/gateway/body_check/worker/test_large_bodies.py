"""Large bodies are checked in a process, with the same result as in the worker."""

import asyncio
import contextlib
import json
import sys
from collections.abc import Iterator

import pytest

from fairlead.fleet.model import Model, RequestPolicy
from fairlead.limits import Limits
from fairlead_gateway.body_check.messages import decode_limits, encode_limits
from fairlead_gateway.body_check.process import check_body
from fairlead_gateway.body_check.worker.caller_limit import LargeBodyLimit, LargeBodyTurns
from fairlead_gateway.body_check.worker.client import BodyChecker
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.dialects.chat import ChatRequest
from fairlead_gateway.dialects.completions import CompletionRequest
from fairlead_gateway.dialects.embeddings import EmbeddingRequest
from fairlead_gateway.dialects.passed_on import GenericRequest
from fairlead_gateway.dialects.schemas import CommonFields
from fairlead_gateway.dialects.table import BODY_TYPES
from fairlead_gateway.errors import BadRequest, Overloaded, TooManyLargeBodies
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai import body_parser
from fairlead_gateway.openai.body_parser import ModelRequest, parse_body
from fairlead_gateway.openai.field_policy import apply_field_policy
from fairlead_gateway.openai.request import bind_by_name, build_route_request
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import GOOD, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.simulated

LIMITS = Limits()
A, B = CallerKey("a"), CallerKey("b")
FILLER = "the quick brown fox " * 20_000  # over 256 KiB
LARGE_CHAT = GOOD | {"messages": [{"role": "user", "content": FILLER}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHATS, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"

VALID: dict[str, tuple[str, object]] = {
    "chat": (CHATS, LARGE_CHAT),
    "chat with tools": (CHATS, LARGE_CHAT | {"tools": [TOOL], "tool_choice": "auto", "max_completion_tokens": 7}),
    "chat with large tools": (CHATS, GOOD | {"tools": [TOOL | {"description": FILLER}]}),
    "chat with large functions and documents": (CHATS, GOOD | {"functions": [{"a": FILLER}], "documents": [FILLER]}),
    "completion of texts with a suffix": (COMPLETIONS, {"model": "tiny", "prompt": ["a"] * 3, "suffix": FILLER}),
    "ranking of documents": ("/v1/rerank", {"model": "tiny", "query": FILLER, "documents": ["a"] * 3}),
    "chat with unknown parts": (CHATS, GOOD | {"messages": [{"role": "user", "content": FILLER, "x": [1, {}]}]}),
    "chat with fields of the template": (CHATS, LARGE_CHAT | {"chat_template_kwargs": {"a": 1}, "documents": [{}]}),
    "chat with a template field alone": (CHATS, LARGE_CHAT | {"chat_template_kwargs": {"a": 1}}),
    "chat with prompt logprobs": (CHATS, LARGE_CHAT | {"prompt_logprobs": 1}),
    "chat with a salt and a grammar": (CHATS, LARGE_CHAT | {"cache_salt": "s", "response_format": {"type": "text"}}),
    "chat as a stream": (CHATS, LARGE_CHAT | {"stream": True, "stream_options": {"include_usage": True}, "user": "u"}),
    "chat with fields of engines": (CHATS, LARGE_CHAT | {"kv_transfer_params": {"a": FILLER}, "vllm_xargs": {"b": 1}}),
    "chat with a field that is refused unless it is null": (CHATS, LARGE_CHAT | {"priority": None, "x": 1}),
    "chat with an unknown field": (CHATS, GOOD | {"x": [FILLER, 1.5e300, None]}),
    "completion of text": (COMPLETIONS, {"model": "tiny", "prompt": FILLER, "suffix": FILLER, "max_tokens": 5}),
    "completion of tokens": (COMPLETIONS, {"model": "tiny", "prompt": list(range(50_000))}),
    "several completions": (COMPLETIONS, {"model": "tiny", "prompt": [FILLER, "x"], "stop": ["a"], "seed": 1}),
    "embedding": (EMBEDDINGS, {"model": "tiny", "input": [FILLER], "dimensions": 8}),
    "another request": ("/v1/rerank", {"model": "tiny", "documents": [FILLER], "top_logprobs": 3}),
}

INVALID: dict[str, tuple[str, bytes]] = {
    "not JSON": (CHATS, b"{" * 300_000),
    "not UTF-8": (CHATS, json.dumps(LARGE_CHAT).encode().replace(b"quick", b"\xff\xfe", 1)),
    "a role that is a number": (CHATS, json.dumps(LARGE_CHAT).encode().replace(b'"user"', b"17", 1)),
    "no model": (CHATS, json.dumps({"messages": LARGE_CHAT["messages"]}).encode()),
    "texts and tokens": (COMPLETIONS, json.dumps({"model": "tiny", "prompt": [FILLER, 1]}).encode()),
    "too many values": (CHATS, b'{"model":"tiny","x":[' + b"0," * 2_200_000 + b"0]}"),
    "too many tokens": (CHATS, json.dumps(LARGE_CHAT | {"max_tokens": 1 << 40}).encode()),
    "too deep": (CHATS, json.dumps(LARGE_CHAT | {"x": json.loads("[" * 200 + "]" * 200)}).encode()),
}


@pytest.fixture(scope="module")
def checker() -> Iterator[BodyChecker]:
    checker = BodyChecker(LIMITS)
    yield checker
    checker.close()


def seen_by_gateway(path: str, request: ModelRequest) -> object:
    """Returns what later stages read of a body."""
    bind_by_name(path, request, fleet_of([]), LIMITS)
    head = RequestHead("POST", path, [], 11, len(request.client_body), keep_alive=True, expects_continue=False)
    route = build_route_request(request, head, "r", ChainStarts(b"secret"))
    copied = (request.model_name, request.session, request.max_tokens, request.stream, request.has_cache_variants)
    flags = (request.is_passthrough, request.has_session_id, request.strip_usage)
    return copied, flags, route.chain, route.prompt_tokens, request.body, path == CHATS and request.messages()


@pytest.mark.parametrize("name", VALID)
def test_large_body_means_the_same_as_one_that_the_worker_parses(name: str, checker: BodyChecker) -> None:
    path, value = VALID[name]
    body = json.dumps(value).encode()
    kind = BODY_TYPES[path]
    checked = seen_by_gateway(path, checker.parse_body(kind, body))
    assert checked == seen_by_gateway(path, parse_body(kind, body, LIMITS))


@pytest.mark.parametrize("name", INVALID)
def test_large_bad_body_gets_the_same_error(name: str, checker: BodyChecker) -> None:
    path, body = INVALID[name]
    kind = BODY_TYPES[path]
    with pytest.raises(BadRequest) as usual:
        parse_body(kind, body, LIMITS)
    with pytest.raises(BadRequest) as checked:
        checker.parse_body(kind, body)
    expected, raised = usual.value, checked.value
    assert (raised.message, raised.param, raised.code) == (expected.message, expected.param, expected.code)


@pytest.mark.parametrize("fields", [{"priority": 3}, {"lora_path": FILLER}, {"custom_logit_processor": [FILLER]}])
def test_large_body_with_a_field_that_clients_may_not_set_is_refused(
    fields: dict[str, object], checker: BodyChecker
) -> None:
    body = json.dumps(LARGE_CHAT | fields).encode()
    with pytest.raises(BadRequest) as refused:
        seen_by_gateway(CHATS, checker.parse_body(ChatRequest, body))
    assert (refused.value.param, refused.value.code) == (*fields, "field_not_allowed")


@pytest.mark.parametrize("name", ["chat_template_kwargs", "vllm_xargs", "odd_kwargs"])
def test_large_body_passes_plain_arguments_of_code_alone(name: str, checker: BodyChecker) -> None:
    for arguments, param in (
        ({"enable_thinking": False}, None),
        ({"chat_template": "x"}, f"{name}.chat_template"),
        ({"text": FILLER}, name),
    ):
        body = json.dumps(LARGE_CHAT | {name: arguments}).encode()
        parsed = checker.parse_body(ChatRequest, body)
        if param is None:
            assert seen_by_gateway(CHATS, parsed)
            continue
        with pytest.raises(BadRequest) as refused:
            seen_by_gateway(CHATS, parsed)
        assert (refused.value.param, refused.value.code) == (param, "field_not_allowed")


@pytest.mark.parametrize("kind", [CompletionRequest, EmbeddingRequest, GenericRequest])
def test_large_prompt_of_token_ids_is_refused_for_an_engine_that_does_not_check_them(
    kind: type[CommonFields], checker: BodyChecker
) -> None:
    name = "prompt" if kind is CompletionRequest else "input"
    body = json.dumps({"model": "tiny", name: [200_000] * 50_000}).encode()
    parsed = checker.parse_body(kind, body)
    for engine, is_refused in (("sglang", True), ("vllm", False)):
        model = Model("default", "tiny", requests=RequestPolicy(engines=frozenset({engine})))
        if is_refused:
            with pytest.raises(BadRequest, match=r"allowedFields: \[input_ids\]"):
                apply_field_policy(body, parsed.members, "/v1/completions", model)
        else:
            assert apply_field_policy(body, parsed.members, "/v1/completions", model) == body


def test_large_body_with_stop_tokens_that_engines_use_as_indices_is_refused(checker: BodyChecker) -> None:
    body = json.dumps(LARGE_CHAT | {"min_tokens": 1, "stop_token_ids": [10**6] * 50}).encode()
    with pytest.raises(BadRequest) as refused:
        seen_by_gateway(CHATS, checker.parse_body(ChatRequest, body))
    assert refused.value.param == "stop_token_ids"


async def test_no_parser_of_the_worker_reads_a_large_body(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the worker parsed a large body")

    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        body = json.dumps(LARGE_CHAT).encode()
        monkeypatch.setattr(body_parser, "_parse_chat_fast", fail)
        monkeypatch.setattr(body_parser, "decode_body", fail)
        assert (await request(running.url, body)).status == 200
        assert [call.body for call in engine.calls] == [body]


def test_reply_does_not_grow_with_the_body() -> None:
    body = json.dumps(
        {"model": "tiny", "prompt": FILLER, "suffix": FILLER, "kv_transfer_params": [FILLER], "x": FILLER}
    ).encode()
    reply = check_body("CompletionRequest", body, LIMITS)
    assert body[reply.prompt_start : reply.prompt_end] == json.dumps(FILLER).encode()
    assert len(reply.fields) < 1_000


@pytest.mark.parametrize("field", ["user", "cache_salt", "stream_options"])
def test_field_that_the_worker_decodes_is_bounded(field: str) -> None:
    value = {"x": FILLER} if field == "stream_options" else 2 * FILLER
    reply = check_body("ChatRequest", json.dumps(GOOD | {"stream": True, field: value}).encode(), LIMITS)
    assert (reply.problem.param, reply.problem.code) == (field, "out_of_range")


@pytest.mark.parametrize("wants_bounds", [False, True])
def test_a_body_is_searched_for_what_it_does_not_bound_only_for_strict_limits(wants_bounds: bool) -> None:
    reply = check_body("ChatRequest", json.dumps(LARGE_CHAT).encode(), LIMITS, wants_bounds=wants_bounds)
    assert (reply.bounds is not None) is wants_bounds


def test_reply_does_not_grow_with_the_names_of_fields() -> None:
    many = {f"{number}": 1 for number in range(50_000)}
    reply = check_body("ChatRequest", json.dumps({FILLER: 1} | many | GOOD | {"rid": "a"}).encode(), LIMITS)
    assert len(reply.members) < 3_000
    assert max(map(len, reply.members)) < 1_000
    assert "rid" in reply.members


def test_checking_process_has_the_limits_of_its_worker() -> None:
    limits = Limits(json_depth=3, retry_share=0.5)
    assert decode_limits(encode_limits(limits)) == limits


def test_checking_process_that_ends_fails_one_body_and_is_replaced() -> None:
    checker = BodyChecker(LIMITS)
    body = json.dumps(LARGE_CHAT).encode()
    checker.parse_body(ChatRequest, body)
    checker._child.process.kill()
    with contextlib.suppress(Overloaded):  # its end is seen before the body is sent, or while it is
        checker.parse_body(ChatRequest, body)
    assert checker.parse_body(ChatRequest, body).model_name == "tiny"
    assert checker._child.start_count == 2
    checker.close()


def test_checking_process_that_hangs_is_given_up() -> None:
    command = (sys.executable, "-c", "import sys; sys.stdin.buffer.read()")
    checker = BodyChecker(Limits(body_check_seconds=0.05), command=command)
    with pytest.raises(Overloaded):
        checker.parse_body(ChatRequest, json.dumps(LARGE_CHAT).encode())
    assert checker._child.process is None
    checker.close()
    with pytest.raises(Overloaded):
        checker.parse_body(ChatRequest, b"{}")


def test_large_bodies_of_one_caller_do_not_keep_others_waiting() -> None:
    limit = LargeBodyLimit(100)
    with limit.reserve(A, 120):  # one is always taken
        with pytest.raises(TooManyLargeBodies), limit.reserve(A, 1):
            pass
        with limit.reserve(B, 60), limit.reserve(B, 40), limit.reserve(ANONYMOUS, 100):
            assert limit.count_callers() == 3
    assert limit.count_callers() == 0
    with limit.reserve(A, 100):
        pass


async def test_large_bodies_of_callers_are_checked_in_turn() -> None:
    turns, order = LargeBodyTurns(), list[str]()

    async def check(caller: CallerKey, name: str) -> None:
        async with turns.turn(caller):
            order.append(name)
            await asyncio.sleep(0)

    async with turns.turn(A):
        names = [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1"), (B, "b2"), (ANONYMOUS, "c1")]
        tasks = [asyncio.create_task(check(caller, name)) for caller, name in names]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["b1", "c1", "a1", "b2", "a2", "a3"]
    assert (turns._waiting, turns._is_taken) == ({}, False)


async def test_large_body_waits_for_its_turn() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        turns = running.gateway._large_bodies.turns
        async with turns.turn(A):
            answer = asyncio.create_task(request(running.url, LARGE_CHAT))
            await wait_until(lambda: ANONYMOUS in turns._waiting)
            assert engine.calls == []
        assert (await answer).status == 200


async def test_client_that_leaves_before_or_at_its_turn_passes_it_on() -> None:
    turns, order = LargeBodyTurns(), list[str]()

    async def check(caller: CallerKey) -> None:
        async with turns.turn(caller):
            order.append(caller)

    async with turns.turn(ANONYMOUS):
        tasks = [asyncio.create_task(check(caller)) for caller in (A, B, A, B)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
    tasks[2].cancel()  # its turn has come, and it has not begun
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [B, B]
    assert (turns._waiting, turns._is_taken) == ({}, False)


async def test_large_body_beyond_the_limit_of_its_caller_gets_429() -> None:
    limits = Limits(caller_large_bodies_bytes=1)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        body = json.dumps(LARGE_CHAT).encode()
        with running.gateway._large_bodies.limit.reserve(ANONYMOUS, 1):
            answer = await request(running.url, body)
            assert (answer.status, answer.error["code"]) == (429, "too_many_large_bodies")
            assert answer.fields["retry-after"] == "1"
        assert (await request(running.url, body)).status == 200


async def test_client_that_disconnects_frees_its_share_of_the_limit() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for _ in range(20):
            connection = await RawConnection.connect(running.url)
            await connection.send(post_request(LARGE_CHAT))
            connection.writer.transport.abort()
        assert (await request(running.url, LARGE_CHAT)).status == 200
        assert running.gateway._large_bodies.limit.count_callers() == 0
