"""Engines and clients that do whatever a connection allows, at any moment, in simulated time.

Hypothesis draws what an engine sends, how and when, and what clients do meanwhile. `Scene` checks
what must hold: each client gets valid responses of its own only, other models are served, and
nothing is left in the gateway.
"""

import itertools
from dataclasses import replace
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.fleet.model import KV_TRANSFERS, Role
from fairlead_testing.simulated.hostile_engine import (
    PATIENCE_SECONDS,
    TAG,
    Accept,
    Answer,
    ClientRequest,
    ClientScript,
    EngineScript,
    Leaving,
    ReceivedResponse,
    Start,
    Step,
)
from fairlead_testing.simulated.scene import Surroundings, run_scene

TRANSFER = b'{"kv_transfer_params":{"remote_engine_id":"x","remote_block_ids":[1],"remote_host":"h","remote_port":1}}'
SECONDS = st.sampled_from([0.0, 0.01, 1.0, 4.0, 11.0, 13.0, 45.0])
SIZES = st.sampled_from([0, 0, 100, 5_000, 40_000, 150_000])


def _token(text: bytes) -> bytes:
    return b'{"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}' % text


OTHER_BODIES = st.sampled_from(
    [b"", b"<html>", b'{"error":{"message":"no","code":400}}', TRANSFER, b"\x1f\x8b\x08" + b"\0" * 50]
)
TOKENS = st.sampled_from(
    [
        b"data: " + _token(TAG) + b"\n\n",
        b"data: " + _token(TAG + b"y" * 9_000) + b"\n\n",
        (b"data: " + _token(TAG + b"z" * 900) + b"\n\n") * 30,
    ]
)
EVENTS = st.sampled_from(
    [
        b"data: [DONE]\n\n",
        b"data: [DONE]\n\n",
        b"data:[DONE]\r\n\r\n",
        b"data: [DONE]",
        b"data: [DO\ndata: NE]\n\n",
        b": comment " + TAG + b"\n\n",
        b":\n\n",
        b"\n\n",
        b"\r\n\r\n",
        b"event: x\nid: 1\nretry: 5\n\n",
        b"event: x\ndata: " + _token(TAG) + b"\n\n",
        b"data: " + _token(TAG) + b"\r\n\r\n",
        b"data: " + _token(TAG) + b"\r\r",
        b"data: " + _token(TAG) + b"\ndata: [DONE]\n\n",
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1' + b"0" * 30 + b"}}\n\n",
        b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}\n\n',
        b'data: {"error":{"message":"%b","code":500}}\n\n' % TAG,
        b'data: {"error":{"message":"full","code":503}}\n\n',
        b'data: {"choices":\n\n',
        b"data: " + b"z" * 25_000 + b"\n\n",
        b"data: " + b"z" * 15_000,
        b"<html>\n\n",
        b":\n\n" * 100,
        b"\x00\xff\n\n",
    ]
)


@st.composite
def bodies(draw: st.DrawFn, *, is_stream: bool) -> list[bytes]:
    """The parts of a body."""
    if draw(st.integers(0, 9)) == 0:
        is_stream = not is_stream
    if is_stream:
        parts = draw(st.lists(TOKENS | EVENTS, max_size=6))
        return [*parts, b"data: [DONE]\n\n"] if draw(st.integers(0, 3)) else parts
    if draw(st.integers(0, 5)) == 0:
        return [draw(OTHER_BODIES)]
    size = draw(st.sampled_from([0, 1_000, 31_000, 60_000, 150_000, 150_000]))
    text = b'{"object":"chat.completion","model":"own","choices":[{"message":"%b%b"}],"usage":null}' % (
        TAG,
        b"y" * size,
    )
    return [text[start : start + 20_000] for start in range(0, len(text), 20_000)]


INTERIM_HEADS = st.sampled_from(
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\nx-a: b\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
        b"HTTP/1.0 100 Continue\r\nconnection: close\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nEVIL!",
        b"HTTP/1.1 199 X\r\ncontent-length: 5\r\n\r\nEVIL!",
        b"HTTP/1.1 150 X\r\ncontent-length: 5\r\n\r\nEVIL!",
        b"HTTP/1.1 199 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nEVIL!\r\n0\r\n\r\n",
        b"HTTP/1.1 199 X\r\ncontent-length: 30\r\n\r\n",
    ]
)
STATUS_LINES = st.sampled_from(
    [
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 200",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1 201 Created",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 205 Reset Content",
        b"HTTP/1.1 206 Partial Content",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 307 Temporary Redirect",
        b"HTTP/1.1 400 Bad Request",
        b"HTTP/1.1 404 Not Found",
        b"HTTP/1.1 429 Too Many Requests",
        b"HTTP/1.1 500 Internal Server Error",
        b"HTTP/1.1 503 Service Unavailable",
        b"HTTP/1.1 099 X",
        b"HTTP/1.1 600 X",
        b"HTTP/1.1 999 X",
        b"HTTP/1.1 2000 X",
        b"\r\n\r\nHTTP/1.1 200 OK",
        b"ICY 200 OK",
    ]
)
HEADER_LINES = st.sampled_from(
    [
        *[b"connection: close"] * 4,
        b"connection: keep-alive",
        b"connection: upgrade\r\nupgrade: h2c",
        b"proxy-connection: close",
        b"keep-alive: timeout=0",
        b"content-encoding: gzip",
        b"content-type: text/event-stream",
        b"content-type: text/html",
        b"content-type: a\r\n folded: b",
        b"content-type: a\rx-b: c",
        b"content-type: a\nx-b: c",
        b"content-type: \x00",
        b"content-type: \xe9\xff",
        b"content-length: 5",
        b"content-length: 5",
        b"content-length: 3, 3",
        b"content-length: -1",
        b"content-length: 0x10",
        b"content-length: 99999999999999999999999",
        b"content-length : 7",
        b"transfer-encoding: chunked",
        b"transfer-encoding: gzip, chunked",
        b"transfer-encoding: chunked, gzip",
        b"transfer-encoding: identity",
        b"retry-after: 99999999999",
        b"retry-after: \xff",
        b"cache-control: x\r\n y",
        b"no colon",
        b": empty",
        b"trailer: content-length",
        b"x-long: " + b"a" * 9_000,
    ]
)


class Anomaly(Enum):
    """A way in which an answer is not as it should be."""

    INTERIM = "responses before it"
    STATUS = "status line"
    HEADERS = "header lines"
    LENGTH = "length"
    CHUNKS = "chunks"
    SURPLUS = "bytes behind it"
    CUT = "its end is missing"
    ENDLESS = "it goes on without end"
    LEAVING = "end of the connection"
    START = "begin"
    PACE = "pauses"


@st.composite
def messages(draw: st.DrawFn, anomalies: set[Anomaly], *, is_stream: bool) -> list[bytes]:
    """The bytes of one response, in parts."""
    parts = draw(bodies(is_stream=is_stream))
    status = draw(STATUS_LINES) if Anomaly.STATUS in anomalies else b"HTTP/1.1 200 OK"
    lines = [status, b"content-type: " + (b"text/event-stream" if is_stream else b"application/json")]
    framing = draw(st.sampled_from(["chunked", "chunked", "length", "length", "length", "close"]))
    if framing == "length":
        change = draw(st.sampled_from([-1, 5])) if Anomaly.LENGTH in anomalies else 0
        lines.append(b"content-length: %d" % max(0, len(b"".join(parts)) + change))
    elif framing == "chunked":
        lines.append(b"transfer-encoding: chunked")
        extension, end = b"", b"0\r\n\r\n"
        if Anomaly.CHUNKS in anomalies:
            extension = draw(st.sampled_from([b"", b";a=b", b';"\n"', b" "]))
            end = draw(st.sampled_from([b"", b"0\r\n", b"0\r\nx: y\r\n\r\n", b"ffffffffffffffffff\r\n"]))
        parts = [*[b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part], end]
    lines += draw(st.lists(HEADER_LINES, min_size=1, max_size=2)) if Anomaly.HEADERS in anomalies else []
    interims = draw(st.lists(INTERIM_HEADS, min_size=1, max_size=2)) if Anomaly.INTERIM in anomalies else []
    surplus = [draw(SURPLUS)] if Anomaly.SURPLUS in anomalies else []
    return [*interims, b"\r\n".join([*lines, b"", b""]), *parts, *surplus]


SURPLUS = st.sampled_from(
    [
        b"\r\n",
        b"x",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + TAG[:5],
        b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 16\r\n\r\n{"a":"%b"}' % TAG,
        b"HTTP/1.1 200 OK\r\n",
        b"0\r\n\r\n",
    ]
)
ENDLESS = st.sampled_from(
    [
        b":\n\n",
        b"3\r\n:\n\n\r\n",
        b"1\r\na\r\n",
        b"x",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"x-a: b\r\n",
        b"%x\r\n%b\r\n" % (len(b"data: " + _token(TAG)) + 2, b"data: " + _token(TAG) + b"\n\n"),
        b"4000\r\n" + b"data: " + b"q" * 16_376 + b"\n\n\r\n",
        b"\r\n",
        b"z" * 30_000,
    ]
)


@st.composite
def steps_of(draw: st.DrawFn, parts: list[bytes], anomalies: set[Anomaly]) -> tuple[Step, ...]:
    """The pace of a response."""
    data = b"".join(parts)
    pace = draw(st.sampled_from(["parts", "points", "drip"])) if Anomaly.PACE in anomalies else "whole"
    if pace == "points":
        points = sorted({0, len(data), *draw(st.lists(st.integers(0, max(1, len(data))), max_size=4))})
        steps = [Step(data[start:stop], draw(SECONDS)) for start, stop in itertools.pairwise(points)]
    elif pace == "drip":
        size = max(1, len(data) // 40)
        pause = draw(st.sampled_from([0.0, 0.5, 2.0]))
        steps = [Step(data[start : start + size], pause) for start in range(0, len(data), size)]
    else:
        steps = [Step(part, draw(SECONDS) if pace == "parts" else 0.0) for part in parts]
    if Anomaly.CUT in anomalies:
        steps = steps[: draw(st.integers(0, len(steps)))]
    if Anomaly.ENDLESS in anomalies:
        steps.append(Step(draw(ENDLESS), draw(st.sampled_from([0.1, 2.0, 5.0, 11.0])), 0))
    return tuple(steps)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    """One answer, with a few anomalies."""
    anomalies = draw(st.sets(st.sampled_from(Anomaly), max_size=3))
    steps = draw(steps_of(draw(messages(anomalies, is_stream=False)), anomalies))
    stream_steps = draw(steps_of(draw(messages(anomalies, is_stream=True)), anomalies))
    start = draw(st.sampled_from([Start.HEAD, Start.AT_ONCE])) if Anomaly.START in anomalies else Start.BODY
    leaving = draw(st.sampled_from(Leaving)) if Anomaly.LEAVING in anomalies else None
    return Answer(steps, start, leaving, stream_steps)


def _starting(answers: tuple[Answer, ...], start: Start) -> tuple[Answer, ...]:
    """Returns answers that do not wait for what the engine does not read."""
    return tuple(replace(answer, start=start) for answer in answers)


@st.composite
def engines(draw: st.DrawFn) -> EngineScript:
    """A hostile engine."""
    script = EngineScript(tuple(draw(st.lists(answers(), min_size=1, max_size=3))))
    how = draw(st.sampled_from(["all", "all", "all", "all", "slow", "never", "head", "some connections"]))
    if how == "slow":
        return EngineScript(script.answers, 500, draw(st.sampled_from([0.1, 3.0])))
    if how == "never":
        return EngineScript(_starting(script.answers, Start.AT_ONCE), 0)
    if how == "head":
        return EngineScript(_starting(script.answers, Start.HEAD), 400, read_limit=800)
    if how == "some connections":
        return EngineScript(
            script.answers, accepts=tuple(draw(st.lists(st.sampled_from(Accept), min_size=1, max_size=3)))
        )
    return script


REQUESTS = st.builds(
    ClientRequest,
    model=st.sampled_from(["tiny", "tiny", "fine"]),
    stream=st.booleans(),
    path=st.sampled_from([*["/v1/chat/completions"] * 6, "/v1/tokenize", "/v1/embeddings"]),
    padding=SIZES,
    answer_bytes=SIZES,
    timeout=st.sampled_from([0.0, 0.0, 0.0, 0.5, 10.0]),
    resumable=st.booleans(),
    has_length=st.sampled_from([True, True, False]),
    expects_continue=st.sampled_from([False, False, True]),
    is_http10=st.sampled_from([False] * 5 + [True]),
    closes=st.sampled_from([False] * 5 + [True]),
)


@st.composite
def clients(draw: st.DrawFn) -> ClientScript:
    """A client; most are patient."""
    sending = draw(st.sampled_from([(1 << 20, 0.0)] * 8 + [(2_000, 0.1), (60, 1.0)]))
    reading = draw(st.sampled_from([(65_536, 0.0)] * 5 + [(3_000, 0.5), (20_000, 4.0), (100, 1.0), (0, 0.0)]))
    leaves = draw(st.sampled_from([PATIENCE_SECONDS] * 7 + [0.0, 0.01, 1.0, 5.0, 14.0]))
    return ClientScript(
        tuple(draw(st.lists(REQUESTS, min_size=1, max_size=3))),
        draw(st.sampled_from([0.0, 0.0, 0.5, 3.0])),
        draw(st.sampled_from([False, False, True])),
        *sending,
        *reading,
        leaves,
        draw(st.sampled_from(Leaving)),
    )


@st.composite
def surroundings(draw: st.DrawFn) -> Surroundings:
    """Surroundings; most are quiet."""
    if draw(st.integers(0, 2)):
        return Surroundings(has_second=draw(st.booleans()))
    roles = st.sampled_from([(Role.SERVE, Role.SERVE), (Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)])
    times = st.sampled_from([0.0, 0.0, 0.01, 1.0, 5.0])
    return Surroundings(
        True,
        draw(st.none() | engines()),
        draw(roles),
        draw(st.sampled_from(KV_TRANSFERS)),
        draw(st.booleans()),
        draw(times),
        draw(times),
    )


@given(engines(), st.lists(clients(), min_size=1, max_size=3), surroundings())
def test_no_script_of_engines_and_clients_leaves_a_trace(
    engine: EngineScript, scripts: list[ClientScript], around: Surroundings
) -> None:
    assert run_scene(engine, scripts, around) == []


@pytest.mark.parametrize("answer_bytes", range(60_000, 120_000, 3_000))
def test_connection_to_an_engine_is_not_paused_when_it_is_used_again(answer_bytes: int) -> None:
    silent = EngineScript((Answer(()),))
    slow = ClientScript((ClientRequest("fine", answer_bytes=answer_bytes),), read_bytes=8_000, read_seconds=0.2)
    assert run_scene(silent, [slow]) == []


def test_response_that_breaks_off_is_reset_so_that_it_does_not_look_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n{%b\r\n" % (b" " * 65_535)
    breaks_off = EngineScript((Answer((Step(head + chunk, 1.0),), leaving=Leaving.CLOSE),))
    client = ClientScript((ClientRequest(is_http10=True),))
    received: list[ReceivedResponse] = []
    assert run_scene(breaks_off, [client], received=received) == []
    assert [(response.status, response.is_cut) for response in received] == [(200, True)]
