"""Requests of real clients, as recorded, get complete answers through the gateway."""

import dataclasses
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead_sim.runtime.settings import EngineSettings
from fairlead_testing.client_recordings import FOLDER, ClientRequest, read_client
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse
from fairlead_testing.sim.engines import running_engines

pytestmark = pytest.mark.simulated
CLIENTS = sorted(FOLDER.glob("*.json"))
OUTPUT_TOKENS = 16
NAMES = ("claude-sonnet-4-5", "claude-haiku-4-5", "gpt-5", "coder")
SETTINGS = EngineSettings(model="tiny", served_names=("tiny", *NAMES), speed=50.0, max_model_len=131_072)
LIMITS = {"/v1/responses": "max_output_tokens", "/v1/messages": "max_tokens", "/v1/chat/completions": "max_tokens"}
LAST_EVENTS = {
    "/v1/responses": ("response.completed", "response.incomplete"),
    "/v1/messages": ("message_stop",),
}
SESSIONS = {
    "claude-code": "X-Claude-Code-Session-Id",
    "codex": "session-id",
    "opencode": "x-session-id",
    "opencode-messages": "x-session-id",
    "opencode-responses": "x-session-id",
    "librechat": "x-session-id",
    "open-webui": "x-session-id",
}
"""The headers that name a conversation; Cline and Aider send none."""
CONNECTION_FIELDS = ("host", "content-length", "connection", "transfer-encoding")


@asynccontextmanager
async def gateway_for_clients() -> AsyncIterator[RunningGateway]:
    """A gateway before two simulated engines. Their model has the names that clients ask for."""
    async with running_engines(2, SETTINGS) as engines:
        fleet = fleet_of([engine.url for engine in engines])
        model = dataclasses.replace(fleet.models[MODEL_KEY], served_names=NAMES)
        async with running_gateway(dataclasses.replace(fleet, models={MODEL_KEY: model})) as running:
            yield running


async def replay(running: RunningGateway, request: ClientRequest) -> RawResponse:
    """Sends a recorded request with its own headers, and a short limit of output tokens."""
    path = request.target.partition("?")[0]
    changes: dict[str, object] = {LIMITS[path]: OUTPUT_TOKENS} if path in LIMITS else {}
    if path == "/v1/messages" and "thinking" in request.body:
        changes["thinking"] = None  # its budget is above the short limit
    body = request.encode_body(**changes)
    lines = [f"{name}: {value}" for name, value in request.headers if name.lower() not in CONNECTION_FIELDS]
    head = "\r\n".join(
        [f"{request.method} {request.target} HTTP/1.1", "host: x", *lines, f"content-length: {len(body)}"]
    )
    connection = await RawConnection.connect(running.url)
    try:
        await connection.send(f"{head}\r\n\r\n".encode() + body)
        return await connection.read_response(head_only=request.method == "HEAD")
    finally:
        await connection.close()


def usage_of(path: str, answer: RawResponse, is_stream: bool) -> tuple[int, int]:
    """The prompt's and the output's tokens, as the answer states them."""
    found = [json.loads(data) for data in _data(answer) if data != "[DONE]"] if is_stream else [answer.json]
    if path == "/v1/messages":
        usage = next(event["usage"] for event in reversed(found) if "usage" in event)
        cached = usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"]
        return usage["input_tokens"] + cached, usage["output_tokens"]
    if path == "/v1/responses":
        usage = (found[-1]["response"] if is_stream else found[0])["usage"]
        return usage["input_tokens"], usage["output_tokens"]
    usage = next(event["usage"] for event in reversed(found) if event.get("usage"))
    return usage["prompt_tokens"], usage["completion_tokens"]


def _data(answer: RawResponse) -> list[str]:
    lines = answer.body.decode().split("\n")
    return [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]


def assert_complete(path: str, answer: RawResponse) -> None:
    """The stream has the last event of its dialect, and no error."""
    assert answer.complete
    assert '"error":{' not in answer.body.decode()
    data = _data(answer)
    if path == "/v1/chat/completions":
        assert data[-1] == "[DONE]"
    else:
        kinds = [json.loads(event)["type"] for event in data if event != "[DONE]"]
        assert kinds[-1] in LAST_EVENTS[path]


@pytest.mark.parametrize("recording", CLIENTS, ids=[path.stem for path in CLIENTS])
async def test_requests_are_accepted_complete_and_counted(recording: Path) -> None:
    requests = read_client(recording)
    assert requests
    async with gateway_for_clients() as running:
        for request in requests:
            path = request.target.partition("?")[0]
            answer = await replay(running, request)
            if path not in LIMITS:
                continue
            assert answer.status == 200, (path, answer.body[:500])
            is_stream = bool(request.body.get("stream"))
            if is_stream:
                assert_complete(path, answer)
            outcome: Any = running.gateway.decisions.latest(1)[0]
            if not is_stream or path != "/v1/chat/completions" or request.body.get("stream_options"):
                counted = (outcome.prompt_tokens, outcome.output_tokens)
                assert counted == usage_of(path, answer, is_stream), (request.conversation, request.turn)
            assert outcome.output_tokens == OUTPUT_TOKENS


@pytest.mark.parametrize("recording", CLIENTS, ids=[path.stem for path in CLIENTS])
async def test_other_paths_get_what_the_client_can_use(recording: Path) -> None:
    expected = {"/v1/models": 200, "/v1/messages/count_tokens": 200}
    async with gateway_for_clients() as running:
        for request in read_client(recording):
            path = request.target.partition("?")[0]
            if path not in LIMITS:
                answer = await replay(running, request)
                assert answer.status == expected.get(path, 404), (path, answer.body[:300])


def session_of(client: str, request: ClientRequest) -> str | None:
    fields = {name.lower(): value for name, value in request.headers}
    return fields.get(SESSIONS[client].lower())


def generating(client: str, conversations: tuple[int, ...] = (0, 1)) -> list[ClientRequest]:
    """The requests of a client for text, in some of its conversations."""
    requests = read_client(FOLDER / f"{client}.json")
    return [one for one in requests if one.conversation in conversations and one.target.partition("?")[0] in LIMITS]


@pytest.mark.parametrize("client", SESSIONS)
def test_a_header_names_the_conversation(client: str) -> None:
    by_conversation: dict[int, set[str | None]] = {}
    for request in generating(client):
        by_conversation.setdefault(request.conversation, set()).add(session_of(client, request))
    found = [name for names in by_conversation.values() for name in names]
    assert len(by_conversation) == len(found) == len(set(found)) == 2
    assert None not in found


def test_codex_names_the_conversation_in_its_body_too() -> None:
    for request in generating("codex", (0, 1, 2)):
        assert request.body["prompt_cache_key"] == session_of("codex", request)


def test_claude_code_names_the_conversation_and_the_device_in_its_body_too() -> None:
    requests = generating("claude-code")
    users = [json.loads(request.body["metadata"]["user_id"]) for request in requests]
    assert [user["session_id"] for user in users] == [session_of("claude-code", request) for request in requests]
    assert len({user["device_id"] for user in users}) == 1


def test_the_billing_line_of_claude_code_differs_between_conversations() -> None:
    lines: dict[int, set[str]] = {}
    for request in generating("claude-code"):
        lines.setdefault(request.conversation, set()).add(request.body["system"][0]["text"])
    (first,), (second,) = lines.values()
    assert first != second
    assert first.startswith("x-anthropic-billing-header: cc_version=")


@pytest.mark.parametrize(
    ("client", "child", "shares_session"),
    [
        ("claude-code", "x-claude-code-agent-id", True),
        ("codex", "x-codex-parent-thread-id", True),
        ("opencode", "x-parent-session-id", False),
    ],
)
def test_another_agent_of_a_conversation_has_a_header_of_its_own(client: str, child: str, shares_session: bool) -> None:
    requests = generating(client, (2,))
    children = [one for one in requests if child in {name.lower() for name, _ in one.headers}]
    assert 0 < len(children) < len(requests)
    own = {session_of(client, one) for one in children}
    assert (own == {session_of(client, requests[0])}) is shares_session
