"""Counted scenarios. The script moves every request, event and answer: equal runs take equal steps.

There are three models. ``bench-model`` has two engines and gets plain, streamed and retried
requests. ``full-model`` has one engine, whose KV cache takes one answer at a time. A second request
waits in the gateway until the first one is answered. ``split-model`` has one engine for prompts and
one for answers.
"""

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fairlead_bench.gateway.request_bodies import SIZES, UNIQUE, make_bodies
from fairlead_bench.gateway_instructions.client import Client
from fairlead_bench.gateway_instructions.scripted_engine import Call, ScriptedEngine, next_call

KEY = "bench-key"
MODEL, FULL_MODEL, SPLIT_MODEL = "bench-model", "full-model", "split-model"
SHORT_STREAM, LONG_STREAM = 4, 36
"""Events of the two streams whose difference is the cost of an event."""
PLAIN_PER_RETRIED = 5
"""Plain requests with each retried one: a gateway retries at most a fifth of its requests."""
PLAIN, WAITING = "plain request", "waiting request"
_COMPLETION_TOKENS = 128
_LONG_ANSWER_TOKENS = 20_000
"""Two such answers do not fit the KV cache of ``full-model``'s engine (28,672 tokens)."""
_SPLIT_TOKENS = 2_048
"""Prompts of that length, none of them cached, go to another engine."""
_LEARNED_ANSWERS = 1_100
"""Answers of ``full-model`` before the first window: of the first thousand answers a gateway learns
more than of later ones."""
_ADMISSION_TRIES, _ADMISSION_SECONDS = 10, 5.0
_LEARN_SECONDS = 2.5
"""A gateway uses a forecast of answers for two seconds."""


class NotHeld(Exception):
    """Raised where a request reached an engine that has no room for it."""


class Script:
    """The client's end and the engines' end of one gateway. ``seed`` draws the prompts."""

    def __init__(self, seed: int) -> None:
        self._calls: queue.Queue[Call] = queue.Queue()
        self._full_calls: queue.Queue[Call] = queue.Queue()
        self._split_calls: queue.Queue[Call] = queue.Queue()
        self._engines = [ScriptedEngine(self._calls), ScriptedEngine(self._calls)]
        self._full_engine = ScriptedEngine(self._full_calls)
        self._split_engines = [ScriptedEngine(self._split_calls), ScriptedEngine(self._split_calls)]
        self._plain = _bodies(seed, stream=False)
        self._streamed = _bodies(seed, stream=True)
        self._full = _bodies(seed, stream=False, model=FULL_MODEL, max_tokens=_LONG_ANSWER_TOKENS)
        self._clients: list[Client] = []
        self._sent = 0

    def fleet(self, *, is_priced: bool = False) -> str:
        """Returns the fleet file of the scripted engines.

        is_priced: the model of plain requests has a price.
        """
        price = '    price: {input: "0.40", cachedInput: "0.10", output: "1.20"}\n' if is_priced else ""
        return (
            f"models:\n  - name: {MODEL}\n{price}    instances:\n"
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
        """Opens the clients' connections."""
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
    }


def scenarios_without_keys(script: Script) -> dict[str, Scenario]:
    """Returns the scripts that also run at a gateway without API keys."""
    return {name: scenario for name, scenario in scenarios(script).items() if name in ("plain", "waiting")}


def plain_scenario(script: Script) -> dict[str, Scenario]:
    """Returns the script of plain requests alone."""
    return {"plain": scenarios(script)["plain"]}


def cost_per_unit(counts: Mapping[str, float], turns: Mapping[str, int]) -> dict[str, float]:
    """Cost per request or chunk, of what the scripts' ``turns`` took."""
    plain = counts["plain"] / turns["plain"]
    short = counts["short_streams"] / turns["short_streams"]
    long = counts["long_streams"] / turns["long_streams"]
    return {
        PLAIN: plain,
        f"streamed request of {SHORT_STREAM} chunks": short,
        "chunk of a stream": (long - short) / (LONG_STREAM - SHORT_STREAM),
        WAITING: _waiting(counts, turns),
        "retried request": counts["retried"] / turns["retried"] - PLAIN_PER_RETRIED * plain,
        "request with a hand-off": counts["handed_off"] / turns["handed_off"],
    }


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


def _bodies(seed: int, *, stream: bool, model: str = MODEL, max_tokens: int = _COMPLETION_TOKENS) -> list[str]:
    texts = make_bodies(SIZES["2k"], count=64, seed=seed, max_tokens=max_tokens, stream=stream)
    return [text.replace(f'"model":"{MODEL}"', f'"model":"{model}"') for text in texts]
