"""Streamed requests that wait: a head and comments in time, then the answer or an error event."""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from fairlead.fleet.model import InstanceState
from fairlead_testing.engines.scripted import (
    NAMED_STREAMS,
    EngineCall,
    Script,
    hang_up,
    responds,
    scripted_engine,
    silent,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request

pytestmark = pytest.mark.simulated

COMMENT = b": keep-alive\n\n"
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9},
    "/v1/responses": {"input": "hi"},
}
EVERY = pytest.mark.parametrize("path", BODIES)
HEAD_SECONDS, COMMENT_SECONDS = 10.0, 15.0


def openings(path: str) -> bytes:
    """Returns an event that opens an answer, where there is one."""
    name = {"/v1/messages": b"message_start", "/v1/responses": b"response.created"}.get(path)
    return b'event: %b\ndata: {"type": "%b"}\n\n' % (name, name) if name else b": hello\n\n"


async def _nothing(call: EngineCall) -> None:
    """Sends not even a head."""


async def _head(call: EngineCall) -> None:
    await call.start_stream()


async def _comments(call: EngineCall) -> None:
    await call.start_stream()
    await call.chunk(b": PROCESSING\n\n")
    await asyncio.sleep(5.0)
    await call.chunk(b": PROCESSING\n\n")


async def _opening(call: EngineCall) -> None:
    await call.start_stream()
    await call.chunk(openings(call.path))


WAITS: list[Script] = [_nothing, _head, _comments, _opening]


def late(wait: Script, seconds: float) -> Script:
    """Returns a script that waits in one way, and then answers well."""

    async def script(call: EngineCall) -> None:
        await wait(call)
        await asyncio.sleep(seconds)
        if wait is _nothing:
            await call.start_stream()
        if call.path in NAMED_STREAMS:
            await call.chunk(NAMED_STREAMS[call.path])
        else:
            for text in ("a", "b"):
                await call.event(token(text, "stop" if text == "b" else None))
            await call.event("[DONE]")
        await call.chunk(b"")

    return script


async def send_stream(url: str, path: str, more: str = "", **fields: Any) -> tuple[RawResponse, list[float]]:
    """Returns the answer to a stream, and when each of its chunks came, in seconds."""
    loop = asyncio.get_running_loop()
    connection = await RawConnection.connect(url)
    started = loop.time()
    await connection.send(
        post_request({"model": "tiny", "stream": True, **BODIES[path], **fields}, path=path, more=more)
    )
    times: list[float] = []
    line = await connection.reader.readuntil(b"\r\n\r\n")
    times.append(loop.time() - started)
    rest = b""
    while not rest.endswith(b"0\r\n\r\n") and b"content-length" not in line:
        piece = await connection.reader.read(65_536)
        if not piece:
            break
        times.append(loop.time() - started)
        rest += piece
    if b"content-length" in line:
        rest = await connection.reader.read()
    reader = asyncio.StreamReader()
    reader.feed_data(line + rest)
    reader.feed_eof()
    (answer,) = await RawConnection(reader, connection.writer).read_all_responses()
    await connection.close()
    return answer, times


def longest_gap(times: list[float]) -> float:
    return max(later - earlier for earlier, later in zip([0.0, *times], times, strict=False))


def last_comment(answer: RawResponse) -> dict[str, str]:
    """Returns the headers in the last comment of an answer."""
    lines = [line[2:] for line in answer.body.decode().split("\n") if line.startswith((": x-fairlead", ": server"))]
    return {name: value for name, _, value in (line.partition(": ") for line in lines)}


@EVERY
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
async def test_stream_that_waits_for_its_engine_hears_something_in_time(wait: Script, path: str) -> None:
    async with gateway_of(late(wait, 70.0)) as (running, _):
        answer, times = await send_stream(running.url, path)
        assert (answer.status, answer.complete) == (200, True)
        assert answer.fields["content-type"].startswith("text/event-stream")
        assert longest_gap(times) <= COMMENT_SECONDS + 1.0
        assert times[0] == pytest.approx(HEAD_SECONDS, abs=0.5)
        assert answer.body.count(COMMENT) >= 4
        assert b'"error"' not in answer.body
        assert last_comment(answer).keys() >= {"x-fairlead-instance", "x-fairlead-reason", "x-fairlead-decision"}
        outcome = running.gateway.decisions.latest(1)[0]
        assert (outcome.status, outcome.error) == (200, None)
        assert outcome.ttft_seconds >= 70.0


@EVERY
@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
async def test_stream_that_is_answered_in_time_has_its_head_from_the_engine(wait: Script, path: str) -> None:
    async with gateway_of(late(wait, 2.0)) as (running, _):
        answer, _ = await send_stream(running.url, path)
        assert (answer.status, answer.complete) == (200, True)
        assert "x-fairlead-instance" in answer.fields
        assert COMMENT not in answer.body
        assert not last_comment(answer)


@EVERY
async def test_stream_that_waits_for_a_first_instance_hears_something(path: str) -> None:
    async with scripted_engine(well_behaved) as engine:
        fleet = fleet_of([engine.url], states=[InstanceState.STARTING])
        async with running_gateway(fleet) as running:
            answering = asyncio.ensure_future(send_stream(running.url, path))
            await asyncio.sleep(20.0)
            running.gateway.update_fleet(fleet_of([engine.url], version=2))
            answer, times = await answering
            assert (answer.status, answer.complete) == (200, True)
            assert times[0] == pytest.approx(HEAD_SECONDS, abs=0.5)
            assert b'"error"' not in answer.body
            assert last_comment(answer)["x-fairlead-instance"] == "e-0/0/0"


@EVERY
async def test_other_engine_answers_a_stream_that_has_its_head(path: str) -> None:
    """Retries go on inside the gateway."""
    calls = []

    async def script(call: EngineCall) -> None:
        calls.append(call)
        if len(calls) == 1:
            await asyncio.sleep(12.0)
            await hang_up(call)
        await well_behaved(call)

    async with gateway_of(script, script) as (running, *_):
        answer, _ = await send_stream(running.url, path)
        assert (answer.status, answer.complete, len(calls)) == (200, True, 2)
        assert b'"error"' not in answer.body
        assert last_comment(answer)["x-fairlead-reason"].startswith("retry")


def failing(script: Script) -> Script:
    async def late_script(call: EngineCall) -> None:
        await asyncio.sleep(12.0)
        await script(call)

    return late_script


REFUSAL = {"error": {"message": "too long", "type": "BadRequestError", "param": "messages", "code": 400}}
FAILURES: dict[str, tuple[Script, int]] = {
    "refusal": (responds(REFUSAL, "400 Bad Request"), 400),
    "full": (responds({"error": {"message": "busy"}}, "503 Service Unavailable"), 503),
    "defect": (responds({"detail": "x"}, "500 Internal Server Error"), 502),
    "gone": (hang_up, 502),
    "first event": (lambda call: _first_event(call), 400),
}


async def _first_event(call: EngineCall) -> None:
    await call.start_stream()
    await call.chunk(b'data: {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}\n\n')
    await call.chunk(b"")


@EVERY
@pytest.mark.parametrize("name", FAILURES)
async def test_failure_behind_the_head_is_an_event_in_the_form_of_the_dialect(name: str, path: str) -> None:
    script, status = FAILURES[name]
    async with gateway_of(failing(script), failing(script)) as (running, *_):
        answer, times = await send_stream(running.url, path)
        assert (answer.status, answer.complete) == (200, True)
        assert times[0] == pytest.approx(HEAD_SECONDS, abs=0.5)
        assert b"[DONE]" not in answer.body
        events = [json.loads(data) for data in answer.events] or [
            json.loads(line[6:]) for line in answer.body.decode().split("\n") if line.startswith("data: ")
        ]
        (event,) = [event for event in events if event.get("type") != "response.failed"]
        assert event["error"]["message"]
        if path == "/v1/messages":
            assert event["type"] == "error"
            assert event["error"]["type"] == ("overloaded_error" if status == 503 else event["error"]["type"])
        if path == "/v1/responses":
            assert [event["type"] for event in events] == ["error", "response.failed"]
        if status == 400:
            assert "too long" in event["error"]["message"]
        assert running.gateway.inflight_count() == 0


@EVERY
async def test_client_that_leaves_while_it_waits_ends_the_attempt(path: str) -> None:
    is_closed = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.wait_closed()
        is_closed.set()

    async with gateway_of(script) as (running, _):
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request({"model": "tiny", "stream": True, **BODIES[path]}, path=path))
        await connection.reader.readuntil(COMMENT)
        await connection.close()
        await is_closed.wait()


@EVERY
async def test_deadline_of_the_client_behind_the_head_is_an_event(path: str) -> None:
    async with gateway_of(silent) as (running, _):
        answer, times = await send_stream(running.url, path, "x-request-timeout: 13\r\n")
        assert (answer.status, answer.complete) == (200, True)
        assert times[-1] == pytest.approx(13.0, abs=0.5)
        assert b"error" in answer.body


@EVERY
async def test_end_of_a_drain_behind_the_head_is_an_event(path: str) -> None:
    async with gateway_of(silent) as (running, _):
        answering = asyncio.ensure_future(send_stream(running.url, path))
        await asyncio.sleep(12.0)
        running.gateway.end_drain()
        answer, _ = await answering
        assert (answer.status, answer.complete) == (200, True)
        assert b"error" in answer.body


@pytest.mark.parametrize("kind", ["openai", "sglang"])
async def test_other_engine_is_not_asked_while_one_that_has_opened_a_stream_lives(kind: str) -> None:
    """An API that reasons says at once that it has begun, and is paid for what it computes."""
    calls = []

    async def script(call: EngineCall) -> None:
        if call.path == "/v1/responses":
            calls.append(call)
            await late(_opening, 200.0)(call)
        else:
            await call.respond({"detail": "Not Found"}, "404 Not Found")

    async with scripted_engine(script) as first, scripted_engine(script) as second:
        for engine in (first, second):
            engine.scripts_metrics = True
        fleet = fleet_of([first.url, second.url])
        instances = tuple(replace(found, engine=kind) for found in fleet.instances[MODEL_KEY])
        async with running_gateway(replace(fleet, instances={MODEL_KEY: instances})) as running:
            answer, _ = await send_stream(running.url, "/v1/responses")
            assert (answer.status, answer.complete, len(calls)) == (200, True, 1)
            assert b'"error"' not in answer.body
