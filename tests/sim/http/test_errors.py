"""Bad requests: always 400 and never 422, with the engine's messages."""

from typing import Any

import pytest

from fairlead_sim.runtime.settings import ApiSurface, EngineSettings
from fairlead_testing.pytest_hooks.coroutine_tests import run_async
from fairlead_testing.sim.engines import running_engine
from fairlead_testing.transcripts.recording import HttpResponse, RecordedRequest
from fairlead_testing.transcripts.replay import get_request, post_request, send_request

pytestmark = pytest.mark.simulated
SETTINGS = EngineSettings(max_model_len=100)


def response_to(request: RecordedRequest, settings: EngineSettings = SETTINGS) -> HttpResponse:
    async def scenario() -> HttpResponse:
        async with running_engine(settings) as served:
            return await send_request(served.url.removeprefix("http://"), request)

    return run_async(scenario())


def error(target: str, **body: Any) -> dict[str, Any]:
    answer = response_to(post_request(target, body))
    refusal: dict[str, Any] = answer.json()["error"]
    assert answer.status == refusal["code"]
    return refusal


def raw(body: bytes, kind: str = "application/json") -> HttpResponse:
    headers = (("Host", ""), ("Content-Type", kind), ("Content-Length", ""))
    return response_to(RecordedRequest("POST", "/v1/completions", headers, body))


HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("body", "kind", "param"),
    [
        ({"max_tokens": "many"}, "int_parsing", "body.max_tokens"),
        ({"max_tokens": 1.5}, "int_from_float", "body.max_tokens"),
        ({"max_tokens": []}, "int_type", "body.max_tokens"),
        ({"temperature": "hot"}, "float_parsing", "body.temperature"),
        ({"temperature": {}}, "float_type", "body.temperature"),
        ({"stream": "maybe"}, "bool_parsing", "body.stream"),
        ({"stop": 7}, "string_type", "body.stop"),
        ({"model": 7}, "string_type", "body.model"),
        ({"stream_options": 7}, "dict_type", "body.stream_options"),
        ({"messages": "Hello"}, "list_type", "body.messages"),
        ({"messages": [7]}, "dict_type", "body.messages.0"),
        ({"messages": [{"content": "x"}]}, "missing", "body.messages.0.role"),
        ({"messages": [{"role": "user", "content": 7}]}, "string_type", "body.messages.0.content"),
        ({"response_format": {"type": "poem"}}, "literal_error", "body.response_format.type"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(body: dict[str, Any], kind: str, param: str) -> None:
    refusal = error("/v1/chat/completions", **{"messages": HELLO, **body})
    assert (refusal["type"], refusal["param"], refusal["code"]) == ("Bad Request", param, 400)
    assert f"'type': '{kind}'" in refusal["message"]


def test_several_wrong_fields_are_named_together() -> None:
    refusal = error("/v1/completions", prompt="x", max_tokens="a", n="b")
    assert refusal["message"].startswith("2 validation errors:\n")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 10**9}, "n must be at most 16384"),
        ({"top_p": 0}, "top_p must be in (0, 1], got 0.0."),
        ({"presence_penalty": 3}, "presence_penalty must be in [-2, 2], got 3.0."),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0."),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens must be less than or equal to max_tokens=5, got 6."),
        ({"stop": ""}, "stop cannot contain an empty string."),
        ({"logprobs": 30}, "greater than max allowed: 20"),
        ({"suffix": "x"}, "suffix is not currently supported"),
        ({"prompt": ""}, "Either prompt or prompt_embeds must be provided"),
        ({"prompt": [-1]}, "Token id -1 is out of vocabulary"),
        ({"prompt": [[]]}, ""),
        ({"prompt": "a b c d e f", "max_tokens": 96}, "for a total of 102 tokens"),
        ({"stream_options": {"include_usage": True}}, "Stream options can only be defined when `stream=True`."),
    ],
)
def test_a_value_out_of_range_is_refused(body: dict[str, Any], words: str) -> None:
    refusal = error("/v1/completions", **{"prompt": "x", "max_tokens": 3, **body})
    assert refusal["code"] == 400
    assert words in refusal["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[1]", b'"x"', b"nan", b"{" * 5000, b'{"a":' * 100_000, b'{"prompt":"\\ud800"}', b"{}{}"],
)
def test_a_body_that_is_no_json_object_is_400(body: bytes) -> None:
    assert raw(body).status == 400


@pytest.mark.parametrize("target", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/messages"])
def test_text_that_cannot_fit_is_refused_before_it_is_cut_into_tokens(target: str) -> None:
    text = "x" * 5_000_000
    turns = [{"role": "user", "content": text}]
    answer = response_to(
        post_request(target, {"model": "sim", "prompt": text, "input": text, "messages": turns, "max_tokens": 1})
    )
    assert answer.status == 400
    assert "maximum context length is 100 tokens" in answer.json()["error"]["message"]


def test_another_content_type_is_refused() -> None:
    answer = raw(b'{"prompt":"x"}', "text/plain")
    assert answer.status == 400
    assert "Only 'application/json' is allowed" in answer.json()["error"]["message"]


def test_control_characters_and_emoji_in_a_prompt_are_legal() -> None:
    answer = raw(b'{"prompt":"\\u0000\\u001b\xf0\x9f\x98\x80","max_tokens":1}')
    assert answer.json()["usage"]["prompt_tokens"] == 6


def test_images_are_refused_by_a_model_of_text() -> None:
    parts = [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    refusal = error("/v1/chat/completions", messages=[{"role": "user", "content": parts}])
    assert (refusal["code"], refusal["type"]) == (400, "BadRequestError")


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    tokens = [
        response_to(post_request("/tokenize", {"messages": [{"role": "user", "content": content}]})).json()["tokens"]
        for content in (parts, "Hello")
    ]
    assert tokens[0] == tokens[1]


NAMED = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ("required", 'tool_choice="required" requires --tool-call-parser to be set'),
        (NAMED, 'tool_choice=function "f" requires --tool-call-parser to be set'),
        ("auto", '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'),
    ],
)
def test_tools_need_a_parser(choice: object, words: str) -> None:
    tools = {"tools": [NAMED], "tool_choice": choice, "messages": HELLO}
    settings = EngineSettings(surface=ApiSurface(auto_tool_choice=False))
    refusal = response_to(post_request("/v1/chat/completions", tools), settings).json()["error"]
    assert (refusal["code"], refusal["message"]) == (400, words)


def test_unknown_paths_and_methods_speak_the_frameworks_words() -> None:
    assert response_to(get_request("/v1/files")).json() == {"detail": "Not Found"}
    wrong = response_to(get_request("/v1/chat/completions"))
    assert (wrong.status, wrong.fields["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "target", ["/pause?mode=now", "/sleep?level=3", "/sleep?level=x", "/sleep?level=-1", "/pause?clear_cache=perhaps"]
)
def test_bad_query_values_are_400_and_name_the_parameter(target: str) -> None:
    answer = response_to(post_request(target))
    assert answer.status == 400
    assert answer.json()["error"]["param"] == "query." + target.partition("?")[2].partition("=")[0]
