"""A server on loopback that answers clients in three dialects, and keeps what they send.

It speaks Anthropic Messages, OpenAI Responses and Chat Completions, as streams and whole. A
simulated engine behind it writes the answers, with a text that the server chooses. A client that
offers a known tool gets one call of it, and after its result a final text.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from fairlead_gateway.dialects.table import dialect_of
from fairlead_gateway.errors import GatewayError, UnknownPath
from fairlead_sim.engine.chat_template import tool_call_text
from fairlead_testing.processes import unused_port

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
_SUBAGENT_SECONDS = 2.0
_REQUEST_ID = "req-1"
_COUNT_PATH = "/v1/messages/count_tokens"
_SPOKEN = ("/v1/messages", "/v1/responses", "/v1/chat/completions", _COUNT_PATH)
_JSON = ("content-type", "application/json")
_ENGINE_OPTIONS = ("--max-model-len", "131072", "--speed", "50", "--served-model-name", *MODELS)


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
    """An error of the gateway in place of the usual answer.

    headers: of the answer, in place of those of the error.
    after_start: an error event follows the first part of a stream.
    count: so many requests get it; the next ones succeed.
    """

    error: GatewayError
    headers: tuple[tuple[str, str], ...] = ()
    after_start: bool = False
    count: int = 1_000


_UNKNOWN = Fault(UnknownPath("nothing is served here"))


@dataclass(slots=True)
class StubServer:
    """The server; the end of the block stops it."""

    sent: list[SentRequest] = field(default_factory=list)
    fault: Fault | None = None
    _faults: int = 0
    _server: Any = None
    _engine: Any = None
    _engine_port: int = field(default_factory=unused_port)
    _start: float = field(default_factory=time.monotonic)
    _lock: Any = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        stub: StubServer = self

        class Handler(_Handler):
            server_state = stub

        listen = f"127.0.0.1:{self._engine_port}"
        command = [sys.executable, "-m", "fairlead_sim", "engine", "--listen", listen, *_ENGINE_OPTIONS]
        self._engine = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._engine.stdout.readline()  # it is ready
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        with self._engine as engine:
            engine.terminate()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def begin(self, fault: Fault | None = None) -> None:
        self.sent, self.fault, self._faults, self._start = [], fault, 0, time.monotonic()

    def add(self, request: SentRequest) -> None:
        with self._lock:
            self.sent.append(request)

    def take_fault(self) -> Fault | None:
        """Returns the fault of the next request."""
        with self._lock:
            if self.fault is None or self._faults >= self.fault.count:
                return None
            self._faults += 1
            return self.fault

    def ask_engine(self, path: str, body: Mapping[str, Any]) -> tuple[int, str, bytes]:
        """Returns status, content type and body of the simulated engine's answer."""
        connection = HTTPConnection("127.0.0.1", self._engine_port)
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        body_of_answer = answer.read()
        connection.close()
        return answer.status, answer.headers["content-type"], body_of_answer

    def seconds(self) -> float:
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
            self._error(_UNKNOWN)

    def do_POST(self) -> None:
        if "chunked" in (self.headers.get("transfer-encoding") or ""):
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self._keep(body)
        path = self.path.partition("?")[0]
        if path not in _SPOKEN:
            self._error(_UNKNOWN)
            return
        is_answer = path != _COUNT_PATH
        fault = self.server_state.take_fault() if is_answer else None
        if fault is not None and not fault.after_start:
            self._error(fault)
            return
        request = json.loads(body)
        step = next_step(request) if is_answer else None
        if step is None and SUBAGENT_PROMPT.encode() in body:
            time.sleep(_SUBAGENT_SECONDS)  # the client ends with the answer, and the other agent with it
        text = TEXT if step is None else tool_call_text(*step)
        status, kind, answer = self.server_state.ask_engine(path, request | {"structured_outputs": {"choice": [text]}})
        spaces = [tool["name"] for tool in request.get("tools") or () if tool.get("type") == "namespace"]
        if spaces and step is not None and step[0] in SUBAGENT_INPUTS:
            answer = answer.replace(b'"namespace":null', b'"namespace":"%b"' % spaces[0].encode())
        if fault is not None and request.get("stream"):
            events, error = answer.split(b"\n\n"), fault.error
            sent = events[: len(events) // 2]
            form = dialect_of(path).errors
            answer = b"\n\n".join([*sent, b""]) + form.event(
                str(error), error.code, _REQUEST_ID, sequence_number=len(sent)
            )
        self._send(status, answer, (("content-type", kind),))

    def _keep(self, body: bytes) -> None:
        state = self.server_state
        state.add(SentRequest(state.seconds(), self.command, self.path, tuple(self.headers.items()), body))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().strip() or b"0", 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _error(self, fault: Fault) -> None:
        form = dialect_of(self.path.partition("?")[0]).errors
        self._send(
            fault.error.status, form.body(fault.error.status, fault.error.body(_REQUEST_ID)), (_JSON, *fault.headers)
        )

    def _plain(self, status: int, body: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(body).encode(), (_JSON,))

    def _send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        raw = b"" if self.command == "HEAD" else body
        self.send_response(status)
        for name, value in (("content-length", str(len(raw))), *headers):
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
