"""Answers under the paths that are passed on, `/v1/messages` and `/v1/responses`.

Rows are as in `engine_answers`.
"""

from engine_answers import OVERLOADED, STREAM, Situation, error_answer, stream_answer

from fairlead_testing.engines.scripted import event

RESPONSES_STREAM = {"model": "tiny", "input": "hi", "stream": True}
MESSAGE_START = b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":7}}}\n\n'
TEXT = b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"hi"}}\n\n'
CREATED = b'event: response.created\ndata: {"type":"response.created","response":{"id":"a"}}\n\n'

PASSED_ANSWERS = (
    Situation(
        "a refusal of llama.cpp under the path of Anthropic",
        "llama.cpp: tools/server/server-context.cpp",
        (error_answer(b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error"}}'),),
        400,
        ('{"type":"error","error":{"type":"invalid_request_error","code":400,"message":"too long"}',),
        path="/v1/messages",
    ),
    Situation(
        "words without an error object under the path of Anthropic",
        "fastapi: HTTPException",
        (error_answer(b'{"detail":"Not Found"}', "404 Not Found"),),
        404,
        ('"type":"error"', '"type":"not_found_error","message":"the model\'s engine does not serve this path; '),
        path="/v1/messages",
    ),
    Situation(
        "all engines are full under the path of Anthropic",
        "vllm: anthropic/serving.py",
        (error_answer(OVERLOADED, "503 Service Unavailable"),),
        503,
        ('{"type":"error","error":{"type":"overloaded_error","message":"all engines that were tried are full',),
        attempts=3,
        path="/v1/messages",
    ),
    Situation(
        "all engines fail under the path of Anthropic",
        "vllm: anthropic/serving.py",
        (error_answer(b"no", "500 Internal Server Error"),),
        502,
        ('{"type":"error","error":{"type":"api_error","message":"no engine answered', '"request_id":"req-'),
        attempts=3,
        path="/v1/messages",
    ),
    Situation(
        "a refusal is the first event under the path of Anthropic",
        "vllm: anthropic/serving.py",
        (
            stream_answer(
                b'event: error\ndata: {"type":"error","error":{"type":"invalid_request_error","message":"too long"}}\n\n'
            ),
        ),
        400,
        ('{"type":"error","error":{"type":"invalid_request_error","message":"too long"',),
        request=STREAM,
        path="/v1/messages",
    ),
    Situation(
        "a failure is the first event of a response",
        "OpenAI: response.failed",
        (
            stream_answer(
                event({"type": "response.failed", "response": {"error": {"code": "server_error", "message": "no"}}})
            ),
            stream_answer(event({"type": "response.completed"})),
        ),
        200,
        ("response.completed",),
        ("response.failed",),
        request=RESPONSES_STREAM,
        attempts=2,
        path="/v1/responses",
    ),
    Situation(
        "a failure after the opening of a message",
        "litellm 38606: 200 and message_start, then overloaded_error",
        (
            stream_answer(
                MESSAGE_START,
                b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n',
            ),
            stream_answer(MESSAGE_START, TEXT, event({"type": "message_stop"})),
        ),
        200,
        ("message_start", '"text":"hi"'),
        ("Overloaded",),
        request=STREAM,
        attempts=2,
        path="/v1/messages",
    ),
    Situation(
        "a failure after the opening of a response",
        "vllm: response.created comes before the prompt is computed",
        (
            stream_answer(
                CREATED,
                event({"type": "response.failed", "response": {"error": {"code": "server_error", "message": "no"}}}),
            ),
            stream_answer(event({"type": "response.completed"})),
        ),
        200,
        ("response.completed",),
        ("response.created", "response.failed"),
        request=RESPONSES_STREAM,
        attempts=2,
        path="/v1/responses",
    ),
)
