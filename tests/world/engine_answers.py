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
    """

    name: str
    source: str
    answers: tuple[EngineAnswer, ...]
    status: int
    says: tuple[str, ...]
    never: tuple[str, ...] = ()
    request: dict[str, Any] | None = None
    attempts: int = 1


def _error(body: bytes, status: str = "400 Bad Request", content_type: str = "application/json") -> EngineAnswer:
    return EngineAnswer((body,), status, content_type)


def _stream(*events: bytes) -> EngineAnswer:
    return EngineAnswer(events, content_type="text/event-stream; charset=utf-8")


def _plain(finish: str) -> EngineAnswer:
    choice = f'{{"index":0,"message":{{"role":"assistant","content":"half"}},"finish_reason":{finish}}}'
    return EngineAnswer((f'{{"object":"chat.completion","choices":[{choice}],"usage":null}}'.encode(),))


_GOOD = _plain('"stop"')
_GOOD_STREAM = _stream(_FIRST, _LAST, _DONE)

REFUSALS = (
    Situation(
        "the error object of SGLang",
        "sglang: python/sglang/srt/entrypoints/openai/serving_base.py; claude-code-router 1799",
        (
            _error(
                b'{"object":"error","message":"5000 tokens, context 4096","type":"BadRequest","param":null,"code":400}'
            ),
        ),
        400,
        ('"message":"5000 tokens, context 4096"', '"type":"BadRequest"', '"code":"engine_refused"'),
    ),
    Situation(
        "a code in words is kept",
        "OpenAI: context_length_exceeded",
        (_error(b'{"object":"error","message":"too long","code":"context_length_exceeded"}'),),
        400,
        ('"code":"context_length_exceeded"',),
    ),
    Situation(
        "one text of FastAPI",
        "fastapi: HTTPException",
        (_error(b'{"detail":"Prompt is too long"}', "422 Unprocessable Entity"),),
        422,
        ('"message":"Prompt is too long"',),
    ),
    Situation(
        "fields of FastAPI",
        "fastapi: RequestValidationError",
        (_error(b'{"detail":[{"type":"missing","loc":["body","messages"],"msg":"Field required","input":{}}]}'),),
        400,
        ('"message":"messages: Field required"',),
    ),
    Situation(
        "an error that is a text",
        "text-generation-inference: ErrorResponse; tritonserver",
        (_error(b'{"error":"Input validation error: inputs too long","error_type":"validation"}'),),
        400,
        ('"message":"Input validation error: inputs too long"',),
    ),
    Situation(
        "a message alone",
        "kserve: InferenceError",
        (_error(b'{"message":"no adapter of this name"}', "404 Not Found"),),
        404,
        ('"message":"no adapter of this name"',),
    ),
    Situation(
        "plain text",
        "axum, nginx: rejections are text/plain",
        (_error(b"Failed to parse the request body\n", "422 Unprocessable Entity", "text/plain"),),
        422,
        ('"message":"Failed to parse the request body"',),
    ),
    Situation(
        "a page of a proxy",
        "nginx: 413 Request Entity Too Large",
        (_error(b"<html><title>413</title></html>", "413 Request Entity Too Large", "text/html"),),
        413,
        ("the engine does not serve this request",),
        ("html",),
    ),
    Situation(
        "an unknown path",
        "fastapi: Not Found",
        (_error(b'{"detail":"Not Found"}', "404 Not Found"),),
        404,
        ("the model's engine does not serve this path", '"code":"unknown_url"'),
    ),
    Situation(
        "the object of Anthropic stays as it is",
        "vllm: /v1/messages",
        (_error(b'{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}'),),
        400,
        ('{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}',),
    ),
    Situation(
        "a refusal that is the first event",
        "vllm: stream errors are events",
        (_stream(event({"object": "error", "message": "too long", "code": 400}), _DONE),),
        400,
        ('"message":"too long"',),
        request=STREAM,
    ),
)
ADDED = (
    Situation(
        "a stream whose usage the engine does not count",
        "litellm 28735, 23847: providers that refuse stream_options",
        (_error(b'{"error":{"message":"unknown argument stream_options","type":"x","param":null}}'), _GOOD_STREAM),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "the field in a refusal of FastAPI",
        "fastapi: extra_forbidden",
        (
            _error(
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
        (_error(b'{"error":{"message":"unknown argument stream_options","type":"x","param":null}}'),),
        400,
        ("unknown argument stream_options",),
        request=STREAM | {"stream_options": {"include_usage": True}},
    ),
)
STREAMS = (
    Situation(
        "a stream without [DONE]",
        "gt_ai_gateway 25; litellm 40266",
        (_stream(_FIRST, _LAST, event(usage(7, 0, 2))),),
        200,
        (" two", "data: [DONE]"),
        ('"error"',),
        request=STREAM,
    ),
    Situation(
        "[DONE] without its empty line",
        "WHATWG HTML: a last event may lack it for clients that read lines",
        (_stream(_FIRST, _LAST, b"data: [DONE]\n"),),
        200,
        (" two", "data: [DONE]"),
        ('"error"',),
        request=STREAM,
    ),
    Situation(
        "one of two choices has not finished",
        "gt_ai_gateway 25, the other side of it",
        (_stream(_FIRST, _LAST),),
        502,
        ("last: cut",),
        request=STREAM | {"n": 2},
        attempts=3,
    ),
    Situation(
        "no choice has finished",
        "preloop 117; open-webui 29628",
        (_stream(_FIRST), _GOOD_STREAM),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "lines that end with CR",
        "WHATWG HTML: end-of-line",
        (_stream((_FIRST + _LAST).replace(b"\n", b"\r"), _DONE.replace(b"\n", b"\r")),),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
    ),
    Situation(
        "a byte order mark",
        "WHATWG HTML: event streams may begin with one",
        (_stream(b"\xef\xbb\xbf" + _FIRST, _LAST, _DONE),),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
    ),
    Situation(
        "an error that is empty is none",
        "OpenAI-compatible providers with a member error in each chunk",
        (_stream(event(token("one") | {"error": {}}), event(token(" two", "stop") | {"error": ""}), _DONE),),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
    ),
)
_OVERLOADED = b'{"error":{"message":"busy","type":"overloaded_error","code":503}}'
FAULTS = (
    Situation(
        "a comment is no answer yet",
        "llama.cpp: keep-alive comments every 30 s; vllm 0.33; OpenRouter",
        (_stream(b":\n\n", event(_OVERLOADED.decode()), _DONE), _GOOD_STREAM),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "an error in a field of its own",
        "llama.cpp until the summer of 2025",
        (_stream(b'error: {"code":500,"message":"failed to decode","type":"server_error"}\n\n', _DONE), _GOOD_STREAM),
        200,
        (" two", "data: [DONE]"),
        request=STREAM,
        attempts=2,
    ),
    Situation(
        "a function that the engine lacks",
        "vllm, llama.cpp, TensorRT-LLM: 501 for embeddings of a model that has none",
        (_error(b'{"error":{"message":"no embeddings","type":"NotImplementedError"}}', "501 Not Implemented"),),
        501,
        ("no embeddings",),
    ),
    Situation(
        "full, in the words of Anthropic",
        "Anthropic: overloaded_error",
        (_error(_OVERLOADED, "529 Overloaded"), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        attempts=2,
    ),
    Situation(
        "a time limit of the engine",
        "TensorRT-LLM: finish_reason timeout",
        (_plain('"timeout"'), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        attempts=2,
    ),
    Situation(
        "half an answer of a draining engine",
        "smg 2565; vllm: FinishReason.ABORT",
        (_plain('"abort"'), _GOOD),
        200,
        ('"finish_reason":"stop"',),
        ('"abort"',),
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
        (_stream(b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "abort"}]}\n\n', _DONE), _GOOD_STREAM),
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
        "an error with status 200",
        "sglang, older: errors in bodies with status 200",
        (EngineAnswer((b'{"error":{"message":"out of memory","code":500}}',)), _GOOD),
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
)
