"""Refusals of the three dialects, byte for byte as vLLM's own handlers write them."""

import json
from pathlib import Path
from typing import Any

import pytest

from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.http.raw_client import request as raw_request
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import RecordedRequest
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated
HANDLERS = Path(__file__).parents[2] / "recordings" / "vllm" / "handlers"
RECORDED: list[dict[str, Any]] = json.loads((HANDLERS / "errors.json").read_text())
TURNS = [{"role": "user", "content": "x"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/messages": {"model": "sim", "max_tokens": 20, "messages": TURNS, "stream": True},
    "/v1/responses": {"model": "sim", "max_output_tokens": 20, "input": "x", "stream": True},
}


@pytest.mark.parametrize("row", RECORDED, ids=[row["name"] for row in RECORDED])
async def test_a_refusal_is_written_as_vllm_writes_it(row: dict[str, Any]) -> None:
    request = post_request(row["path"], row["body"])
    if "method" in row:
        request = RecordedRequest(row["method"], row["path"], (("Host", ""), ("Content-Length", "")), b"")
    async with running_engine(EngineSettings(served_names=("tiny",))) as served:
        answer = await send_request(served.url.removeprefix("http://"), request)
    assert (answer.status, answer.body.decode()) == (row["status"], row["answer"])


async def stream(served: RunningEngine, path: str, *, complete: bool) -> list[str]:
    answer = await raw_request(served.url, BODIES[path], path=path, more="content-type: application/json\r\n")
    assert (answer.status, answer.complete) == (200, complete)
    return [line.removeprefix("event: ") for line in answer.body.decode().splitlines() if line.startswith("event: ")]


async def test_a_message_stream_ends_with_an_error_event_when_the_core_dies() -> None:
    async with running_engine() as served:
        served.engine.pause("keep", lambda: None)
        answer = send_request(served.url.removeprefix("http://"), post_request("/v1/messages", BODIES["/v1/messages"]))
        served.engine.call_after(0.1, served.engine.kill_core)
        body = (await answer).body.decode()
    kind, data = body.strip().split("\n")
    error = json.loads(data.removeprefix("data: "))["error"]
    assert (kind, error["type"]) == ("event: error", "internal_error")
    assert "input_value={'error': {'message': 'En...am': None, 'code': 500}}, input_type=dict" in error["message"]


async def test_a_full_queue_is_an_error_event_of_messages_and_breaks_off_responses() -> None:
    async with running_engine(EngineSettings(max_queued_requests=0)) as served:
        assert await stream(served, "/v1/messages", complete=True) == ["error"]
        begun = ["response.created", "response.in_progress"]
        assert await stream(served, "/v1/responses", complete=False) == begun


async def test_a_response_opens_before_its_first_token_is_computed() -> None:
    async with running_engine() as served:
        served.engine.pause("keep", lambda: None)
        served.engine.call_after(0.1, served.engine.kill_core)
        assert await stream(served, "/v1/responses", complete=False) == ["response.created", "response.in_progress"]
