"""A body in the form of another API gets an error that names the path of this form."""

import itertools
from typing import Any

import pytest

from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.raw_client import request

pytestmark = pytest.mark.simulated

_HI = [{"role": "user", "content": "hi"}]
_PATHS: dict[str, set[str]] = {
    "messages": {"/v1/chat/completions", "/v1/messages"},
    "input": {"/v1/responses", "/v1/embeddings"},
    "prompt": {"/v1/completions"},
}
_PROMPTS: dict[str, Any] = {"messages": _HI, "input": "hi", "prompt": "hi"}
_CHECKED = ["/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/completions"]


@pytest.mark.parametrize("size", [1, 300_000])  # a large body is checked in a process
@pytest.mark.parametrize(
    ("path", "name"), [pair for pair in itertools.product(_CHECKED, _PATHS) if pair[0] not in _PATHS[pair[1]]]
)
async def test_a_prompt_of_another_api_names_its_paths(path: str, name: str, size: int) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        body = {"model": "tiny", "max_tokens": 5, name: _PROMPTS[name], "user": "x" * size}
        answer = await request(running.url, body, path=path)
        assert (answer.status, answer.error["code"]) == (400, "missing_field")
        assert all(other in answer.error["message"] for other in _PATHS[name])
        answer = await request(running.url, {"model": "tiny", "user": "x" * size}, path=path)
        assert answer.status == 400
        assert "send a body with" not in answer.error["message"]


@pytest.mark.parametrize("tool", [{"name": "f", "input_schema": {}}, {"type": "function", "name": "f"}])
async def test_a_tool_of_another_api_names_its_paths(tool: dict[str, object]) -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        body = {"model": "tiny", "messages": _HI, "tools": [tool]}
        answer = await request(running.url, body, path="/v1/chat/completions")
        assert (answer.status, answer.error["param"]) == (400, "tools[0].function")
        assert "/v1/messages or /v1/responses" in answer.error["message"]
        assert not engine.calls
