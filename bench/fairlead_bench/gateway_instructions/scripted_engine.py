"""An engine whose answers are written by the script that counts: it gets each request as a call and
answers it when it wants to."""

import json
import queue
import socket
import threading
from typing import NamedTuple

_CALL_SECONDS = 60.0
_PROMPT_TOKENS = 512
_PLAIN_TEXT = "word " * 140
_EVENT = {"id": "chatcmpl-6f1d2c3b4a5968778695a4b3c2d1e0f1", "object": "chat.completion.chunk", "created": 1763600000}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: scripted\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Call:
    """One request that waits for its answer."""

    def __init__(self, connection: socket.socket, model: str, body: bytes) -> None:
        self._connection = connection
        self._model = model
        self._counts_usage = b'"include_usage":true' in body.replace(b" ", b"")

    def answer(self, completion_tokens: int, prompt_tokens: int = _PROMPT_TOKENS) -> None:
        """Answers with about a kilobyte of JSON that reports so many tokens."""
        message = {"role": "assistant", "content": _PLAIN_TEXT}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        body = {"id": _EVENT["id"], "object": "chat.completion", "created": _EVENT["created"], "model": self._model}
        self._send_whole(200, "OK", body | {"choices": [choice], "usage": _usage(completion_tokens, prompt_tokens)})

    def answer_prefill(self, prompt_tokens: int) -> None:
        """Answers as an engine that has computed a prompt for another one."""
        params = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[1, 2, 3]]}
        params |= {"remote_engine_id": "engine-Prefill", "remote_request_id": "request", "tp_size": 1}
        params |= {"remote_host": "127.0.0.1", "remote_port": 5_600}
        choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "length"}
        body = {"id": _EVENT["id"], "object": "chat.completion", "created": _EVENT["created"], "model": self._model}
        body |= {"choices": [choice], "usage": _usage(1, prompt_tokens), "kv_transfer_params": params}
        self._send_whole(200, "OK", body)

    def refuse(self) -> None:
        """Answers 503, as an engine without room does."""
        error = {"message": "the engine is full", "type": "ServiceUnavailableError", "param": None, "code": 503}
        self._send_whole(503, "Service Unavailable", {"error": error})

    def begin_stream(self) -> None:
        """Sends the head of a stream and its first event."""
        self._connection.sendall(_STREAM_HEAD + self._event({"role": "assistant", "content": ""}))

    def send_event(self) -> None:
        """Sends one event with one token."""
        self._connection.sendall(self._event({"content": " token"}))

    def end_stream(self, completion_tokens: int) -> None:
        """Sends the last event, the usage where it was asked for, and the end."""
        rest = self._event({}, "stop")
        if self._counts_usage:
            body = _EVENT | {"model": self._model, "choices": [], "usage": _usage(completion_tokens)}
            rest += _chunk(b"data: " + _encoded(body) + b"\n\n")
        self._connection.sendall(rest + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _event(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _chunk(b"data: " + _encoded(_EVENT | {"model": self._model, "choices": [choice]}) + b"\n\n")

    def _send_whole(self, status: int, reason: str, content: dict[str, object]) -> None:
        body = _encoded(content)
        head = f"HTTP/1.1 {status} {reason}\r\nserver: scripted\r\ncontent-type: application/json\r\n"
        self._connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)


class Request(NamedTuple):
    """A request that was read from a connection. ``rest`` are the bytes behind it."""

    method: str
    body: bytes
    rest: bytes


class ScriptedEngine:
    """An engine on a free loopback port. Requests for completions become calls; all else, such as
    metrics, is answered 404."""

    def __init__(self, calls: "queue.Queue[Call]") -> None:
        self._calls = calls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        received = b""
        with connection:
            while (request := read_request(connection, received)) is not None:
                received = request.rest
                if request.method == "POST":
                    self._calls.put(Call(connection, json.loads(request.body)["model"], request.body))
                else:
                    connection.sendall(_NOT_FOUND)


def next_call(calls: "queue.Queue[Call]") -> Call:
    """Returns the next request that reached an engine. Raises queue.Empty if none comes."""
    return calls.get(timeout=_CALL_SECONDS)


def read_request(connection: socket.socket, received: bytes) -> Request | None:
    """Returns the next request of a connection; None at its end.

    ``received`` was already read from it.
    """
    try:
        while (end := received.find(b"\r\n\r\n")) < 0:
            more = connection.recv(65_536)
            if not more:
                return None
            received += more
        head, received = received[:end].decode("latin-1"), received[end + 4 :]
        length = content_length(head)
        while len(received) < length:
            more = connection.recv(65_536)
            if not more:
                return None
            received += more
    except OSError:
        return None
    return Request(head.split(" ", 1)[0], received[:length], received[length:])


def content_length(head: str) -> int:
    """Returns the bytes of the body that a head announces; 0 by default."""
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.lower() == "content-length":
            return int(value)
    return 0


def _usage(completion_tokens: int, prompt_tokens: int = _PROMPT_TOKENS) -> dict[str, int]:
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "total_tokens": total, "completion_tokens": completion_tokens}


def _encoded(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
