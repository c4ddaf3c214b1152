"""Dead, full or faulty engines: unstarted requests survive, started ones end with an error."""

import asyncio
from dataclasses import replace
from typing import cast

import pytest

from fairlead.fleet.model import ModelRouting
from fairlead.limits import Limits
from fairlead_gateway.resilience.worker.retry import MIN_RETRIES
from fairlead_testing.engines.scripted import (
    EngineCall,
    HangUp,
    Script,
    ends_without_done,
    event,
    hang_up,
    reset,
    responds,
    scripted_engine,
    silent,
    streams,
    token,
    well_behaved,
)
from fairlead_testing.gateway.running_gateway import (
    MODEL_KEY,
    fleet_of,
    gateway_before,
    running_gateway,
)
from fairlead_testing.http.raw_client import RawConnection, RawResponse, post_request, request

pytestmark = pytest.mark.simulated

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
STREAM = GOOD | {"stream": True}
FULL = {"error": {"message": "The engine is currently busy", "type": "Service Unavailable", "param": None, "code": 503}}
FULL_SGLANG = {"error": {"message": "503: The request queue is full.", "type": "invalid_request_error", "code": 400}}
DEAD = {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}
ABORTED = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]}
BAD_VALUE = {"error": {"message": "prompt too long", "type": "BadRequestError", "param": "input", "code": 400}}


async def half_a_head(call: EngineCall) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\ncontent-ty")
    raise HangUp


async def half_an_answer(call: EngineCall) -> None:
    await call.send(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"a":')
    raise HangUp


async def half_a_chunk(call: EngineCall) -> None:
    await call.start_stream("application/json")
    await call.send(b'50\r\n{"a":')
    raise HangUp


status_500 = responds(DEAD, "500 Internal Server Error")
status_502 = responds(b"<html>bad gateway</html>", "502 Bad Gateway", "text/html")


status_503 = responds(FULL, "503 Service Unavailable")
full_with_400 = responds(FULL_SGLANG, "400 Bad Request")
redirect = responds(b"", "307 Temporary Redirect", more="location: http://evil/\r\n")


async def garbage(call: EngineCall) -> None:
    await call.send(b"\x00\x01\x02 this is not HTTP\r\n\r\n")


async def endless_head(call: EngineCall) -> None:
    await call.send(b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"b" * 100_000 + b"\r\n\r\n")


not_json = responds(b"<html>hello</html>", kind="text/html")
half_json = responds(b'{"choices":[')


full_in_the_stream = streams(FULL)
dead_in_the_stream = streams(DEAD)


aborted_at_once = streams(ABORTED)
empty_stream = streams(b"", end=None)


cut_before_the_first_event = streams(b'data: {"choi', end=hang_up)
no_event_stream = streams(b"<html>\n\n</html>\n\n", b"", end=None)


events_that_are_not_json = streams("{oops")
plain_instead_of_a_stream = responds({"ok": 1})


PLAIN_FAULTS: list[Script] = [
    hang_up,
    reset,
    half_a_head,
    half_an_answer,
    half_a_chunk,
    status_500,
    status_502,
    status_503,
    full_with_400,
    redirect,
    garbage,
    endless_head,
    not_json,
    half_json,
]
STREAM_FAULTS: list[Script] = [
    hang_up,
    reset,
    half_a_head,
    status_500,
    status_503,
    garbage,
    not_json,
    full_in_the_stream,
    dead_in_the_stream,
    aborted_at_once,
    empty_stream,
    cut_before_the_first_event,
    no_event_stream,
    events_that_are_not_json,
    plain_instead_of_a_stream,
]
FAULTS = [(script, GOOD) for script in PLAIN_FAULTS] + [(script, STREAM) for script in STREAM_FAULTS]
NAMES = [f"{script.__name__}-{'stream' if body is STREAM else 'plain'}" for script, body in FAULTS]


def first_fails(fault: Script) -> tuple[Script, list[str]]:
    """A script for several engines: only the first request meets the fault."""
    met: list[str] = []

    async def script(call: EngineCall) -> None:
        met.append(call.path)
        await (fault if len(met) == 1 else well_behaved)(call)

    return script, met


@pytest.mark.parametrize(("fault", "body"), FAULTS, ids=NAMES)
async def test_fault_before_the_first_byte_is_retried_unseen_by_the_client(
    fault: Script, body: dict[str, object]
) -> None:
    script, met = first_fails(fault)
    async with gateway_before([script, script, script]) as running:
        answer = await request(running.url, body)
        assert answer.status == 200
        assert answer.complete
        assert answer.fields["x-fairlead-reason"] == "retry-1"
        assert len(met) == 2
        if body is STREAM:
            assert answer.events[-1] == "[DONE]"
            assert len(answer.events) == 4
        logged = running.gateway.decisions.latest(1)[0]
        assert [record.attempt for record in logged.records] == [1, 2]
        assert logged.records[0].decision.chosen != logged.records[1].decision.chosen
        assert (logged.status, logged.error, logged.attempts) == (200, None, 2)


async def test_an_engine_that_refuses_connections_is_passed_over() -> None:
    async with scripted_engine() as dead:
        gone = dead.url
    async with scripted_engine() as alive, running_gateway(fleet_of([gone, alive.url])) as running:
        for number in range(6):
            body = GOOD | {"messages": [{"role": "user", "content": f"{number}" * 2_000}]}
            answer = await request(running.url, body)
            assert answer.status == 200
            assert answer.fields["x-fairlead-instance"] == "e-1/1/0"


@pytest.mark.parametrize(
    ("script", "body", "status", "code"),
    [
        (hang_up, GOOD, 502, "engines_broke_off"),
        (half_an_answer, GOOD, 502, "engines_broke_off"),
        (status_500, GOOD, 502, "engine_failed"),
        (garbage, GOOD, 502, "engine_failed"),
        (not_json, GOOD, 502, "engine_failed"),
        (status_503, GOOD, 503, "overloaded"),
        (full_with_400, GOOD, 503, "overloaded"),
        (status_503, STREAM, 503, "overloaded"),
        (full_in_the_stream, STREAM, 503, "overloaded"),
        (dead_in_the_stream, STREAM, 502, "engine_failed"),
        (empty_stream, STREAM, 502, "engine_failed"),
    ],
)
async def test_when_every_engine_fails_the_client_gets_one_error_object(
    script: Script, body: dict[str, object], status: int, code: str
) -> None:
    async with gateway_before([script] * 3) as running:
        answer = await request(running.url, body)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.error["type"] == "server_error"
        assert answer.fields["x-fairlead-instance"].startswith("e-")
        if status == 503:
            assert answer.fields["retry-after"] == "1"
        outcome = running.gateway.decisions.latest(1)[0]
        assert (outcome.status, outcome.error) == (status, code)


async def test_a_request_that_no_engine_could_take_is_among_the_failed_ones() -> None:
    async with running_gateway(fleet_of([])) as running:
        answers = [await request(running.url, GOOD) for _ in range(3)]
        assert [answer.error["code"] for answer in answers] == ["no_ready_instance"] * 3
        [entry] = running.gateway.decisions.latest(9, kind="failed")  # not one for each of a flood
        assert (entry.status, entry.error, entry.latest.decision.rule) == (503, "no_ready_instance", "unserved")


async def test_a_request_that_breaks_two_engines_is_not_given_to_a_third() -> None:
    met = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        raise HangUp

    async with gateway_before([script] * 4) as running:
        answer = await request(running.url, GOOD)
        assert (answer.status, answer.fields["x-should-retry"]) == (502, "false")
        assert len(met) == 2


async def test_retries_are_bounded_by_attempts() -> None:
    met = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await status_500(call)

    async with gateway_before([script] * 4, Limits(max_attempts=2)) as running:
        assert (await request(running.url, GOOD)).status == 502
        assert len(met) == 2


@pytest.mark.parametrize(("max_attempts", "tried"), [(None, 3), (1, 1), (2, 2), (5, 5)])
@pytest.mark.parametrize("stream", [False, True])
async def test_model_states_how_many_instances_are_tried(max_attempts: int | None, tried: int, stream: bool) -> None:
    met = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await status_500(call)

    async with gateway_before([script] * 6) as running:
        fleet = running.gateway.stages.routers.fleet
        model = replace(fleet.models[MODEL_KEY], routing=ModelRouting(max_attempts=max_attempts))
        running.gateway.update_fleet(replace(fleet, version=2, models={MODEL_KEY: model}))
        assert (await request(running.url, {**GOOD, "stream": stream})).status == 502
        assert len(met) == tried


async def test_refused_connections_are_no_attempts_of_a_model() -> None:
    async with scripted_engine(well_behaved) as engine:
        fleet = fleet_of(["http://127.0.0.1:1", "http://127.0.0.1:2", engine.url])
        model = replace(fleet.models[MODEL_KEY], routing=ModelRouting(max_attempts=1))
        async with running_gateway(replace(fleet, models={MODEL_KEY: model})) as running:
            for _ in range(3):
                assert (await request(running.url, GOOD)).status == 200


async def test_retries_are_bounded_by_the_budget() -> None:
    met = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await status_500(call)

    async with gateway_before([script] * 2, Limits(retry_share=0.0)) as running:
        for _ in range(20):
            assert (await request(running.url, GOOD)).status == 502
        assert len(met) == 20 + MIN_RETRIES


async def test_a_limit_of_all_engines_is_the_clients_in_the_words_of_the_last() -> None:
    met = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.respond(BAD_VALUE, "429 Too Many Requests", more="retry-after: 7\r\n")

    async with gateway_before([script] * 2) as running:
        for body in (GOOD, STREAM):
            answer = await request(running.url, body)
            assert (answer.status, answer.json, answer.fields["retry-after"]) == (429, BAD_VALUE, "7")
        assert len(met) == 4


@pytest.mark.parametrize("status", ["400 Bad Request", "404 Not Found", "422 Unprocessable Entity"])
async def test_a_4xx_of_an_engine_is_the_clients_and_never_retried(status: str) -> None:
    met = []

    async def script(call: EngineCall) -> None:
        met.append(call)
        await call.respond(BAD_VALUE, status, more="retry-after: 7\r\n")

    async with gateway_before([script] * 2) as running:
        for body in (GOOD, STREAM):
            answer = await request(running.url, body)
            assert answer.status == int(status[:3])
            assert answer.json == BAD_VALUE
            assert answer.fields["retry-after"] == "7"
        assert len(met) == 2


async def test_a_4xx_that_is_no_openai_error_becomes_one() -> None:
    async with gateway_before([responds({"detail": "Not Found"}, "404 Not Found")]) as running:
        answer = await request(running.url, {"model": "tiny", "input": "x"}, path="/v1/embeddings")
        assert (answer.status, answer.error["code"]) == (404, "unknown_url")


async def test_a_4xx_inside_a_stream_becomes_a_real_one() -> None:
    async with gateway_before([streams(BAD_VALUE)] * 2) as running:
        answer = await request(running.url, STREAM)
        assert (answer.status, answer.error["message"]) == (400, "prompt too long")


async def stops_in_a_chunk(call: EngineCall) -> None:
    await call.send(b'60\r\ndata: {"choices"')
    raise HangUp


async def stops_in_an_event(call: EngineCall) -> None:
    await call.chunk(event(token("c"))[:20])
    await call.chunk(b"")


async def reports_an_error(call: EngineCall) -> None:
    await call.event(DEAD)
    await call.finish()


async def aborts(call: EngineCall) -> None:
    await call.event(ABORTED)
    await call.finish()


async def sends_bad_chunks(call: EngineCall) -> None:
    await call.send(b"zz\r\nnonsense")


async def sends_no_json(call: EngineCall) -> None:
    await call.event('{"error":')
    await call.event("[DONE]")


@pytest.mark.parametrize(
    "end",
    [
        hang_up,
        reset,
        stops_in_a_chunk,
        stops_in_an_event,
        reports_an_error,
        aborts,
        ends_without_done,
        sends_bad_chunks,
        sends_no_json,
        silent,
    ],
)
async def test_a_stream_that_breaks_ends_with_an_error_event_and_without_done(end: Script) -> None:
    seen = asyncio.Event()

    async def script(call: EngineCall) -> None:
        await call.start_stream()
        await call.event(token("a"))
        await call.event(token("b"))
        await seen.wait()
        await end(call)

    async with gateway_before([script] * 2, Limits(stream_idle_seconds=0.3)) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(post_request(STREAM, close=False))
        begun = await connection.reader.readuntil(b'"content":"b"')
        seen.set()
        answer = await _parsed(begun + await connection.reader.readuntil(b"\r\n0\r\n\r\n"))
        await connection.close()
        assert answer.complete
        assert len(answer.events) == 3
        assert '"error"' in answer.events[-1]
        assert f'"request_id":"{answer.fields["x-request-id"]}"' in answer.events[-1]
        assert "[DONE]" not in answer.body.decode()
        outcome = running.gateway.decisions.latest(1)[0]
        assert outcome.error is not None
        assert not outcome.client_disconnected


async def _parsed(data: bytes) -> RawResponse:
    """Bytes that were read already, as the one answer that they are."""
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    reader.feed_eof()
    connection = RawConnection(reader, cast(asyncio.StreamWriter, None))
    answers = await connection.read_all_responses()
    assert len(answers) == 1
    return answers[0]


async def test_a_stream_that_breaks_before_anything_was_passed_on_is_retried() -> None:
    first, met = first_fails(streams(event(token("a")) + event(DEAD), end=None))
    async with gateway_before([first] * 2) as running:
        assert (await request(running.url, STREAM)).events[-1] == "[DONE]"
        assert len(met) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_the_engine_refused_does_not_count_as_cached(stream: bool) -> None:
    async with gateway_before([responds(BAD_VALUE, "400 Bad Request")]) as running:
        long = GOOD | {"messages": [{"role": "user", "content": "word " * 4_000}], "stream": stream}
        for _ in range(2):
            assert (await request(running.url, long)).status == 400
            assert running.gateway.decisions.latest(1)[0].latest.decision.matched_tokens == 0.0
