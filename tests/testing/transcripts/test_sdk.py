"""The openai SDK against the simulated engine, with the calls made to a real engine and to llm-d's.

20-sdk-check lists the answers of the real engine, 21-sdk-check-llmd-sim those of llm-d's simulator.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import openai
import pydantic
import pytest

from fairlead_testing.engines.disaggregated import EngineProcess, engine_process

SWITCHES = ("--model", "tiny", "--profile", "tiny-cpu", "--max-model-len", "4096", "--lora", "static-lora=/models/a")
HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "Hello"}]


class Verdict(pydantic.BaseModel):
    """A response format with the SDK's parser."""

    good: bool


def checked(check: Callable[[openai.OpenAI], None], *switches: str) -> None:
    """Runs a check in a thread, with an SDK client of a running engine."""

    def inside(engine: EngineProcess) -> None:
        with openai.OpenAI(base_url=f"http://{engine.authority}/v1", api_key="none", max_retries=0) as client:
            check(client)

    async def scenario() -> None:
        async with engine_process(*SWITCHES, *switches) as engine:
            await asyncio.to_thread(inside, engine)

    asyncio.run(scenario())


@contextmanager
def failing(status: int) -> Iterator[pytest.ExceptionInfo[openai.APIStatusError]]:
    """Checks that the body fails with this status."""
    with pytest.raises(openai.APIStatusError) as caught:
        yield caught
    assert caught.value.status_code == status


def test_models_are_listed_with_adapters_and_nothing_else_is_served() -> None:
    def check(client: openai.OpenAI) -> None:
        assert [model.id for model in client.models.list()] == ["tiny", "static-lora"]
        with failing(404):
            client.models.retrieve("tiny")
        with failing(404):
            client.files.list()
        with failing(404):
            client.batches.list()
        with failing(404):
            client.moderations.create(input="x")
        with failing(404):
            client.audio.transcriptions.create(model="tiny", file=("a.wav", b"RIFF"))

    checked(check)


def test_an_engine_that_generates_alone_has_no_embeddings() -> None:
    def check(client: openai.OpenAI) -> None:
        with failing(404):
            client.embeddings.create(model="tiny", input="x")

    checked(check, "--task", "generate")


def test_chat_whole_and_streamed_with_usage() -> None:
    def check(client: openai.OpenAI) -> None:
        whole = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=7)
        assert (whole.choices[0].finish_reason, whole.usage and whole.usage.completion_tokens) == ("length", 7)
        assert whole._request_id
        stream = client.chat.completions.create(
            model="tiny", messages=HELLO, max_tokens=7, stream=True, stream_options={"include_usage": True}
        )
        events = list(stream)
        assert len(events) == 9
        assert (events[-1].choices, events[-1].usage and events[-1].usage.completion_tokens) == ([], 7)
        assert "".join(event.choices[0].delta.content or "" for event in events[:-1])

    checked(check)


def test_the_streaming_helper_rejects_a_cut_output_as_with_the_real_engine() -> None:
    def check(client: openai.OpenAI) -> None:
        with (
            client.chat.completions.stream(
                model="tiny", messages=HELLO, max_tokens=1, response_format=Verdict
            ) as stream,
            pytest.raises(openai.LengthFinishReasonError),
        ):
            stream.until_done()

    checked(check)


def test_completions_take_n_logprobs_and_token_ids() -> None:
    def check(client: openai.OpenAI) -> None:
        two = client.completions.create(model="tiny", prompt="one two", n=2, logprobs=2, max_tokens=3)
        assert len(two.choices) == 2
        assert all(choice.logprobs and len(choice.logprobs.tokens or []) == 3 for choice in two.choices)
        ids = client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=2)
        assert ids.usage is not None
        assert ids.usage.prompt_tokens == 3

    checked(check)


def test_responses_whole_and_streamed() -> None:
    def check(client: openai.OpenAI) -> None:
        whole = client.responses.create(model="tiny", input="Hello", max_output_tokens=4)
        assert (whole.status, whole.usage and whole.usage.output_tokens) == ("incomplete", 4)
        with client.responses.create(model="tiny", input="Hello", max_output_tokens=2, stream=True) as stream:
            kinds = [event.type for event in stream]
        assert kinds[:6] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
        ]

    checked(check)


def test_errors_have_their_classes_and_bodies() -> None:
    def check(client: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as unknown:
            client.chat.completions.create(model="nope", messages=HELLO)
        assert unknown.value.body == {
            "message": "The model `nope` does not exist. Valid aliases: tiny.",
            "type": "NotFoundError",
            "param": "model",
            "code": 404,
        }
        with pytest.raises(openai.BadRequestError, match="temperature must be non-negative, got -3\\.0"):
            client.chat.completions.create(model="tiny", messages=HELLO, temperature=-3)
        with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens"):
            client.completions.create(model="tiny", prompt=[5] * 100_000, max_tokens=1)

    checked(check)


def test_the_messages_route_has_no_known_error_of_llm_ds_simulator() -> None:
    """21-sdk-check-llmd-sim: no token counting, streams that break clients, malformed errors."""

    def check(client: openai.OpenAI) -> None:
        turn = {"model": "tiny", "messages": HELLO}
        with httpx.Client(base_url=str(client.base_url), trust_env=False) as http:
            assert http.post("/messages/count_tokens", json=turn).json()["input_tokens"] > 0
            whole = http.post("/messages", json={**turn, "max_tokens": 4}).json()
            assert (whole["stop_reason"], whole["usage"]["output_tokens"]) == ("max_tokens", 4)
            unknown = http.post("/messages", json={**turn, "model": "nope", "max_tokens": 4})
            assert (unknown.status_code, unknown.json()["type"], unknown.json()["error"]["type"]) == (
                404,
                "error",
                "NotFoundError",
            )
            stream = http.post("/messages", json={**turn, "max_tokens": 3, "stream": True}).text
            kinds = [line.removeprefix("event: ") for line in stream.splitlines() if line.startswith("event: ")]
            assert kinds == [
                "message_start",
                "content_block_start",
                *["content_block_delta"] * 3,
                "content_block_stop",
                "message_delta",
                "message_stop",
            ]

    checked(check)
