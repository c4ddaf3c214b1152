"""The strict client of the soak: which streams it takes for whole and right."""

import json
from typing import Any

import pytest

from e2e.soak.stream_kills import KINDS, StreamParts, body_of
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.runtime.settings import ApiSurface, EngineSettings
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated
TOKENIZER = Tokenizer()
SETTINGS = EngineSettings(served_names=("tiny",), reply_markup=1.0, surface=ApiSurface(reasoning_parser=True))
PATHS = {"messages": "/v1/messages", "responses": "/v1/responses"}


async def events_of(kind: str) -> list[dict[str, Any]]:
    _, body = body_of(KINDS.index(kind))
    async with running_engine(SETTINGS) as engine:
        path = PATHS.get(kind, "/v1/chat/completions")
        answer = await send_request(engine.url.removeprefix("http://"), post_request(path, body))
    lines = answer.body.decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def verdict(kind: str, events: list[dict[str, Any]]) -> str:
    parts = StreamParts()
    for event in events:
        parts.add(event)
    return parts.problem(kind, TOKENIZER)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_whole_stream_is_right_and_one_that_lacks_an_event_is_not(kind: str) -> None:
    events = await events_of(kind)
    assert verdict(kind, events) == ""
    shown = [at for at, event in enumerate(events) if any(word in json.dumps(event) for word in WORDS)]
    middle = shown[len(shown) // 2]
    assert verdict(kind, events[:middle] + events[middle + 1 :])
    assert verdict(kind, events[: middle + 1] + events[middle:])


WORDS = ('"content": "', '"arguments": "', '"text_delta"', '"input_json_delta"', '"thinking_delta"', "text.delta")


@pytest.mark.parametrize("kind", ["tools", "messages", "responses"])
async def test_calls_are_read_in_every_dialect(kind: str) -> None:
    parts = StreamParts()
    for event in await events_of(kind):
        parts.add(event)
    assert parts.calls
    assert all(name == "forecast" and json.loads(arguments) for name, arguments in parts.calls)


async def test_an_error_event_is_kept_with_its_text() -> None:
    parts = StreamParts()
    parts.add({"error": {"message": "no engine could continue it (grammar)"}})
    assert parts.error.endswith("(grammar)")
