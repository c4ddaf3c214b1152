"""The key of a prompt in messages and responses is its text in the order of rendering."""

import json
from itertools import permutations
from typing import Any

import pytest

from fairlead.errors import SettingsError
from fairlead.limits import Limits
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.request import build_route_request, parse_request, session_name
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.prefix.prefix_hash import ChainStarts, shared_bytes
from fairlead_gateway.tenants.worker.tenant_policy import parse_changing_text
from fairlead_testing.gateway.running_gateway import fleet_of

SYSTEM = [{"type": "text", "text": "You are a coding agent. " * 200}]
TOOLS = [{"name": "bash", "description": "Runs a command. " * 100, "input_schema": {"type": "object"}}]
TURN = {"role": "user", "content": "Fix the test. " * 50}
MESSAGES: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "system": SYSTEM, "tools": TOOLS, "messages": [TURN]}
RESPONSES: dict[str, Any] = {
    "model": "tiny",
    "instructions": "You are a coding agent. " * 200,
    "tools": [{"type": "function", **TOOLS[0]}],
    "input": [{"type": "message", **TURN}],
}


def parsed(path: str, body: dict[str, Any], *headers: tuple[bytes, bytes]) -> tuple[ModelRequest, RequestHead]:
    data = json.dumps(body).encode()
    head = RequestHead("POST", path, list(headers), 11, len(data), keep_alive=True, expects_continue=False)
    return parse_request(path, data, fleet_of([]), Limits()), head


def routed(path: str, body: dict[str, Any], tenant: str = "", headers: Any = ()) -> RouteRequest:
    request, head = parsed(path, body, *headers)
    return build_route_request(request, head, "r", ChainStarts(b"secret"), None, tenant)


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/v1/messages", MESSAGES, ("system", "tools", "messages")),
        ("/v1/responses", RESPONSES, ("instructions", "tools", "input")),
    ],
)
def test_the_order_of_fields_does_not_change_the_key(path: str, body: dict[str, Any], fields: tuple[str, ...]) -> None:
    chains = {
        routed(path, {"model": "tiny", **{name: body[name] for name in order}}).chain.hashes
        for order in permutations(fields)
    }
    assert len(chains) == 1
    (hashes,) = chains
    assert hashes


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", MESSAGES), ("/v1/responses", RESPONSES)])
def test_conversations_share_instructions_and_tools(path: str, body: dict[str, Any]) -> None:
    name = "messages" if "messages" in body else "input"
    other = {**body, name: [{**body[name][0], "content": "Write a page. " * 50}]}
    first, second = routed(path, body).chain, routed(path, other).chain
    context = sum(len(json.dumps(body[field])) for field in body if field in ("system", "instructions", "tools"))
    assert context - 512 <= shared_bytes(first, second) <= context + 32


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", MESSAGES), ("/v1/responses", RESPONSES)])
def test_a_turn_continues_the_turn_before(path: str, body: dict[str, Any]) -> None:
    name = "messages" if "messages" in body else "input"
    longer = {**body, name: [*body[name], {"role": "assistant", "content": "Done."}, TURN]}
    first, second = routed(path, body).chain, routed(path, longer).chain
    assert shared_bytes(first, second) == first.ends[-1]


def test_lines_on_billing_and_marks_of_a_cache_are_left_out_of_the_key() -> None:
    def request_of(number: str, marked: int) -> dict[str, Any]:
        line = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.{number}; cc_entrypoint=cli;"}
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "text", "text": f"turn {turn} " * 60}]} for turn in range(3)
        ]
        turns[marked]["content"][0]["cache_control"] = {"type": "ephemeral"}
        return {**MESSAGES, "system": [line, *SYSTEM], "messages": turns}

    chains = {
        routed("/v1/messages", request_of(number, marked)).chain.tail for number in ("1", "abc") for marked in range(3)
    }
    assert len(chains) == 1
    texts = [f"x-anthropic-billing-header: cc_version={number};\nYou are an agent." for number in ("1", "abc")]
    assert len({routed("/v1/messages", {**MESSAGES, "system": text}).chain.tail for text in texts}) == 1
    spoken = {**MESSAGES, "messages": [{"role": "user", "content": 'say "cache_control": {"a": 1}, please'}]}
    assert routed("/v1/messages", spoken).chain.tail not in chains


def test_text_that_the_operator_names_is_left_out_of_the_key() -> None:
    starts = ChainStarts(b"secret")
    chains = set()
    for pattern in (None, parse_changing_text("[0-9]{2}:[0-9]{2}")):
        starts.changing_text = pattern
        for time in ("11:59", "12:00"):
            body = {"model": "tiny", "messages": [{"role": "system", "content": f"It is {time}. {TURN}"}, TURN]}
            request, head = parsed("/v1/chat/completions", body)
            chains.add((pattern, build_route_request(request, head, "r", starts).chain.tail))
    assert len(chains) == 3
    with pytest.raises(SettingsError, match="FAIRLEAD_CHANGING_TEXT"):
        parse_changing_text("[")


def test_what_stands_for_a_part_of_the_prompt_is_in_the_key() -> None:
    first = routed("/v1/responses", {**RESPONSES, "previous_response_id": "resp_1"}).chain
    second = routed("/v1/responses", {**RESPONSES, "previous_response_id": "resp_2"}).chain
    assert shared_bytes(first, second) == shared_bytes(first, routed("/v1/responses", RESPONSES).chain) == 0


@pytest.mark.parametrize(
    ("path", "body", "headers", "expected"),
    [
        ("/v1/chat/completions", {"session_id": "b"}, [(b"x-session-id", b"a")], ("a", True)),
        ("/v1/messages", {}, [(b"x-claude-code-session-id", b"a")], ("a", True)),
        ("/v1/messages", {}, [(b"x-claude-code-session-id", b"a"), (b"x-claude-code-agent-id", b"b")], ("a b", True)),
        ("/v1/responses", {}, [(b"session-id", b"b"), (b"thread-id", b"a")], ("a", True)),
        ("/v1/responses", {"prompt_cache_key": "b"}, [(b"session-id", b"a")], ("a", True)),
        ("/v1/responses", {"prompt_cache_key": "b"}, [(b"session_id", b"a")], ("a", True)),
        ("/v1/responses", {"prompt_cache_key": "b", "safety_identifier": "c"}, [], ("b", True)),
        ("/v1/chat/completions", {"prompt_cache_key": "b", "user": "c"}, [], ("b", True)),
        ("/v1/chat/completions", {"session_id": "a", "prompt_cache_key": "b"}, [], ("a", True)),
        ("/v1/messages", {"metadata": {"user_id": "a"}}, [], ("a", False)),
        ("/v1/messages", {"metadata": {"user_id": None}}, [], (None, False)),
        ("/v1/messages", {"metadata": [1]}, [], (None, False)),
        ("/v1/responses", {"safety_identifier": "c"}, [], ("c", False)),
        ("/v1/responses", {"user": "b", "safety_identifier": "c"}, [], ("b", False)),
        ("/v1/chat/completions", {}, [], (None, False)),
    ],
)
def test_the_first_name_of_a_session_counts(
    path: str, body: dict[str, Any], headers: list[tuple[bytes, bytes]], expected: tuple[str | None, bool]
) -> None:
    bodies = {"/v1/messages": MESSAGES, "/v1/responses": RESPONSES}
    request, head = parsed(path, {**bodies.get(path, {"model": "tiny", "messages": [TURN]}), **body}, *headers)
    assert session_name(request, head) == expected


def test_sessions_of_one_name_are_others_for_another_tenant() -> None:
    headers = [(b"x-claude-code-session-id", b"a")]
    hashes = {routed("/v1/messages", MESSAGES, tenant, headers).session_hash for tenant in ("", "acme", "other")}
    assert len(hashes) == 3
    assert None not in hashes
    user = {**MESSAGES, "metadata": {"user_id": "a"}}
    assert routed("/v1/messages", user).session_hash is None
