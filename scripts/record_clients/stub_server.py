"""A server on loopback that answers clients in three dialects, and keeps what they send.

It speaks Anthropic Messages, OpenAI Responses and Chat Completions, as streams and whole. A client
that offers a known tool gets one call of it, and after its result a final text.
"""

import itertools
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

MODELS = ("claude-sonnet-4-5", "claude-haiku-4-5", "gpt-5", "coder")
TEXT = "The command printed hi."
COMMAND = "echo hi"
TOOL_INPUTS: Mapping[str, Mapping[str, Any]] = {
    "Bash": {"command": COMMAND, "description": "Print hi"},
    "bash": {"command": COMMAND, "description": "Print hi"},
    "exec_command": {"cmd": COMMAND},
    "shell_command": {"command": COMMAND},
    "shell": {"command": ["echo", "hi"]},
    "execute_command": {"command": COMMAND, "requires_approval": False},
    "run_commands": {"commands": [COMMAND]},
}
"""Arguments of the tools of known clients that run a command."""
_TASK = {"description": "Print hi", "prompt": "Run echo hi."}
SUBAGENT_INPUTS: Mapping[str, Mapping[str, Any]] = {
    "Agent": {**_TASK, "subagent_type": "general-purpose"},
    "task": {**_TASK, "subagent_type": "general"},
    "spawn_agent": {"message": "Run echo hi."},
}
"""Arguments of the tools that start another agent, for ``SUBAGENT_PROMPT``."""
SUBAGENT_PROMPT = "Let a subagent run echo hi."
CONTEXT_TOKENS, OUTPUT_TOKENS = 1_000, 7
_SUBAGENT_SECONDS = 2.0
_NUMBERS = itertools.count(1)  # clients drop a second call of the same id


@dataclass(frozen=True, slots=True)
class SentRequest:
    """A request as it came in; ``headers`` are in order, and ``seconds`` count from the start."""

    seconds: float
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer in place of the usual one.

    after_start: an error event follows the first part of a stream. ``response_failed``: in
        Responses it is `response.failed`, not `error`.
    count: so many requests get it; the next ones succeed.
    """

    status: int
    code: str
    message: str
    headers: tuple[tuple[str, str], ...] = ()
    after_start: bool = False
    response_failed: bool = False
    count: int = 1_000


ERROR_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    502: "api_error",
    503: "overloaded_error",
}


@dataclass(slots=True)
class StubServer:
    """The server; the end of the block stops it."""

    sent: list[SentRequest] = field(default_factory=list)
    fault: Fault | None = None
    _faults: int = 0
    _server: Any = None
    _start: float = field(default_factory=time.monotonic)
    _lock: Any = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        stub: StubServer = self

        class Handler(_Handler):
            server_state = stub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address that clients use."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def begin(self, fault: Fault | None = None) -> None:
        """Forgets earlier requests; later ones that generate get the fault."""
        self.sent, self.fault, self._faults, self._start = [], fault, 0, time.monotonic()

    def add(self, request: SentRequest) -> None:
        """Keeps a request."""
        with self._lock:
            self.sent.append(request)

    def take_fault(self) -> Fault | None:
        """Returns the fault of the next request."""
        with self._lock:
            if self.fault is None or self._faults >= self.fault.count:
                return None
            self._faults += 1
            return self.fault

    def seconds(self) -> float:
        """Returns the time since the start."""
        return round(time.monotonic() - self._start, 2)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: StubServer

    def log_message(self, *_: object) -> None:
        """Writes nothing."""

    def do_HEAD(self) -> None:
        self._keep(b"")
        self._plain(200, {})

    def do_GET(self) -> None:
        self._keep(b"")
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            data = [{"id": name, "object": "model", "type": "model", "owned_by": "chat"} for name in MODELS]
            self._plain(200, {"object": "list", "data": data, "has_more": False})
        else:
            self._error(Fault(404, "unknown_url", "nothing is served here"))

    def do_POST(self) -> None:
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self._keep(body)
        path = self.path.partition("?")[0]
        if path == "/v1/messages/count_tokens":
            self._plain(200, {"input_tokens": CONTEXT_TOKENS})
            return
        answer = ANSWERS.get(path)
        if answer is None:
            self._error(Fault(404, "unknown_url", "nothing is served here"))
            return
        fault = self.server_state.take_fault()
        if fault is not None and not fault.after_start:
            self._error(fault)
            return
        request = json.loads(body)
        step = next_step(request)
        if step is None and SUBAGENT_PROMPT.encode() in body:
            time.sleep(_SUBAGENT_SECONDS)  # the client ends with the answer, and the other agent with it
        events = list(answer(request, step))
        if not request.get("stream"):
            self._plain(200, _whole(path, events))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if fault is not None:
            events = [*events[: len(events) // 2], _error_event(path, fault)]
        for name, event in events:
            text = event if isinstance(event, str) else json.dumps(event)
            head = f"event: {name}\n" if name else ""
            self._chunk(f"{head}data: {text}\n\n".encode())
        self._chunk(b"")

    def _keep(self, body: bytes) -> None:
        state = self.server_state
        state.add(SentRequest(state.seconds(), self.command, self.path, tuple(self.headers.items()), body))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _error(self, fault: Fault) -> None:
        body = _error_of(self.path.partition("?")[0], fault)
        if not self.path.startswith("/v1/messages"):
            body.pop("type", None)
        self._plain(fault.status, body, fault.headers)

    def _plain(self, status: int, body: Mapping[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> None:
        raw = b"" if self.command == "HEAD" else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)


def next_step(request: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Returns the tool to call and its arguments; None for the final text."""
    turns = request.get("messages") or request.get("input") or []
    if isinstance(turns, list) and turns and _is_tool_result(turns):
        return None
    known = TOOL_INPUTS
    if SUBAGENT_PROMPT in json.dumps(turns[-1:]):
        known = SUBAGENT_INPUTS
    names = [name for tool in request.get("tools") or [] for name in _names(tool)]
    return next(((name, known[name]) for name in names if name in known), None)


def _names(tool: Mapping[str, Any]) -> list[str]:
    """Returns the name of a tool, or those within its namespace."""
    if tool.get("type") == "namespace":
        return [inner["name"] for inner in tool["tools"]]
    return [str(tool.get("name") or tool.get("function", {}).get("name"))]


def _is_tool_result(turns: list[Any]) -> bool:
    """Whether a tool's result follows the last answer of the model."""
    for turn in reversed(turns):
        if turn.get("role") == "tool" or str(turn.get("type", "")).endswith("_call_output"):
            return True
        content = turn.get("content")
        if isinstance(content, list) and any(part.get("type") == "tool_result" for part in content):
            return True
        if turn.get("role") == "assistant" or turn.get("type") in ("function_call", "reasoning"):
            return False
    return False


Step = tuple[str, Mapping[str, Any]] | None
Events = Iterator[tuple[str, Any]]


def _messages(request: Mapping[str, Any], step: Step) -> Events:
    number = next(_NUMBERS)
    usage = {"input_tokens": CONTEXT_TOKENS, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    message = {"id": f"msg_{number}", "type": "message", "role": "assistant", "model": request["model"], "content": []}
    empty = {"stop_reason": None, "stop_sequence": None}
    start = {**message, **empty, "usage": {**usage, "output_tokens": 1}}
    yield "message_start", {"type": "message_start", "message": start}
    block: dict[str, Any]
    if step is None:
        block, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": TEXT}
    else:
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": step[0], "input": {}}
        delta = {"type": "input_json_delta", "partial_json": json.dumps(step[1])}
    yield "content_block_start", {"type": "content_block_start", "index": 0, "content_block": block}
    yield "content_block_delta", {"type": "content_block_delta", "index": 0, "delta": delta}
    yield "content_block_stop", {"type": "content_block_stop", "index": 0}
    ended = {"stop_reason": "tool_use" if step else "end_turn", "stop_sequence": None}
    yield "message_delta", {"type": "message_delta", "delta": ended, "usage": {"output_tokens": OUTPUT_TOKENS}}
    yield "message_stop", {"type": "message_stop"}


def _responses(request: Mapping[str, Any], step: Step) -> Events:
    number = next(_NUMBERS)
    base = {"id": f"resp_{number}", "object": "response", "created_at": 1, "model": request["model"], "error": None}
    items: list[Any] = []
    yield "response.created", {"type": "response.created", "response": {**base, "status": "in_progress", "output": []}}
    if step is None:
        part = {"type": "output_text", "text": TEXT, "annotations": []}
        item: dict[str, Any] = {"type": "message", "id": f"msg_{number}", "role": "assistant", "content": []}
        where = {"item_id": f"msg_{number}", "output_index": 0, "content_index": 0}
        steps: list[dict[str, Any]] = [
            {"type": "response.content_part.added", **where, "part": {**part, "text": ""}},
            {"type": "response.output_text.delta", **where, "delta": TEXT},
            {"type": "response.output_text.done", **where, "text": TEXT},
            {"type": "response.content_part.done", **where, "part": part},
        ]
        whole = {**item, "content": [part]}
    else:
        item = {
            "type": "function_call",
            "id": f"fc_{number}",
            "call_id": f"call_{number}",
            "name": step[0],
            "arguments": "",
        }
        if step[0] in SUBAGENT_INPUTS:
            item["namespace"] = next(tool["name"] for tool in request["tools"] if tool["type"] == "namespace")
        text = json.dumps(step[1])
        where = {"item_id": f"fc_{number}", "output_index": 0}
        steps = [
            {"type": "response.function_call_arguments.delta", **where, "delta": text},
            {"type": "response.function_call_arguments.done", **where, "arguments": text},
        ]
        whole = {**item, "arguments": text}
    added = {"type": "response.output_item.added", "output_index": 0, "item": {**item, "status": "in_progress"}}
    done = {"type": "response.output_item.done", "output_index": 0, "item": {**whole, "status": "completed"}}
    items.append(done["item"])
    usage = {
        "input_tokens": CONTEXT_TOKENS,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": OUTPUT_TOKENS,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": CONTEXT_TOKENS + OUTPUT_TOKENS,
    }
    completed = {**base, "status": "completed", "output": items, "usage": usage}
    for number, event in enumerate(
        [added, *steps, done, {"type": "response.completed", "response": completed}], start=1
    ):
        yield event["type"], {**event, "sequence_number": number}


def _chat(request: Mapping[str, Any], step: Step) -> Events:
    number = next(_NUMBERS)
    base = {"id": f"chatcmpl-{number}", "object": "chat.completion.chunk", "created": 1, "model": request["model"]}
    if step is None:
        delta: dict[str, Any] = {"content": TEXT}
    else:
        function = {"name": step[0], "arguments": json.dumps(step[1])}
        delta = {"tool_calls": [{"index": 0, "id": f"call_{number}", "type": "function", "function": function}]}
    parts: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None), (delta, None)]
    for part, reason in [*parts, ({}, "tool_calls" if step else "stop")]:
        yield "", {**base, "choices": [{"index": 0, "delta": part, "finish_reason": reason}]}
    if (request.get("stream_options") or {}).get("include_usage") or not request.get("stream"):
        total = CONTEXT_TOKENS + OUTPUT_TOKENS
        counts = {"prompt_tokens": CONTEXT_TOKENS, "completion_tokens": OUTPUT_TOKENS, "total_tokens": total}
        yield "", {**base, "choices": [], "usage": counts}
    yield "", "[DONE]"


ANSWERS = {"/v1/messages": _messages, "/v1/responses": _responses, "/v1/chat/completions": _chat}


def _whole(path: str, events: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the answer that the events make."""
    if path == "/v1/responses":
        whole: dict[str, Any] = events[-1][1]["response"]
        return whole
    if path == "/v1/messages":
        block, delta = events[1][1]["content_block"], events[2][1]["delta"]
        if block["type"] == "text":
            block["text"] = delta["text"]
        else:
            block["input"] = json.loads(delta["partial_json"])
        message = events[0][1]["message"]
        message["usage"]["output_tokens"] = OUTPUT_TOKENS
        return {**message, "content": [block], "stop_reason": events[-2][1]["delta"]["stop_reason"]}
    first, delta, last, usage = (event for _, event in events[:4])
    message = {**first["choices"][0]["delta"], **delta["choices"][0]["delta"]}
    choice = {"index": 0, "message": message, "finish_reason": last["choices"][0]["finish_reason"]}
    return {**first, "object": "chat.completion", "choices": [choice], "usage": usage["usage"]}


def _error_event(path: str, fault: Fault) -> tuple[str, Any]:
    """Returns the event with which a gateway ends a broken stream."""
    error = _error_of(path, fault)
    if path == "/v1/messages":
        return "error", error
    if path == "/v1/chat/completions":
        return "", {"error": error["error"], "request_id": error["request_id"]}
    if fault.response_failed:
        response = {"id": "resp_0", "status": "failed", "error": {"code": "server_error", "message": fault.message}}
        return "response.failed", {"type": "response.failed", "response": response, "sequence_number": 9}
    fields = {"code": fault.code, "message": fault.message, "param": None}
    return "error", {"type": "error", **fields, "sequence_number": 9}


def _error_of(path: str, fault: Fault) -> dict[str, Any]:
    """Returns the gateway's error object in the dialect of the path."""
    kind = ERROR_TYPES[fault.status]
    if not path.startswith("/v1/messages"):
        kind = {401: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}.get(
            fault.status, "server_error"
        )
        if fault.code == "insufficient_quota":
            kind = fault.code
    error = {"message": fault.message, "type": kind, "param": None, "code": fault.code}
    return {"type": "error", "error": error, "request_id": "req-1"}
