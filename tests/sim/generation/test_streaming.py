"""Streams of the simulated engine, and greedy decoding."""

import json
from typing import Any

import pytest

from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.server.process import RunningEngine
from fairlead_testing.http.raw_client import request
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.sim.engines import running_engine, running_engines
from fairlead_testing.transcripts.recording import HttpResponse
from fairlead_testing.transcripts.replay import post_request, send_request

pytestmark = pytest.mark.simulated


def response_to(target: str, **body: Any) -> HttpResponse:
    """Returns one answer of a fresh engine."""

    async def scenario() -> HttpResponse:
        async with running_engine() as engine:
            return await post(engine, target, **body)

    return run_async(scenario())


async def post(engine: RunningEngine, target: str, **body: Any) -> HttpResponse:
    return await send_request(engine.url.removeprefix("http://"), post_request(target, body))


HELLO = [{"role": "user", "content": "Hello"}]


def test_a_stream_of_a_thousand_tokens_is_a_thousand_events_in_chunks_of_their_own() -> None:
    answer = response_to("/v1/completions", prompt="go", max_tokens=1000, stream=True)
    events = answer.events()
    assert len(events) == 1001
    assert len(answer.chunks) == 1001
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert [event["choices"][0]["finish_reason"] for event in events[:-1]] == [None] * 999 + ["length"]
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    "limits",
    [
        {"max_tokens": 40},
        {},
        {"max_tokens": 60, "stop": ["a"]},
        {"max_tokens": 60, "stop": ["qq", "b c", "zz"]},
        {"max_tokens": 60, "stop": "a", "include_stop_str_in_output": True},
        {"max_tokens": 60, "response_format": {"type": "json_object"}},
        {"max_tokens": 2, "structured_outputs": {"choice": ["ja – natürlich", "nein"]}},
    ],
)
@pytest.mark.parametrize("top", [None, 2])
async def test_a_stream_says_what_the_whole_answer_says(limits: dict[str, Any], top: int | None) -> None:
    more = {} if top is None else {"logprobs": True, "top_logprobs": top}
    async with running_engine() as engine:
        body = {"messages": HELLO, "seed": 3, **limits, **more}
        whole = (await post(engine, "/v1/chat/completions", **body)).json()["choices"][0]
        stream = await post(engine, "/v1/chat/completions", **body, stream=True, return_token_ids=True)
        choices = [event["choices"][0] for event in stream.events()[:-1]]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == whole["message"]["content"]
        assert choices[-1]["finish_reason"] == whole["finish_reason"]
        assert choices[-1]["stop_reason"] == whole["stop_reason"]
        assert all(len(choice["token_ids"]) == 1 for choice in choices[1:])


@pytest.mark.parametrize(
    ("target", "prompt"), [("chat/completions", {"messages": HELLO}), ("completions", {"prompt": "a"})]
)
async def test_an_event_with_token_ids_is_the_one_without_and_its_id(target: str, prompt: dict[str, Any]) -> None:
    async with running_engine() as engine:
        body = {**prompt, "n": 2, "seed": 3, "max_tokens": 40, "stream": True}
        plain = (await post(engine, f"/v1/{target}", **body)).events()
        with_ids = (await post(engine, f"/v1/{target}", **body, return_token_ids=True)).events()
        assert len(with_ids) == len(plain)
        for event, other in zip(with_ids[:-1], plain[:-1], strict=True):
            (choice,) = event["choices"]
            ids = choice.get("token_ids") or []
            text = choice["text"] if "text" in choice else choice["delta"]["content"]
            assert engine.engine.tokenizer.decode(ids) == text
            event["prompt_token_ids"] = choice["token_ids"] = choice["prompt_token_ids"] = None
            other["prompt_token_ids"] = other["choices"][0]["token_ids"] = other["choices"][0]["prompt_token_ids"] = (
                None
            )
            assert event | {"id": "", "created": 0} == other | {"id": "", "created": 0}


async def test_text_that_may_belong_to_a_stop_string_is_held_back() -> None:
    async with running_engine() as engine:
        whole = (await post(engine, "/v1/completions", prompt="x", max_tokens=12)).json()["choices"][0]["text"]
        stop = whole[9:15]
        stream = await post(engine, "/v1/completions", prompt="x", max_tokens=12, stop=stop, stream=True)
        events = stream.events()[:-1]
        assert "".join(event["choices"][0]["text"] for event in events) == whole[:9]
        assert events[0]["choices"][0]["text"] == ""
        assert events[-1]["choices"][0]["stop_reason"] == stop
        assert len(events) == 4


def test_without_a_limit_a_chat_ends_by_itself_on_a_token_without_text() -> None:
    answer = response_to("/v1/chat/completions", messages=HELLO, stream=True, return_token_ids=True).events()
    last = answer[-2]["choices"][0]
    assert (last["finish_reason"], last["stop_reason"], last["delta"]) == ("stop", None, {})
    assert last["token_ids"] == [2]


async def test_ignore_eos_without_a_limit_goes_on_to_the_models_length() -> None:
    async with running_engine() as engine:
        authority = engine.url.removeprefix("http://")
        body = {"messages": HELLO, "ignore_eos": True}
        rendered = (await send_request(authority, post_request("/v1/chat/completions/render", body))).json()
        room = engine.engine.settings.max_model_len - len(rendered["token_ids"])
        assert rendered["sampling_params"]["max_tokens"] == room


def test_completions_without_a_limit_have_sixteen_tokens() -> None:
    usage = response_to("/v1/completions", prompt="x").json()["usage"]
    assert usage["completion_tokens"] == 16


def test_min_tokens_come_before_any_end() -> None:
    answer = response_to(
        "/v1/chat/completions", messages=HELLO, min_tokens=50, max_tokens=60, stop=["a", "e", "i"]
    ).json()
    assert answer["usage"]["completion_tokens"] > 50


def test_choices_interleave_by_index_and_differ() -> None:
    events = response_to("/v1/completions", prompt=["one", "two"], n=2, max_tokens=5, stream=True).events()[:-1]
    texts: dict[int, str] = {}
    for event in events:
        choice = event["choices"][0]
        texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    assert sorted(texts) == [0, 1, 2, 3]
    assert len(set(texts.values())) == 4
    assert [event["choices"][0]["index"] for event in events[:4]] == [0, 1, 2, 3]


async def test_equal_requests_say_the_same_and_another_seed_something_else() -> None:
    async with running_engine() as engine:

        async def text(**more: Any) -> str:
            answer = await post(engine, "/v1/completions", prompt="x", max_tokens=8, **more)
            completion: str = answer.json()["choices"][0]["text"]
            return completion

        assert await text() == await text()
        assert await text(seed=1) == await text(seed=1)
        assert await text(seed=1) != await text(seed=2)


def test_echo_gives_the_prompt_first() -> None:
    events = response_to("/v1/completions", prompt='say "x"', echo=True, max_tokens=2, stream=True).events()[:-1]
    assert events[0]["choices"][0]["text"].startswith('say "x" ')


async def test_usage_comes_once_at_the_end_or_with_every_event() -> None:
    async with running_engine() as engine:

        async def usages(**options: bool) -> list[Any]:
            stream = await post(
                engine, "/v1/completions", prompt="x y", max_tokens=3, stream=True, stream_options=options
            )
            return [event.get("usage") for event in stream.events()[:-1]]

        assert [usage is not None for usage in await usages(include_usage=True)] == [False, False, False, True]
        running = await usages(include_usage=True, continuous_usage_stats=True)
        assert [usage["completion_tokens"] for usage in running] == [1, 2, 3, 3]


async def test_the_next_turn_finds_the_blocks_of_the_answer_before() -> None:
    async with running_engine() as engine:
        first = (await post(engine, "/v1/chat/completions", messages=HELLO, max_tokens=64)).json()
        message = first["choices"][0]["message"]
        turns = [*HELLO, {"role": "assistant", "content": message["content"]}, {"role": "user", "content": "More"}]
        usage = (await post(engine, "/v1/chat/completions", messages=turns, max_tokens=1)).json()["usage"]
        in_first = first["usage"]["prompt_tokens"] + 63
        assert usage["prompt_tokens_details"]["cached_tokens"] == in_first // 16 * 16


def test_a_schema_is_answered_with_json_that_fits_it() -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 18}, "ok": {"enum": ["yes"]}},
        "required": ["name", "age", "ok"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    choice = response_to("/v1/chat/completions", messages=HELLO, response_format=form).json()["choices"][0]
    assert choice["message"]["content"] == '{"name":"simulated","age":18,"ok":"yes"}'
    assert choice["finish_reason"] == "stop"


SETTINGS = EngineSettings(model="tiny", served_names=("tiny",), speed=200.0)
KIND = "content-type: application/json\r\n"
CHAT = "/v1/chat/completions"


async def answered(url: str, path: str, body: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Returns text, finish reason and usage."""
    answer = await request(url, {"model": "tiny", "temperature": 0, **body}, path=path, more=KIND)
    assert answer.status == 200, answer.body
    choice = answer.json["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    return text, choice["finish_reason"], answer.json["usage"]


@pytest.mark.parametrize("cut", [1, 7, 16, 33])
async def test_a_completion_goes_on_wherever_it_was_cut_and_on_any_engine(cut: int) -> None:
    async with running_engines(2, SETTINGS) as (engine, two):
        prompt = "once upon a time"
        whole, _, _ = await answered(engine.url, "/v1/completions", {"prompt": prompt, "max_tokens": 50})
        first, _, _ = await answered(two.url, "/v1/completions", {"prompt": prompt, "max_tokens": cut})
        rest, _, _ = await answered(two.url, "/v1/completions", {"prompt": prompt + first, "max_tokens": 50 - cut})
        assert first + rest == whole


async def test_a_chat_goes_on_to_its_natural_end() -> None:
    async with running_engines(2, SETTINGS) as (engine, two):
        for number in range(5):
            turn = [{"role": "user", "content": f"question {number}"}]
            whole, reason, counted = await answered(engine.url, CHAT, {"messages": turn})
            half = whole[: len(whole) // 8 * 4]
            more = {"continue_final_message": True, "add_generation_prompt": False}
            open_turn = [*turn, {"role": "assistant", "content": half}]
            rest, ended, left = await answered(two.url, CHAT, {"messages": open_turn, **more})
            assert half + rest == whole
            assert ended == reason
            assert left["total_tokens"] == counted["total_tokens"]


async def test_other_prompts_have_other_answers() -> None:
    async with running_engines(1, SETTINGS) as (engine,):
        texts = {
            (await answered(engine.url, "/v1/completions", {"prompt": f"say {number}", "max_tokens": 8}))[0]
            for number in range(20)
        }
        assert len(texts) == 20


async def test_the_last_message_cannot_go_on_and_be_answered() -> None:
    async with running_engines(1, SETTINGS) as (engine,):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "continue_final_message": True}
        answer = await request(engine.url, body, more=KIND)
        assert answer.status == 400
        assert "continue_final_message" in json.loads(answer.body)["error"]["message"]
