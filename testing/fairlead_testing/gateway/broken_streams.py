"""Streams of a gateway whose engine breaks: engines in parts, and requests over a break.

Chats are in the form of vLLM, which sends the token ids of its text to a gateway.
"""

import asyncio
import json
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fairlead.fleet.model import InstanceState
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_testing.engines.disaggregated import EngineProcess
from fairlead_testing.engines.scripted import EngineCall, HangUp, Script
from fairlead_testing.gateway.running_gateway import MODEL_KEY, RunningGateway, gateway_of
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request
from fairlead_testing.waiting import wait_until

Event = dict[str, Any]
Part = Sequence[Event | bytes | asyncio.Event]
"""The events that an engine sends to one call; it waits for events of asyncio."""

CHAT: Event = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "tell me a story"}],
    "max_tokens": 60,
    "stream": True,
    "stream_options": {"include_usage": True},
}
TEXT: Event = {name: value for name, value in CHAT.items() if name != "messages"} | {"prompt": "once upon a time"}
BOTH = [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)]
PROMPT = [5, 6, 7]
CALL = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "f"}}
TEXTS = {11: "I look. ", 21: "\u00e9", 22: "\ufffd", 23: " <", 31: "one "}
"""The texts of tokens that `chat_engine` knows."""


def chunk(delta: Event, ids: list[int] | None, finish: str | None = None, **more: Any) -> Event:
    """Returns an event of a chat with the ids of its tokens."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish, "token_ids": ids}
    named = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return named | {"choices": [choice], **more}


def said(text: str, *ids: int, finish: str | None = None) -> Event:
    return chunk({"content": text}, list(ids), finish)


def opening(ids: list[int]) -> Event:
    """Returns the first event of a chat, with the ids of its prompt."""
    event = chunk({"role": "assistant", "content": ""}, None, prompt_token_ids=ids)
    del event["choices"][0]["token_ids"]
    return event


def counts(prompt: int, output: int) -> Event:
    total = {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output}
    return chunk({}, None) | {"choices": [], "usage": total}


def prompt_of(body: Event) -> list[int]:
    return list(body.get("kv_transfer_params", {}).get("prompt_token_ids", PROMPT))


def chat_engine(*parts: Part, met: list[Event], reads_ids: bool = True) -> Script:
    """Returns a script that sends one part for each call, and hangs up but after the last.

    met: gets the bodies of the calls. reads_ids: a call goes on behind the token ids that it has.
    """

    async def script(call: EngineCall) -> None:
        if call.path == "/detokenize":
            await call.respond({"prompt": "".join(TEXTS.get(token, f"[{token}]") for token in call.json["tokens"])})
            return
        met.append(call.json)
        await call.start_stream()
        await call.event(opening(prompt_of(call.json) if reads_ids else PROMPT))
        await send_part(call, parts, len(met))

    return script


async def send_part(call: EngineCall, parts: Sequence[Part], number: int) -> None:
    """Sends the part of the call with that number, from 1, and hangs up but after the last."""
    for event in parts[number - 1]:
        if isinstance(event, asyncio.Event):
            await event.wait()
        else:
            await (call.chunk(event) if isinstance(event, bytes) else call.event(event))
    if number < len(parts):
        raise HangUp
    await (call.finish() if call.path.endswith("completions") else call.chunk(b""))


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer over breaks. met: the bodies that engines got. running: the gateway, ended."""

    answer: RawResponse
    met: list[Event]
    running: RunningGateway

    @property
    def events(self) -> list[Event]:
        return shown(self.answer)

    @property
    def choices(self) -> list[Event]:
        return [choice for event in self.events for choice in event["choices"]]

    @property
    def text(self) -> str:
        return text_of(self.events)

    @property
    def token_ids(self) -> list[int]:
        return [token for choice in self.choices for token in choice.get("token_ids") or []]

    @property
    def continued(self) -> dict[str, int]:
        return dict(self.running.gateway.telemetry.models[MODEL_KEY].continued)

    @property
    def refusal(self) -> str:
        """Why no other engine went on, from the last event."""
        return self.answer.events[-1].rpartition("no engine could continue it (")[2].partition(")")[0]


async def chat_over_breaks(*parts: Part, count: int = 2, reads_ids: bool = True, **change: Any) -> Outcome:
    met: list[Event] = []
    return await answer_of([chat_engine(*parts, met=met, reads_ids=reads_ids)] * count, met, CHAT | change)


async def answer_of(
    scripts: Sequence[Script], met: list[Event], body: Event, path: str = "/v1/chat/completions", more: str = ""
) -> Outcome:
    """Returns the answer to a request. Afterwards nothing of it is kept, and no load is left."""
    async with gateway_of(*scripts) as (running, *_):
        answer = await request(running.url, body, path=path, more=more)
        relay = running.gateway.stages.relay
        assert relay.continuation.text_memory.used_bytes == relay.continuation.token_memory.used_bytes == 0
        assert {load.inflight for load in running.loads().values()} == {0}
        return Outcome(answer, met, running)


def shown(answer: RawResponse) -> list[Event]:
    assert answer.events[-1] == "[DONE]", answer.events[-1]
    return [json.loads(data) for data in answer.events[:-1]]


def text_of(events: Sequence[Event]) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


def named_events(answer: RawResponse) -> list[Event]:
    parts = [part.partition("data: ")[2] for part in answer.body.decode().split("\n\n")]
    return [json.loads(data) for data in parts if data]


def marks_of(events: Sequence[Event]) -> list[int]:
    """Returns the numbers of tokens behind which other engines went on."""
    return [event["fairlead_continued_at"] for event in events if "fairlead_continued_at" in event]


async def broken_after(
    events: int,
    running: RunningGateway,
    engines: Sequence[EngineProcess],
    request_of: tuple[str, Event],
    number: signal.Signals = signal.SIGKILL,
) -> RawResponse:
    """Returns the answer to a request whose engine gets a signal after some events."""
    path, body = request_of
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(body, path=path))
    head = await connection.reader.readuntil(b"\r\n\r\n")
    used = next(line for line in head.split(b"\r\n") if line.startswith(b"x-fairlead-instance"))
    got = b"".join([await connection.reader.readuntil(b"\n\n\r\n") for _ in range(events)])
    engines[int(used.split(b"e-")[1][:1])].send(number)
    return await read_rest(connection, head + got)


async def answer_over_gate(
    running: RunningGateway, body: Event, path: str, before: bytes, gate: asyncio.Event
) -> RawResponse:
    """Returns the answer to a request. The gate opens when the client has got some bytes."""
    connection = await RawConnection.connect(running.url)
    await connection.send(post_request(body, path=path))
    got = await connection.reader.readuntil(before)
    gate.set()
    return await read_rest(connection, got)


async def read_rest(connection: RawConnection, got: bytes) -> RawResponse:
    """Reads the rest of a response of which some bytes were read, and closes the connection."""
    raw = asyncio.StreamReader()
    raw.feed_data(got + await connection.reader.read())
    raw.feed_eof()
    answer = await RawConnection(raw, connection.writer).read_response()
    await connection.close()
    return answer


async def relayed_stream(running: RunningGateway) -> RelayedStream:
    """Waits for the one stream that a gateway relays without a task."""
    inflight = running.gateway._inflight
    await wait_until(lambda: any(isinstance(stream, RelayedStream) for stream in inflight.values()))
    (stream,) = inflight.values()
    assert isinstance(stream, RelayedStream)
    return stream


def with_draining(running: RunningGateway, instance_id: str) -> None:
    """Marks an instance as draining in the fleet of the gateway."""
    fleet = running.gateway.stages.routers.fleet
    listed = tuple(
        replace(instance, state=InstanceState.DRAINING) if instance.id == instance_id else instance
        for instance in fleet.instances[MODEL_KEY]
    )
    running.gateway.update_fleet(replace(fleet, instances={MODEL_KEY: listed}))
