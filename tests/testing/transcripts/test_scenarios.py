"""The recorded scenarios: clients and processes that leave early, full queues, drains.

Each test names its recording. The engines are real processes. The tests wait for conditions, never
for a time to pass.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.transcripts.recording import HttpResponse, RecordedRequest, parse_response
from fairlead_testing.transcripts.replay import (
    RESPONSE_TIMEOUT_SECONDS,
    ClientConnection,
    get_request,
    open_client,
    post_request,
    read_load,
    read_metric,
    send_request,
    wait_for_metric,
    wait_for_value,
)
from fairlead_testing.waiting import wait_until

SWITCHES = ("--model", "tiny", "--profile", "tiny-cpu", "--max-model-len", "32768")
LONG = 10_000  # tokens: some 17 s of decoding, and nine of them fit into memory
RUNNING = "vllm:num_requests_running"
GENERATED = "vllm:generation_tokens_total"
REJECTED = "vllm:admission_rejections_total"
LAST_CHUNK = b"\r\n0\r\n\r\n"
BUSY = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
CORE_DIED = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DRAINING = "cannot schedule new futures after shutdown"


def completion(tokens: int, *, stream: bool = False, prompt: str | list[int] = "Once upon a time") -> RecordedRequest:
    """Returns a request for so many tokens."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
    return post_request("/v1/completions", body)


async def begin(stack: AsyncExitStack, engine: EngineProcess, request: RecordedRequest) -> ClientConnection:
    """Sends a request on its own connection, which stays open as long as the stack."""
    connection = await stack.enter_async_context(open_client(engine.authority))
    await connection.send(request.to_bytes(engine.authority))
    return connection


async def begin_stream(stack: AsyncExitStack, engine: EngineProcess, tokens: int) -> ClientConnection:
    """Returns a stream that has begun."""
    connection = await begin(stack, engine, completion(tokens, stream=True))
    await connection.read_until(b'"text"')
    return connection


async def drained(connection: ClientConnection) -> bytes:
    """Returns everything until the engine closes."""
    while await connection.read_more():
        pass
    return bytes(connection.received)


async def is_refused(engine: EngineProcess) -> bool:
    """Returns whether connections are refused."""
    try:
        async with open_client(engine.authority):
            return False
    except ConnectionError:
        return True


async def ended(engine: EngineProcess) -> int:
    """Waits for the end of the process."""
    return await asyncio.wait_for(engine.process.wait(), RESPONSE_TIMEOUT_SECONDS)


def error_of(response: HttpResponse) -> dict[str, Any]:
    """Returns the error object of a plain answer."""
    error: dict[str, Any] = response.json()["error"]
    return error


def last_events(raw: bytes) -> list[Any]:
    """Returns the last two events of a stream."""
    return parse_response(raw).events()[-2:]


@asynccontextmanager
async def keep_alive(engine: EngineProcess) -> AsyncIterator[ClientConnection]:
    """Returns an idle connection that has been used."""
    async with open_client(engine.authority) as connection:
        await connection.send(get_request("/health").to_bytes(engine.authority))
        await connection.read_response()
        yield connection


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_client_that_leaves_frees_its_slot_and_is_counted_nowhere(stream: bool) -> None:
    """09-abort-timeline."""
    async with engine_process(*SWITCHES) as engine:
        async with open_client(engine.authority) as client:
            await client.send(completion(LONG, stream=stream).to_bytes(engine.authority))
            await wait_for_metric(engine.authority, lambda running: running == 1, RUNNING)
            assert await read_load(engine.authority) == 1
        await wait_for_value(lambda: read_load(engine.authority), lambda inside: inside == 0, "/load")
        await wait_for_metric(engine.authority, lambda running: running == 0, RUNNING)
        generated = await read_metric(engine.authority, GENERATED)
        assert (await send_request(engine.authority, completion(3))).status == 200
        assert await read_metric(engine.authority, GENERATED) == generated + 3
        page = (await send_request(engine.authority, get_request("/metrics"))).body.decode()
        ended_by = [line for line in page.splitlines() if line.startswith("vllm:request_success_total")]
        assert {line.rpartition(" ")[2] for line in ended_by if 'reason="length"' not in line} == {"0.0"}


async def test_a_killed_server_cuts_streams_and_answers_no_plain_request() -> None:
    """12-sigkill-apiserver."""
    async with engine_process(*SWITCHES) as engine, AsyncExitStack() as stack:
        stream = await begin_stream(stack, engine, LONG)
        plain = await begin(stack, engine, completion(LONG))
        await wait_for_metric(engine.authority, lambda running: running == 2, RUNNING)
        engine.process.kill()
        assert await ended(engine) == -signal.SIGKILL
        answer = await _to_the_end(stream)
        assert not answer.endswith(LAST_CHUNK)
        assert b"[DONE]" not in answer
        assert await _to_the_end(plain) == b""
        await wait_until(partial(is_refused, engine))


async def _to_the_end(connection: ClientConnection) -> bytes:
    """Returns everything until the other side closes, by FIN or by reset."""
    try:
        return await drained(connection)
    except ConnectionResetError:
        return bytes(connection.received)


async def test_a_dead_engine_core_fails_every_answer_and_then_the_server_exits() -> None:
    """12-sigkill-enginecore."""
    async with engine_process(*SWITCHES) as engine, AsyncExitStack() as stack:
        stream = await begin_stream(stack, engine, LONG)
        plain = await begin(stack, engine, completion(LONG))
        await wait_for_metric(engine.authority, lambda running: running == 2, RUNNING)
        control = await stack.enter_async_context(open_client(engine.authority))
        fault = post_request("/sim/faults", {"kind": "core-dead"}).to_bytes(engine.authority)
        await control.send(fault + get_request("/health").to_bytes(engine.authority))
        await control.read_until(b"503 Service Unavailable")
        error, done = last_events(await drained(stream))
        assert (error["error"]["message"], error["error"]["code"], done) == (CORE_DIED, 500, "[DONE]")
        assert bytes(stream.received).endswith(LAST_CHUNK)
        answer = await plain.read_response()
        assert (answer.status, error_of(answer)["message"]) == (500, CORE_DIED)
        await wait_until(partial(is_refused, engine))
        await ended(engine)


async def test_sigterm_may_leave_a_stream_silent_until_its_client_leaves() -> None:
    """12-sigterm-default-timeout-0, and the first run of 24-sigterm-variants."""
    async with (
        engine_process(*SWITCHES, "--on-sigterm", "silence") as engine,
        keep_alive(engine) as idle,
        AsyncExitStack() as stack,
    ):
        stream = await begin_stream(stack, engine, LONG)
        engine.process.terminate()
        assert await drained(idle) == b""
        await wait_until(partial(is_refused, engine))
        # What was on its way arrives; then there is neither another byte nor an end.
        silent = asyncio.create_task(drained(stream))
        assert await _is_quiet(stream)
        assert engine.process.returncode is None
        assert not silent.done()
        silent.cancel()
        await stream.close()
        assert await ended(engine) == 0
        assert not bytes(stream.received).endswith(LAST_CHUNK)


async def _is_quiet(stream: ClientConnection) -> bool:
    """Whether a stream that had a token every 2 ms has none in the time of a hundred."""
    seen = -1
    async with asyncio.timeout(RESPONSE_TIMEOUT_SECONDS):
        while len(stream.received) != seen:
            seen = len(stream.received)
            await asyncio.sleep(0.2)
    return not stream.is_closed


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_sigterm_by_default_aborts_what_runs(stream: bool) -> None:
    """The second run of 24-sigterm-variants."""
    async with engine_process(*SWITCHES) as engine, AsyncExitStack() as stack:
        client = await begin(stack, engine, completion(LONG, stream=stream))
        await wait_for_metric(engine.authority, lambda running: running == 1, RUNNING)
        engine.process.terminate()
        answer = await drained(client)
        await wait_until(partial(is_refused, engine))
        assert await ended(engine) == 0
        if stream:
            final, done = last_events(answer)
            assert (final["choices"][0]["finish_reason"], done) == ("abort", "[DONE]")
            assert answer.endswith(LAST_CHUNK)
        else:
            assert parse_response(answer).json()["choices"][0]["finish_reason"] == "abort"


async def test_sigterm_may_end_every_answer_with_an_error() -> None:
    """The third run of 24-sigterm-variants."""
    async with engine_process(*SWITCHES, "--on-sigterm", "error") as engine, AsyncExitStack() as stack:
        streams = [await begin_stream(stack, engine, LONG) for _ in range(6)]
        plain = [await begin(stack, engine, completion(LONG)) for _ in range(3)]
        await wait_for_metric(engine.authority, lambda running: running == 9, RUNNING)
        engine.process.terminate()
        for stream in streams:
            error, done = last_events(await drained(stream))
            assert (error["error"]["message"], error["error"]["code"], done) == (CORE_DIED, 500, "[DONE]")
        for client in plain:
            assert (await client.read_response()).status == 500
        await ended(engine)


async def test_a_drain_lets_a_stream_finish_while_everything_else_stays_up() -> None:
    """12-sigterm-shutdown-timeout-5."""
    async with (
        engine_process(*SWITCHES, "--shutdown-timeout", "60") as engine,
        keep_alive(engine) as idle,
        AsyncExitStack() as stack,
    ):
        other = await begin_stream(stack, engine, LONG)  # as long as it runs, the drain does
        stream = await begin_stream(stack, engine, 500)
        engine.process.terminate()
        await _draining(engine)
        assert (await send_request(engine.authority, get_request("/health"))).status == 200
        assert (await send_request(engine.authority, get_request("/v1/models"))).status == 200
        answer = await _to_the_last_chunk(stream)
        final, done = last_events(answer)
        assert (final["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
        assert len(parse_response(answer).events()) == 501
        assert (await send_request(engine.authority, get_request("/health"))).status == 200
        await other.close()
        assert await drained(idle) == b""
        await wait_until(partial(is_refused, engine))
        assert await ended(engine) == 0


async def _draining(engine: EngineProcess) -> None:
    """Waits until the engine has received SIGTERM."""

    async def state() -> float:
        return float((await send_request(engine.authority, get_request("/sim/state"))).json()["draining"])

    await wait_for_value(state, bool, "draining")


async def _to_the_last_chunk(stream: ClientConnection) -> bytes:
    await stream.read_until(LAST_CHUNK)
    return bytes(stream.received)


async def test_a_full_queue_refuses_plain_requests_with_503_and_streams_by_an_event() -> None:
    """22-admission-and-drain: the burst, then the drain of a full engine."""
    two_at_once = ("--profile", json.dumps({"base": "tiny-cpu", "maxSequences": 2}))
    switches = (*SWITCHES, *two_at_once, "--max-num-queued-reqs", "3", "--shutdown-timeout", "60")
    async with engine_process(*switches) as engine, AsyncExitStack() as stack:
        inside = [await begin(stack, engine, completion(LONG, stream=True)) for _ in range(3)]
        await wait_for_value(lambda: read_load(engine.authority), lambda count: count == 3, "/load")
        for answer in await _answers(engine, 9, stream=False):
            assert answer.status == 503
            assert error_of(answer) == {"message": BUSY, "type": "Service Unavailable", "param": None, "code": 503}
            assert "retry-after" not in answer.fields
        for answer in await _answers(engine, 9, stream=True):
            error, done = answer.events()
            assert (answer.status, error["error"]["code"], done) == (200, 503, "[DONE]")
        assert await read_metric(engine.authority, REJECTED) == 18
        assert await read_metric(engine.authority, RUNNING) == 2
        engine.process.terminate()
        await _draining(engine)
        assert (await send_request(engine.authority, get_request("/health"))).status == 200
        assert (await send_request(engine.authority, completion(1))).status == 503
        await inside[0].close()
        await wait_for_value(lambda: read_load(engine.authority), lambda count: count == 2, "/load")
        refusal = await send_request(engine.authority, completion(1))
        assert (refusal.status, error_of(refusal)["message"]) == (500, DRAINING)
        for client in inside[1:]:
            await client.close()
        assert await ended(engine) == 0


async def _answers(engine: EngineProcess, count: int, *, stream: bool) -> list[HttpResponse]:
    request = completion(100, stream=stream)
    return list(await asyncio.gather(*(send_request(engine.authority, request) for _ in range(count))))


async def test_a_drain_refuses_new_text_with_500_and_drops_new_token_ids() -> None:
    """23-drain-no-queue-limit, before the timeout."""
    async with engine_process(*SWITCHES, "--shutdown-timeout", "60") as engine, AsyncExitStack() as stack:
        stream = await begin_stream(stack, engine, LONG)
        engine.process.terminate()
        await _draining(engine)
        text = await begin(stack, engine, completion(1))
        answer = await text.read_response()
        assert answer.status == 500
        assert error_of(answer) == {"message": DRAINING, "type": "InternalServerError", "param": None, "code": 500}
        assert await _to_the_end(text) == b""
        ids = await begin(stack, engine, completion(1, prompt=[1, 2, 3]))
        assert await _to_the_end(ids) == b""
        await stream.close()
        assert await ended(engine) == 0


async def test_what_a_drain_does_not_finish_in_time_hangs_until_its_client_leaves() -> None:
    """23-drain-no-queue-limit, behind the timeout."""
    async with engine_process(*SWITCHES, "--shutdown-timeout", "0.5") as engine, AsyncExitStack() as stack:
        streams = [await begin_stream(stack, engine, LONG) for _ in range(2)]
        engine.process.terminate()
        await wait_until(partial(is_refused, engine))
        readers = [asyncio.create_task(drained(stream)) for stream in streams]
        assert all([await _is_quiet(stream) for stream in streams])
        assert engine.process.returncode is None
        for reader, stream in zip(readers, streams, strict=True):
            assert not reader.done()
            reader.cancel()
            await stream.close()
        assert await ended(engine) == 0


async def test_messages_of_the_scenarios_are_json_with_the_recorded_spacing() -> None:
    """12-sigkill-enginecore: the error has blanks in a stream, and none in a plain answer."""
    async with engine_process(*SWITCHES, "--max-num-queued-reqs", "0") as engine:
        plain = await send_request(engine.authority, completion(1))
        stream = await send_request(engine.authority, completion(1, stream=True))
        error = {"error": {"message": BUSY, "type": "Service Unavailable", "param": None, "code": 503}}
        assert plain.body == json.dumps(error, separators=(",", ":")).encode()
        assert stream.body == b"data: " + json.dumps(error).encode() + b"\n\ndata: [DONE]\n\n"
        assert len(stream.chunks) == 2
