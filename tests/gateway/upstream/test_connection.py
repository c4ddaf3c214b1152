"""Connections to engines: reuse, disposal, and late, long or second responses."""

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

import pytest

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance
from fairlead.limits import Limits
from fairlead_gateway.upstream.connection import UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    ScriptedEngine,
    event,
    responds,
    scripted_engine,
    silent,
    streams,
    token,
    usage,
    well_behaved,
)
from fairlead_testing.gateway.recording_sink import RecordingSink
from fairlead_testing.gateway.running_gateway import MODEL_KEY, fleet_of, gateway_before, gateway_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, post_request, request, send
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.sockets

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True}


async def test_an_engine_that_never_answers_is_given_up_at_its_deadline() -> None:
    async with gateway_before([silent], Limits(first_token_seconds=0.2)) as running:
        answer = await request(running.url, GOOD)
        assert (answer.status, answer.error["code"]) == (504, "engine_timeout")


@pytest.mark.parametrize("body", [GOOD, STREAM])
async def test_an_engine_that_says_nothing_and_listens_no_more_is_left_for_another(body: dict[str, object]) -> None:
    async def script(call: EngineCall) -> None:
        for engine in engines:
            if engine.calls and engine.server is not None and engine.calls[0] is call:
                engine.server.close()
        if sum(len(engine.calls) for engine in engines) == 1:
            await call.wait_closed()
        await well_behaved(call)

    engines: list[ScriptedEngine] = []

    async with scripted_engine(script) as first, scripted_engine(script) as second:
        engines.extend((first, second))
        async with running_gateway(fleet_of([first.url, second.url]), Limits(unresponsive_seconds=0.02)) as running:
            answer = await request(running.url, body)
            assert (answer.status, answer.fields["x-fairlead-reason"]) == (200, "retry-1")
            assert running.gateway.telemetry.models[MODEL_KEY].retries_by_reason == {"gone": 1}


@pytest.mark.parametrize("start", [b"0\r\nx-trailer: ", b"0\r\n", b"5;"])
async def test_endless_trailer_of_an_engine_is_cut_before_it_fills_the_memory(start: bytes) -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n" + start)
        part = b"x: y\r\n" * 100 if start == b"0\r\n" else b"a" * 600
        with contextlib.suppress(HangUp, ConnectionError):
            for _ in range(10_000):
                await call.send(part)
                sent.append(len(part))

    sent: list[int] = []
    async with gateway_before([script], Limits(response_head_bytes=2_000)) as running:
        assert (await request(running.url, GOOD)).status == 502
        assert sum(sent) < 6_000_000


async def test_chunk_sizes_that_arrive_alone_do_not_count_as_a_trailer() -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

    loop = asyncio.get_running_loop()
    pool = ConnectionPool(Limits(response_head_bytes=100), loop, EngineCredentials({}, loop.time))
    async with scripted_engine(script) as engine:
        sink, connection = RecordingSink(), await pool.connect(engine.url)
        connection.send_request([b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: 0\r\n\r\n"], sink, 60.0)
        await sink.head.wait()
        for _ in range(200):
            connection.data_received(b"1\r\n")
            connection.data_received(b"x\r\n")
        connection.data_received(b"0\r\n\r\n")
        assert sink.end.is_set()
        pool.close()


async def test_request_whose_last_bytes_cause_a_defect_ends_with_an_error() -> None:
    class DefectiveSink(RecordingSink):
        def on_body(self, chunks: list[bytes], complete: bool) -> None:
            raise ValueError("a defect")

        def on_error(self, error: UpstreamError) -> None:
            errors.append(error.cause)

    async def script(call: EngineCall) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx")

    errors: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    pool = ConnectionPool(Limits(), loop, EngineCredentials({}, loop.time))
    async with scripted_engine(script) as engine:
        connection = await pool.connect(engine.url)
        connection.send_request([b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: 0\r\n\r\n"], DefectiveSink(), 60.0)
        await wait_until(lambda: errors == ["garbage"])
        pool.close()


async def test_head_of_a_stream_is_no_activity_since_a_hung_core_sends_no_body() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await tokens_wanted.wait()
        await call.event(token("a"))
        await call.finish()

    tokens_wanted: asyncio.Event
    tokens_wanted = asyncio.Event()
    loop = asyncio.get_running_loop()
    pool = ConnectionPool(Limits(), loop, EngineCredentials({}, loop.time))
    async with scripted_engine(script) as engine:
        sink, connection = RecordingSink(), await pool.connect(engine.url)
        connection.send_request([b"POST / HTTP/1.1\r\nhost: e\r\ncontent-length: 0\r\n\r\n"], sink, 60.0)
        await sink.head.wait()
        assert pool.activity(engine.url).receive_count == 0
        tokens_wanted.set()
        await sink.end.wait()
        assert pool.activity(engine.url).receive_count > 0
        pool.close()


async def test_an_engine_that_says_nothing_and_listens_is_waited_for() -> None:
    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await wait_until(lambda: engine.connections > 3)  # it is knocked at again and again
        await call.event(token("b"))
        await call.finish()

    async with scripted_engine(script) as engine:  # noqa: SIM117
        async with running_gateway(fleet_of([engine.url]), Limits(unresponsive_seconds=0.02)) as running:
            assert (await request(running.url, STREAM)).events[-1] == "[DONE]"
            assert len(engine.calls) == 1


@pytest.mark.parametrize("checks_address", [False, True])
async def test_endpoint_that_resolves_to_a_loopback_address_gets_no_connection(checks_address: bool) -> None:
    loop = asyncio.get_running_loop()
    credentials = EngineCredentials({}, loop.time)
    pool = ConnectionPool(Limits(), loop, credentials)
    async with scripted_engine() as engine:
        url = f"http://localhost:{urlsplit(engine.url).port}"
        instance = Instance("i", "x", "tiny", "main", url, checks_address=checks_address)
        credentials.update_fleet(Fleet(1, 1, {}, {"x/tiny": (instance,)}))
        if checks_address:
            for address in (url, "http://localhost:8998"):  # a bootstrap server of the same host
                with pytest.raises(UpstreamError, match="refused"):
                    await pool.connect(address)
        else:
            (await pool.connect(url)).abort()
            await wait_until(lambda: engine.connections == 1)
        assert engine.connections == (0 if checks_address else 1)


async def test_one_probe_serves_all_waiting_connections_and_none_while_the_engine_sends() -> None:
    loop = asyncio.get_running_loop()
    pool = ConnectionPool(Limits(), loop, EngineCredentials({}, loop.time))
    async with scripted_engine(silent) as engine:
        listeners = [RecordingSink(waits=True), RecordingSink(waits=True)]
        connections = [await pool.connect(engine.url) for _ in listeners]
        for connection, listener in zip(connections, listeners, strict=True):
            connection.send_request([b"GET / HTTP/1.1\r\n\r\n"], listener, 60.0)
        await wait_until(lambda: len(engine.calls) == 2)

        def probe() -> None:
            for connection in connections:
                pool.probe_listening(connection)

        probe()
        await wait_until(lambda: not pool._probes)
        await wait_until(lambda: engine.connections == 3)
        engine.server.close()
        probe()
        pool.activity(engine.url).receive_count += 1
        await wait_until(lambda: not pool._probes)
        assert [listener.ended for listener in listeners] == [[], []]
        connections[1].set_paused(True)
        probe()
        await wait_until(lambda: not pool._probes)
        assert [listener.ended for listener in listeners] == [["gone"], []]
        connections[1].abort()
        pool.close()


async def test_an_answer_that_ends_after_the_gateway_closed_leaves_no_connection() -> None:
    loop = asyncio.get_running_loop()
    pool = ConnectionPool(Limits(), loop, EngineCredentials({}, loop.time))
    async with scripted_engine() as engine:
        connection = await pool.connect(engine.url)
        pool.close()
        pool.release(connection)
        assert not connection.is_usable
        assert pool.take_idle(engine.url) is None
        await wait_until(lambda: engine.open == 0)


async def test_a_stale_connection_is_replaced_without_a_word() -> None:
    seen: dict[int, int] = {}

    async def script(call: EngineCall) -> None:
        number = seen[id(call.writer)] = seen.get(id(call.writer), 0) + 1
        if number > 1:
            raise HangUp
        await well_behaved(call)

    async with gateway_before([script]) as running:
        for _ in range(5):
            answer = await request(running.url, GOOD)
            assert answer.status == 200
            assert not answer.fields["x-fairlead-reason"].startswith("retry")


async def test_idle_engine_connections_are_dropped_before_the_engine_does_it() -> None:
    limits = Limits(upstream_idle_seconds=0.1)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        assert (await request(running.url, GOOD)).status == 200
        await wait_until(lambda: not engine.open)
        assert (await request(running.url, GOOD)).status == 200
        assert engine.connections == 2


async def test_a_second_answer_that_nobody_asked_for_reaches_nobody() -> None:
    async def script(call: EngineCall) -> None:
        await call.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 7\r\n\r\n{"a":1}' * 2)

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        data = post_request(GOOD, close=False) + post_request(GOOD)
        assert [answer.json for answer in await send(running.url, data)] == [{"a": 1}, {"a": 1}]
        assert len(engine.calls) == 2


@pytest.mark.parametrize("complete", [True, False])
async def test_long_plain_response_passes_through_and_cannot_look_complete_when_cut(complete: bool) -> None:
    body = b'{"data":"' + b"x" * 3_000_000 + b'","usage":{"prompt_tokens":5}}'

    async def script(call: EngineCall) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await call.send(head.encode() + (body if complete else body[:-1_000]))
        if not complete:
            raise HangUp

    async with gateway_before([script]) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(GOOD))
        if complete:
            assert (await connection.read_response()).body == body
        else:
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await connection.read_response()
        await connection.close()


async def test_what_an_engine_says_after_done_is_not_passed_on() -> None:
    script = streams(
        event(token("a")) + event(usage(1, 0, 1)) + event("[DONE]") + event(token("late")),
        token("later"),
        b"",
        end=None,
    )

    async with gateway_before([script]) as running:
        answer = await request(running.url, STREAM)
        assert answer.complete
        assert [answer.events[0], answer.events[-1]] == [event(token("a"))[6:-2].decode(), "[DONE]"]
        assert len(answer.events) == 2


async def test_an_engine_that_takes_no_connection_in_time_is_passed_over() -> None:
    """A listening socket with a full queue drops connects, which neither succeed nor fail."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as waiting:
        address = full.getsockname()
        for _ in range(4):
            knocking = waiting.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(address)
        limits = Limits(connect_seconds=0.3)
        async with scripted_engine() as engine:
            urls = [f"http://127.0.0.1:{address[1]}", engine.url]
            async with running_gateway(fleet_of(urls, preset="round-robin"), limits) as running:
                answers = [await request(running.url, GOOD) for _ in range(2)]
                assert {answer.status for answer in answers} == {200}
                assert "retry-1" in [answer.fields["x-fairlead-reason"] for answer in answers]
                retried = next(entry for entry in running.gateway.decisions.latest(2) if entry.latest.attempt == 2)
                assert retried.latest.decision.reason.startswith("connect-timeout")


@pytest.mark.parametrize("param", ["model", None])
async def test_engine_that_does_not_know_the_model_is_skipped_however_it_says_so(param: str | None) -> None:
    error = {"message": "The model `tiny` does not exist.", "type": "NotFoundError", "param": param, "code": 404}

    async with gateway_of(responds({"error": error}, "404 Not Found"), responds({"object": "list", "data": []})) as (
        running,
        first,
        _other,
    ):
        for number in range(6):
            asked = {"model": "tiny", "input": f"{number} " * 300}
            assert (await request(running.url, asked, path="/v1/embeddings")).status == 200
        assert first.calls


async def test_the_connection_of_a_stream_that_ended_with_an_error_event_asks_again() -> None:
    async def script(call: EngineCall) -> None:
        if not call.json.get("stream"):
            await well_behaved(call)
            return
        await call.start_stream()
        await call.event(token("a"))
        raise HangUp

    async with scripted_engine(script) as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM, close=False))
        answer = await connection.read_response()
        assert answer.complete
        assert '"code":"stream_cut"' in answer.events[-1]
        await connection.send(post_request(GOOD))
        assert (await connection.read_response()).status == 200
        await connection.close()
