"""Answers of engines that people have reported, and what the gateway must make of each.

A row is one situation. Its `source` is where it was seen: an issue of a project, or the source of
an engine. `answers` are the bytes that engines send, one for each attempt; the last is sent again.
"""

from dataclasses import dataclass
from typing import Any

from fairlead_testing.engines.scripted import event, token, usage

PLAIN = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = PLAIN | {"stream": True}
_FIRST = event(token("one"))
_LAST = event(token(" two", "stop"))
_DONE = event("[DONE]")
_LAST_CHOICE = {"index": 0, "delta": {}, "finish_reason": "stop"}
_EMPTY = {
    "choices": [{"index": 0, "delta": {"content": None, "role": None, "tool_calls": None}, "finish_reason": None}]
}


@dataclass(frozen=True, slots=True)
class EngineAnswer:
    """An answer of an engine. A body of several parts is sent in chunks."""

    body: tuple[bytes, ...]
    status: str = "200 OK"
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Situation:
    """A situation, and the right answer.

    says: texts in the right answer. never: texts that must not be in it.
    attempts: engines that are asked.
    path: of the request.
    """

    name: str
    source: str
    answers: tuple[EngineAnswer, ...]
    status: int
    says: tuple[str, ...]
    never: tuple[str, ...] = ()
    request: dict[str, Any] | None = None
    attempts: int = 1
    path: str = "/v1/chat/completions"


def error_answer(body: bytes, status: str = "400 Bad Request", content_type: str = "application/json") -> EngineAnswer:
    return EngineAnswer((body,), status, content_type)


def stream_answer(*events: bytes) -> EngineAnswer:
    return EngineAnswer(events, content_type="text/event-stream; charset=utf-8")


def _plain(finish: str) -> EngineAnswer:
    choice = f'{{"index":0,"message":{{"role":"assistant","content":"half"}},"finish_reason":{finish}}}'
    return EngineAnswer((f'{{"object":"chat.completion","choices":[{choice}],"usage":null}}'.encode(),))


def _members(**members: object) -> bytes:
    """The usage event of a stream, with members that no event before it has."""
    return event(usage(7, 0, 2) | {"choices": []} | members)


_GOOD = _plain('"stop"')
_GOOD_STREAM = stream_answer(_FIRST, _LAST, _DONE)

REFUSALS = (
    Situation(
        "the error object of SGLang",
        "sglang: python/sglang/srt/entrypoints/openai/serving_base.py; claude-code-router 1799",
        (
            error_answer(
                b'{"object":"error","message":"5000 tokens, context 4096","type":"BadRequest","param":null,"code":400}'
            ),
        ),
        400,
        ('"message":"5000 tokens, context 4096"', '"type":"BadRequest"', '"code":"engine_refused"'),
    ),
    Situation(
        "a code in words is kept",
        "OpenAI: context_length_exceeded",
        (error_answer(b'{"object":"error","message":"too long","code":"context_length_exceeded"}'),),
        400,
        ('"code":"context_length_exceeded"',),
    ),
    Situation(
        "one text of FastAPI",
        "fastapi: HTTPException",
        (error_answer(b'{"detail":"Prompt is too long"}', "422 Unprocessable Entity"),),
        422,
        ('"message":"Prompt is too long"',),
    ),
    Situation(
        "fields of FastAPI",
        "fastapi: RequestValidationError",
        (error_answer(b'{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required","input":{}}]}'),),
        400,
        ('"message":"messages: Field required"',),
    ),
    Situation(
        "an error that is a text",
        "text-generation-inference: ErrorResponse; tritonserver",
        (error_answer(b'{"error":"Input validation error: inputs too long","error_type":"validation"}'),),
        400,
        ('"message":"Input validation error: inputs too long"',),
    ),
    Situation(
        "a message alone",
        "kserve: InferenceError",
        (error_answer(b'{"message":"no adapter of this name"}', "404 Not Found"),),
        404,
        ('"message":"no adapter of this name"',),
    ),
    Situation(
        "plain text",
        "axum, nginx: rejections are text/plain",
        (error_answer(b"Failed to parse the request body\n", "422 Unprocessable Entity", "text/plain"),),
        422,
        ('"message":"Failed to parse the request body"',),
    ),
    Situation(
        "an unknown path",
        "fastapi: Not Found",
        (error_answer(b'{"detail":"Not Found"}', "404 Not Found"),),
        404,
        ("the model's engine does not serve this path", '"code":"unknown_url"'),
    ),
    Situation(
        "the object of Anthropic stays as it is",
        "vllm: /v1/messages",
        (error_answer(b'{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}'),),
        400,
        ('{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}',),
    ),
    Situation(
        "a refusal that is the first event",
        "vllm: stream errors are events",
        (stream_answer(event({"object": "error", "message": "too long", "code": 400}), _DONE),),
        400,
        ('"message":"too long"',),
        request=STREAM,
    ),
)
ADDED = (
    Situation(
        "a stream whose usage the engine does not count",
        "litellm 28735, 23847: providers that refuse stream_options",
        (
            error_answer(b'{"error":{"message":"unknown argument stream_options","type":"x","param":null}}'),
            _GOOD_STREAM,
        ),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "the field in a refusal of FastAPI",
        "fastapi: extra_forbidden",
        (
            error_answer(
                b'{"detail":[{"loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]}',
                "422 Unprocessable Entity",
            ),
            _GOOD_STREAM,
        ),
        200,
        (" two", "data: [DONE]"),
        request=STREAM | {"stream_options": {"include_usage": False}},
        attempts=2,
    ),
    Situation(
        "a field of the client's own is refused to it",
        "the other side of litellm 23847",
        (error_answer(b'{"error":{"message":"unknown argument stream_options","type":"x","param":null}}'),),
        400,
        ("unknown argument stream_options",),
        request=STREAM | {"stream_options": {"include_usage": True}},
    ),
)
STREAMS = (
    Situation(
        "one of two choices has not finished",
        "gt_ai_gateway 25, the other side of it",
        (stream_answer(_FIRST, _LAST),),
        502,
        ("last: cut",),
        request=STREAM | {"n": 2},
        attempts=3,
    ),
    Situation(
        "no choice has finished",
        "preloop 117; open-webui 29628",
        (stream_answer(_FIRST), _GOOD_STREAM),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "chunks after the finish reason",
        "agno 3826: LiteLLM sends empty deltas, stream_options and usage after it",
        (
            stream_answer(
                _FIRST,
                _LAST,
                event(_EMPTY | {"stream_options": {"include_usage": True}}),
                event(_EMPTY | {"usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}}),
                _DONE,
            ),
        ),
        200,
        (" two", '"tool_calls":null', '"completion_tokens":2', "data: [DONE]"),
        ('"error"',),
        request=STREAM,
    ),
    Situation(
        "the stop sequence that matched",
        "agentgateway 3283; vllm 45807: stop_reason of vLLM, matched_stop of SGLang",
        (
            stream_answer(
                _FIRST, event({"choices": [_LAST_CHOICE | {"stop_reason": "END", "matched_stop": "END"}]}), _DONE
            ),
        ),
        200,
        ('"stop_reason":"END"', '"matched_stop":"END"'),
        request=STREAM | {"stop": ["END"]},
    ),
    Situation(
        "members of a delta that the OpenAI API lacks",
        "litellm 38907: a proxy that builds chunks anew drops reasoning_items",
        (
            stream_answer(
                event(
                    {"choices": [{"index": 0, "delta": {"reasoning_items": [{"id": "rs_1"}]}, "finish_reason": None}]}
                ),
                _LAST,
                _DONE,
            ),
        ),
        200,
        ('"reasoning_items":[{"id":"rs_1"}]', " two", "data: [DONE]"),
        request=STREAM,
    ),
    Situation(
        "an error that is empty is none",
        "OpenAI-compatible providers with a member error in each chunk",
        (stream_answer(event(token("one") | {"error": {}}), event(token(" two", "stop") | {"error": ""}), _DONE),),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
    ),
)
OVERLOADED = b'{"error":{"message":"busy","type":"overloaded_error","code":503}}'
FAULTS = (
    Situation(
        "a time limit of the engine",
        "TensorRT-LLM: finish_reason timeout",
        (_plain('"timeout"'), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        attempts=2,
    ),
    Situation(
        "half an answer, written with spaces",
        "json.dumps without separators",
        (EngineAnswer((b'{"choices": [{"index": 0, "finish_reason": "abort"}]}',)), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        attempts=2,
    ),
    Situation(
        "an abort in a stream, written with spaces",
        "json.dumps without separators",
        (
            stream_answer(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}\n\n', _DONE),
            _GOOD_STREAM,
        ),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "a failure of the engine is its finish reason",
        "vllm: FinishReason.ERROR, a lost transfer of the KV cache",
        (_plain('"error"'), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        attempts=2,
    ),
    Situation(
        "the word abort in a text is a text",
        "the other side of smg 2565",
        (
            EngineAnswer(
                (
                    b'{"choices":[{"index":0,"message":{"content":"\\"finish_reason\\":\\"abort\\""},"finish_reason":"stop"}]}',
                )
            ),
        ),
        200,
        ("abort",),
    ),
    Situation(
        "JSON for a stream",
        "aibrix 1340",
        (_GOOD,),
        502,
        ("last: garbage",),
        ("status-502",),
        request=STREAM,
        attempts=3,
    ),
    Situation(
        "a stream for a plain request",
        "aibrix 1340",
        (_GOOD_STREAM,),
        502,
        ("last: garbage",),
        ("status-502",),
        attempts=3,
    ),
    Situation(
        "an engine limits requests while another has room",
        "TGI: 429 Model is overloaded",
        (error_answer(b'{"error":"Model is overloaded","error_type":"overloaded"}', "429 Too Many Requests"), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        attempts=2,
    ),
    Situation(
        "all engines limit requests",
        "TGI: 429 Model is overloaded",
        (error_answer(b'{"error":"Model is overloaded","error_type":"overloaded"}', "429 Too Many Requests"),),
        429,
        ('"message":"Model is overloaded"', '"code":"engine_refused"', "rate_limit_error"),
        attempts=3,
    ),
    Situation(
        "an error that repeats the request is longer than any error should be",
        "vllm 0.11: 12,001 entries of pydantic; FastAPI: input of each field",
        (
            EngineAnswer(
                (
                    b'{"detail":[{"type":"missing","msg":"Field \\"x\\" required","input":"',
                    *(b"y" * 65_536,) * 20,
                    b'"}]}',
                ),
                "422 Unprocessable Entity",
            ),
        ),
        422,
        ('"message":"Field \\"x\\" required"',),
        ("yyyy",),
    ),
)
USAGE_EVENTS = (
    Situation(
        "timings in the usage event that the client did not ask for",
        "llama.cpp: tools/server/server-task.cpp, timings are in the last event",
        (stream_answer(_FIRST, _LAST, _members(timings={"prompt_n": 7}), _DONE),),
        200,
        ('"finish_reason":"stop"', '"timings":{"prompt_n":7}}\n\ndata: [DONE]'),
        ('"usage"', '"choices":[]'),
        request=STREAM,
    ),
    Situation(
        "a fingerprint and metrics in the usage event, in one read with the end",
        "vllm 0.32, 0.33: system_fingerprint, metrics",
        (stream_answer(_FIRST + _LAST + _members(system_fingerprint="vllm-0.33", metrics=[1]) + _DONE),),
        200,
        ('"system_fingerprint":"vllm-0.33","metrics":[1]}\n\ndata: [DONE]',),
        ('"usage"', '"choices":[]'),
        request=STREAM,
    ),
    Situation(
        "nothing but a usage in the usage event",
        "the other side of the timings of llama.cpp",
        (stream_answer(_FIRST, _LAST, _members(), _DONE),),
        200,
        ((_FIRST + _LAST + _DONE).decode(),),
        request=STREAM,
    ),
    Situation(
        "timings before and behind a usage with details",
        "llama.cpp: tools/server/server-task.cpp; the order of members is free",
        (
            stream_answer(
                _FIRST,
                _LAST,
                b'data: {"mine":1,"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":1}},"timings":{"a":{}}}\n\n',
                _DONE,
            ),
        ),
        200,
        ('"mine":1,"timings":{"a":{}}}\n\ndata: [DONE]',),
        ('"usage"',),
        request=STREAM,
    ),
    Situation(
        "a fingerprint before a usage that is the last member",
        "vllm 0.32: system_fingerprint; the order of members is free",
        (
            stream_answer(
                _FIRST, _LAST, b'data: {"system_fingerprint":"v","choices":[],"usage":{"total_tokens":1}}\n\n', _DONE
            ),
        ),
        200,
        ('"system_fingerprint":"v"}\n\ndata: [DONE]',),
        ('"usage"',),
        request=STREAM,
    ),
    Situation(
        "no usage event after the last one",
        "the other side of the timings of llama.cpp: an engine that ignores stream_options",
        (stream_answer(_FIRST, _LAST, _DONE),),
        200,
        ((_FIRST + _LAST + _DONE).decode(),),
        request=STREAM,
    ),
    Situation(
        "the client asked for the usage event",
        "the other side of the timings of llama.cpp",
        (stream_answer(_FIRST, _LAST, _members(timings={"prompt_n": 7}), _DONE),),
        200,
        (_members(timings={"prompt_n": 7}).decode(),),
        request=STREAM | {"stream_options": {"include_usage": True}},
    ),
    Situation(
        "an event between the last one and the usage",
        "llama.cpp: keep-alive comments",
        (stream_answer(_FIRST, _LAST, b":\n\n", _members(timings={"prompt_n": 7}), _DONE),),
        200,
        ((_FIRST + _LAST).decode(), "data: [DONE]"),
        ('"usage"',),
        request=STREAM,
    ),
)
