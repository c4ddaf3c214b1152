"""Counted scenarios. The script moves every request, event and answer: equal runs take equal steps.

There are three models. ``bench-model`` has two engines and gets plain, streamed and retried
requests. ``full-model`` has one engine, whose KV cache takes one answer at a time. A second request
waits in the gateway until the first one is answered. ``split-model`` has one engine for prompts and
one for answers.

An engine whose answers are written by the script that counts: it gets each request as a call and
answers it when it wants to.
"""

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fairlead_bench.gateway.load_cases import SIZES, UNIQUE, make_bodies

_CALL_SECONDS = 60.0
_PROMPT_TOKENS = 512
_FIRST_ID = 12_345
_PLAIN_TEXT = "word " * 140
_EVENT = {"id": "chatcmpl-6f1d2c3b4a5968778695a4b3c2d1e0f1", "object": "chat.completion.chunk", "created": 1763600000}
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: scripted\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"

KEY = "bench-key"

LONGER_STREAM = 132
"""Events of the long stream where streams alone are counted: work by time weighs less."""
PLAIN_PER_RETRIED = 5
"""Plain requests with each retried one: a gateway retries at most a fifth of its requests."""

_COMPLETION_TOKENS = 128
_LONG_ANSWER_TOKENS = 20_000
"""Two such answers do not fit the KV cache of ``full-model``'s engine (28,672 tokens)."""
_SPLIT_TOKENS = 2_048
"""Prompts of that length, none of them cached, go to another engine."""
_LEARNED_ANSWERS = 1_100
"""Answers of ``full-model`` before the first window: of the first thousand answers a gateway learns
more than of later ones."""

_LEARN_SECONDS = 2.5
"""A gateway uses a forecast of answers for two seconds."""

_READ_SECONDS = 60.0


class Call:
    """One request that waits for its answer.

    knows_ids: the engine sends the token ids that a body asks for.
    """

    def __init__(self, connection: socket.socket, model: str, body: bytes, *, knows_ids: bool = True) -> None:
        self._connection = connection
        self._model = model
        asked = body.replace(b" ", b"")
        self._counts_usage = b'"include_usage":true' in asked
        self._has_ids = knows_ids and b'"return_token_ids":true' in asked
        self._knows_ids = knows_ids

    def answer(self, completion_tokens: int, prompt_tokens: int = _PROMPT_TOKENS) -> None:
        """Answers with about a kilobyte of JSON that reports so many tokens."""
        message = {"role": "assistant", "content": _PLAIN_TEXT}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        body = {"id": _EVENT["id"], "object": "chat.completion", "created": _EVENT["created"], "model": self._model}
        self._send_whole(200, "OK", body | {"choices": [choice], "usage": _usage(completion_tokens, prompt_tokens)})

    def answer_as(self, dialect: str, completion_tokens: int) -> None:
        """Answers like `answer`, with a message or a response."""
        usage = {"input_tokens": _PROMPT_TOKENS, "output_tokens": completion_tokens}
        text = [{"type": "text" if dialect == MESSAGES else "output_text", "text": _PLAIN_TEXT}]
        if dialect == MESSAGES:
            body: dict[str, object] = {"type": "message", "content": text, "stop_reason": "end_turn"}
        else:
            body = {"object": "response", "status": "completed", "output": [{"type": "message", "content": text}]}
        self._send_whole(200, "OK", {"id": f"resp_{_EVENT['id']}", "model": self._model, **body, "usage": usage})

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
        error = {"message": "the engine is full", "type": "ServiceUnavailableError", "param": None, "code": 503}
        self._send_whole(503, "Service Unavailable", {"error": error})

    def begin_stream(self) -> None:
        """Sends the head of a stream and its first event, as vLLM 0.32 does."""
        prompt = list(range(_FIRST_ID, _FIRST_ID + _PROMPT_TOKENS)) if self._has_ids else None
        choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        more: dict[str, object] = {"prompt_token_ids": prompt, "prompt_text": None} if self._knows_ids else {}
        body = _EVENT | {"model": self._model, "choices": [choice]} | more
        self._connection.sendall(_STREAM_HEAD + _chunk(b"data: " + _encoded(body) + b"\n\n"))

    def send_event(self) -> None:
        self._connection.sendall(self._event({"content": " token"}))

    def end_stream(self, completion_tokens: int) -> None:
        """Sends the last event, the usage where it was asked for, and the end."""
        rest = self._event({}, "stop")
        if self._counts_usage:
            body = _EVENT | {"model": self._model, "choices": [], "usage": _usage(completion_tokens)}
            rest += _chunk(b"data: " + _encoded(body) + b"\n\n")
        self._connection.sendall(rest + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    def _event(self, delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice: dict[str, object] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        if finish_reason is not None:
            choice["stop_reason"] = None
        if self._knows_ids:
            choice["token_ids"] = [_FIRST_ID] if self._has_ids else None
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
    metrics, is answered 404.

    knows_ids: it sends the token ids of a stream where a request asks for them.
    """

    def __init__(self, calls: "queue.Queue[Call]", *, knows_ids: bool = True) -> None:
        self._calls = calls
        self._knows_ids = knows_ids
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
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
                    model = json.loads(request.body)["model"]
                    self._calls.put(Call(connection, model, request.body, knows_ids=self._knows_ids))
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


MODEL, FULL_MODEL, SPLIT_MODEL = "bench-model", "full-model", "split-model"
SHORT_STREAM, LONG_STREAM = 4, 36
"""Events of the two streams whose difference is the cost of an event."""
PLAIN, WAITING = "plain request", "waiting request"
STREAM, CHUNK = f"streamed request of {SHORT_STREAM} chunks", "chunk of a stream"
MESSAGES, RESPONSES = "messages", "responses"
_ADMISSION_TRIES, _ADMISSION_SECONDS = 10, 5.0


class WrongAnswer(Exception):
    """Raised where the gateway's answer is not what the script expects."""


class Client:
    """Sends bodies to the gateway at ``port``."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=_READ_SECONDS)
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = (
            f" HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
            "content-type: application/json\r\naccept: */*\r\ncontent-length: "
        )
        self._received = b""

    def send(self, body: bytes, dialect: str = "chat/completions") -> None:
        self._connection.sendall(f"POST /v1/{dialect}{self._head}{len(body)}\r\n\r\n".encode() + body)

    def read_answer(self) -> None:
        """Reads a plain answer. Raises WrongAnswer unless it is a good one."""
        head = self._read_head()
        length = content_length(head)
        while len(self._received) < length:
            self._receive()
        self._received = self._received[length:]

    def begin_stream(self) -> None:
        """Reads a stream's head and its first event. Raises WrongAnswer unless it is a good one."""
        self._read_head()
        self.read_event()

    def read_event(self) -> None:
        self._read_until(b"\n\n")

    def read_end(self) -> None:
        self._read_until(b"data: [DONE]\n\n")
        self._read_until(b"0\r\n\r\n")

    def close(self) -> None:
        self._connection.close()

    def _read_head(self) -> str:
        head = self._read_until(b"\r\n\r\n").decode("latin-1")
        if " 200 " not in head.split("\r\n", 1)[0]:
            raise WrongAnswer(f"{head}{self._received!r}")
        return head

    def _read_until(self, end: bytes) -> bytes:
        while end not in self._received:
            self._receive()
        found, _, self._received = self._received.partition(end)
        return found

    def _receive(self) -> None:
        more = self._connection.recv(65_536)
        if not more:
            raise WrongAnswer("the gateway closed the connection")
        self._received += more


class NotHeld(Exception):
    """Raised where a request reached an engine that has no room for it."""


class Script:
    """The client's end and the engines' end of one gateway.

    seed: draws the prompts.
    knows_ids: engines of ``bench-model`` send the token ids of a stream.
    """

    def __init__(self, seed: int, *, knows_ids: bool = True) -> None:
        self._calls: queue.Queue[Call] = queue.Queue()
        self._full_calls: queue.Queue[Call] = queue.Queue()
        self._split_calls: queue.Queue[Call] = queue.Queue()
        self._engines = [ScriptedEngine(self._calls, knows_ids=knows_ids) for _ in range(2)]
        self._full_engine = ScriptedEngine(self._full_calls)
        self._split_engines = [ScriptedEngine(self._split_calls), ScriptedEngine(self._split_calls)]
        self._plain = _bodies(seed, stream=False)
        self._streamed = _bodies(seed, stream=True)
        self._named = {
            dialect: [_in_dialect(text, dialect) for text in self._plain] for dialect in (MESSAGES, RESPONSES)
        }
        self._full = _bodies(seed, stream=False, model=FULL_MODEL, max_tokens=_LONG_ANSWER_TOKENS)
        self._clients: list[Client] = []
        self._sent = 0

    def fleet(self, *, is_priced: bool = False, resume: str = "") -> str:
        """Returns the fleet file of the scripted engines.

        is_priced: the model of plain requests has a price.
        resume: the setting of that model; empty for the default.
        """
        routing = f"    routing: {{resume: {resume}}}\n" if resume else ""
        price = '    price: {input: "0.40", cachedInput: "0.10", output: "1.20"}\n' if is_priced else ""
        return (
            f"models:\n  - name: {MODEL}\n{price}{routing}    instances:\n"
            + "".join(
                f'      - {{id: engine-{number}, url: "http://127.0.0.1:{engine.port}", engine: vllm}}\n'
                for number, engine in enumerate(self._engines)
            )
            + f"  - name: {FULL_MODEL}\n    instances:\n"
            + f'      - {{id: engine-full, url: "http://127.0.0.1:{self._full_engine.port}", engine: vllm, '
            + "profile: l4-qwen8b}\n"
            + f"  - name: {SPLIT_MODEL}\n    kvTransfer: nixl\n    instances:\n"
            + "".join(
                f'      - {{id: engine-{role}, url: "http://127.0.0.1:{engine.port}", engine: vllm, role: {role}}}\n'
                for role, engine in zip(("Prefill", "Decode"), self._split_engines, strict=True)
            )
        )

    def connect(self, port: int) -> None:
        self._clients = [Client(port, KEY) for _ in range(3)]

    def await_admission(self, port: int) -> None:
        """Sends plain requests until one reaches an engine: new limits refuse the first ones.

        Raises queue.Empty if none does.
        """
        for tries_left in range(_ADMISSION_TRIES, 0, -1):
            client = Client(port, KEY)
            client.send(self._body(self._plain))
            try:
                self._calls.get(timeout=_ADMISSION_SECONDS).answer(_COMPLETION_TOKENS)
            except queue.Empty:
                if tries_left == 1:
                    raise
            else:
                client.read_answer()
                return
            finally:
                client.close()

    def close(self) -> None:
        """Ends all connections."""
        for client in self._clients:
            client.close()
        for engine in (*self._engines, self._full_engine, *self._split_engines):
            engine.close()

    def plain(self, count: int) -> None:
        """Sends plain requests, one after another."""
        client = self._clients[0]
        for _ in range(count):
            client.send(self._body(self._plain))
            next_call(self._calls).answer(_COMPLETION_TOKENS)
            client.read_answer()

    def named(self, count: int, dialect: str) -> None:
        """Sends plain requests in another dialect, with the prompts of the plain ones."""
        client = self._clients[0]
        for _ in range(count):
            client.send(self._body(self._named[dialect]), dialect)
            next_call(self._calls).answer_as(dialect, _COMPLETION_TOKENS)
            client.read_answer()

    def open_connections(self) -> None:
        """Sends one request to each model whose requests are counted: a rest closes connections."""
        self.plain(1)
        client = self._clients[1]
        client.send(self._body(self._full))
        next_call(self._full_calls).answer(_LONG_ANSWER_TOKENS)
        client.read_answer()

    def streamed(self, count: int, events: int) -> None:
        """Streams of ``events`` events; each is sent when the client has the one before."""
        client = self._clients[0]
        for _ in range(count):
            client.send(self._body(self._streamed))
            call = next_call(self._calls)
            call.begin_stream()
            client.begin_stream()
            for _ in range(events - 2):
                call.send_event()
                client.read_event()
            call.end_stream(events)
            client.read_end()

    def retried(self, count: int) -> None:
        """Requests that one engine refuses and the other answers, each after ``PLAIN_PER_RETRIED``
        plain ones."""
        client = self._clients[0]
        for _ in range(count):
            self.plain(PLAIN_PER_RETRIED)
            client.send(self._body(self._plain))
            next_call(self._calls).refuse()
            next_call(self._calls).answer(_COMPLETION_TOKENS)
            client.read_answer()

    def learn_lengths(self) -> None:
        """Shows the gateway how long the answers of ``full-model`` are: until then none waits.
        Takes some seconds."""
        client = self._clients[1]
        for _ in range(_LEARNED_ANSWERS):
            client.send(self._body(self._full))
            next_call(self._full_calls).answer(_LONG_ANSWER_TOKENS)
            client.read_answer()
        time.sleep(_LEARN_SECONDS)

    def waiting(self, count: int) -> None:
        """Sends one request, then ``count`` that wait until the one before is answered.

        A plain request follows each of them; its answer proves that it was read. Raises NotHeld.
        """
        running_client, next_client = self._clients[1:]
        running_client.send(self._body(self._full))
        running_call = next_call(self._full_calls)
        for _ in range(count):
            next_client.send(self._body(self._full))
            self.plain(1)
            if not self._full_calls.empty():
                raise NotHeld("a request went to an engine that has no room for it")
            running_call.answer(_LONG_ANSWER_TOKENS)
            running_client.read_answer()
            running_client, next_client = next_client, running_client
            running_call = next_call(self._full_calls)
        running_call.answer(_LONG_ANSWER_TOKENS)
        running_client.read_answer()

    def handed_off(self, count: int) -> None:
        """Requests whose prompt one engine computes, and which the other one answers."""
        client = self._clients[0]
        for _ in range(count):
            self._sent += 1
            client.send(_split_body(self._sent))
            next_call(self._split_calls).answer_prefill(_SPLIT_TOKENS)
            next_call(self._split_calls).answer(_COMPLETION_TOKENS, _SPLIT_TOKENS)
            client.read_answer()

    def _body(self, texts: list[str]) -> bytes:
        self._sent += 1
        return texts[self._sent % len(texts)].replace(UNIQUE, f"{self._sent:016x}").encode()


@dataclass(frozen=True, slots=True)
class Scenario:
    """One script and how many turns of it are counted at once."""

    run: Callable[[int], None]
    turns: int


def scenarios(script: Script) -> dict[str, Scenario]:
    """Returns the scripts by the names of ``instructions_per_unit``.

    Why as many turns of waiting requests as of plain ones: a worker reports and refreshes by time.
    The two are compared, so equal shares of that must fall on them.
    """
    return {
        "plain": Scenario(script.plain, 256),
        "short_streams": Scenario(lambda count: script.streamed(count, SHORT_STREAM), 160),
        "long_streams": Scenario(lambda count: script.streamed(count, LONG_STREAM), 80),
        "retried": Scenario(script.retried, 32),
        "waiting": Scenario(script.waiting, 256),
        "handed_off": Scenario(script.handed_off, 48),
        MESSAGES: Scenario(lambda count: script.named(count, MESSAGES), 256),
        RESPONSES: Scenario(lambda count: script.named(count, RESPONSES), 256),
    }


def scenarios_without_keys(script: Script) -> dict[str, Scenario]:
    return {name: scenario for name, scenario in scenarios(script).items() if name in ("plain", "waiting")}


def stream_scenarios(script: Script) -> dict[str, Scenario]:
    long = Scenario(lambda count: script.streamed(count, LONGER_STREAM), 48)
    return {"short_streams": scenarios(script)["short_streams"], "long_streams": long}


def plain_scenario(script: Script) -> dict[str, Scenario]:
    return {"plain": scenarios(script)["plain"]}


def cost_per_unit(counts: Mapping[str, float], turns: Mapping[str, int]) -> dict[str, float]:
    """Cost per request or chunk, of what the scripts' ``turns`` took."""
    plain = counts["plain"] / turns["plain"]
    return {
        PLAIN: plain,
        **cost_of_streams(counts, turns, LONG_STREAM),
        WAITING: _waiting(counts, turns),
        "retried request": counts["retried"] / turns["retried"] - PLAIN_PER_RETRIED * plain,
        "request with a hand-off": counts["handed_off"] / turns["handed_off"],
        **{f"plain request in {dialect}": counts[dialect] / turns[dialect] for dialect in (MESSAGES, RESPONSES)},
    }


def cost_of_streams(
    counts: Mapping[str, float], turns: Mapping[str, int], long_stream: int = LONGER_STREAM
) -> dict[str, float]:
    """Like ``cost_per_unit``, of streamed requests alone."""
    short = counts["short_streams"] / turns["short_streams"]
    long = counts["long_streams"] / turns["long_streams"]
    return {STREAM: short, CHUNK: (long - short) / (long_stream - SHORT_STREAM)}


def cost_without_keys(counts: Mapping[str, float], turns: Mapping[str, int]) -> dict[str, float]:
    """Like ``cost_per_unit``, of the scripts at a gateway without API keys."""
    return {
        f"{PLAIN}, no keys": counts["plain"] / turns["plain"],
        f"{WAITING}, no keys": _waiting(counts, turns),
    }


def _waiting(counts: Mapping[str, float], turns: Mapping[str, int]) -> float:
    beside_waiting = turns["waiting"] + 1  # one plain request after each of them, and one before the first
    return (counts["waiting"] - beside_waiting * counts["plain"] / turns["plain"]) / turns["waiting"]


def _split_body(number: int) -> bytes:
    start = f'{{"model":"{SPLIT_MODEL}","max_tokens":{_COMPLETION_TOKENS},"messages":[{{"role":"user","content":"'
    return f"{start}{number:016x} ".encode() + b"a word" * (_SPLIT_TOKENS * 4 // 6) + b'"}]}'


def _in_dialect(text: str, dialect: str) -> str:
    """Returns the body of a chat as one of messages or responses, of about the same size."""
    chat = json.loads(text)
    system, *turns = chat["messages"]
    if dialect == MESSAGES:
        body = {"system": system["content"], "messages": turns, "max_tokens": chat["max_tokens"]}
    else:
        body = {"instructions": system["content"], "input": turns, "max_output_tokens": chat["max_tokens"]}
    return _encoded({"model": chat["model"], **body, "temperature": chat["temperature"]}).decode()


def _bodies(seed: int, *, stream: bool, model: str = MODEL, max_tokens: int = _COMPLETION_TOKENS) -> list[str]:
    texts = make_bodies(SIZES["2k"], count=64, seed=seed, max_tokens=max_tokens, stream=stream)
    return [text.replace(f'"model":"{MODEL}"', f'"model":"{model}"') for text in texts]
