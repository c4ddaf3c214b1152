"""Engines and clients that do whatever a connection allows, at any moment, in simulated time.

Hypothesis draws what an engine sends, how and when, and what clients do meanwhile. `Scene` checks
what must hold: each client gets valid responses of its own only, other models are served, and
nothing is left in the gateway.
"""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_testing.simulated.hostile_client import PATIENCE_SECONDS, ClientRequest, ClientScript, Leaving
from fairlead_testing.simulated.hostile_engine import TAG, Accept, Answer, EngineScript, Start, Step
from fairlead_testing.simulated.responses import ReceivedResponse
from fairlead_testing.simulated.scene import run_scene

SECONDS = st.sampled_from([0.0, 0.01, 1.0, 4.0, 11.0, 13.0, 45.0])
SIZES = st.sampled_from([0, 0, 100, 5_000, 40_000, 150_000])


def _token(text: bytes) -> bytes:
    return b'{"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}' % text


EVENTS = st.sampled_from(
    [
        b"data: " + _token(TAG) + b"\n\n",
        b"data: " + _token(TAG) + b"\n\n",
        b"data: " + _token(TAG) + b"\n\n",
        b"data: " + _token(TAG + b"y" * 9_000) + b"\n\n",
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
def bodies(draw: st.DrawFn) -> list[bytes]:
    """The parts of a body."""
    kind = draw(st.sampled_from(["events", "events", "json", "json", "other"]))
    if kind == "events":
        parts = draw(st.lists(EVENTS, max_size=6))
        return [*parts, b"data: [DONE]\n\n"] if draw(st.booleans()) else parts
    if kind == "json":
        size = draw(st.sampled_from([0, 10, 1_000, 31_000, 60_000, 150_000]))
        text = b'{"object":"chat.completion","choices":[{"index":0,"message":"%b%b"}],"usage":null}' % (
            TAG,
            b"y" * size,
        )
        return [text[start : start + 20_000] for start in range(0, len(text), 20_000)]
    return [
        draw(st.sampled_from([b"", b"<html>", b'{"error":{"message":"no","code":400}}', b"\x1f\x8b\x08" + b"\0" * 50]))
    ]


INTERIM_HEADS = st.sampled_from(
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\nx-a: b\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n",
        b"HTTP/1.0 100 Continue\r\nconnection: close\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\ncontent-length: 5\r\n\r\nEVIL!",
        b"HTTP/1.1 100 Continue\r\ntransfer-encoding: chunked\r\n\r\n5\r\nEVIL!\r\n0\r\n\r\n",
        b"HTTP/1.1 199 X\r\ncontent-length: 30\r\n\r\n",
    ]
)
STATUS_LINES = st.sampled_from(
    [
        *[b"HTTP/1.1 200 OK"] * 12,
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
        b"connection: close",
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


@st.composite
def messages(draw: st.DrawFn) -> list[bytes]:
    """The bytes of one response, in parts."""
    parts = draw(bodies())
    is_stream = any(part.startswith((b"data:", b":")) for part in parts)
    kind = b"text/event-stream" if is_stream != draw(st.sampled_from([False] * 9 + [True])) else b"application/json"
    lines = [draw(STATUS_LINES), b"content-type: " + kind]
    framing = draw(st.sampled_from(["chunked"] * 4 + ["length"] * 3 + ["close"]))
    body = b"".join(parts)
    if framing == "length":
        lines.append(b"content-length: %d" % max(0, len(body) + draw(st.sampled_from([0] * 6 + [-1, 5]))))
    elif framing == "chunked":
        lines.append(b"transfer-encoding: chunked")
        extension = draw(st.sampled_from([b""] * 8 + [b";a=b", b';"\n"', b" "]))
        parts = [b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts if part]
        parts.append(
            draw(st.sampled_from([b"0\r\n\r\n"] * 8 + [b"", b"0\r\n", b"0\r\nx: y\r\n\r\n", b"ffffffffffffffffff\r\n"]))
        )
    lines += draw(st.lists(HEADER_LINES, max_size=2)) if draw(st.integers(0, 2)) == 0 else []
    interims = draw(st.lists(INTERIM_HEADS, max_size=2)) if draw(st.integers(0, 4)) == 0 else []
    return [*interims, b"\r\n".join([*lines, b"", b""]), *parts]


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
def answers(draw: st.DrawFn) -> Answer:
    """One answer, its pace and its end."""
    parts = draw(messages())
    if draw(st.integers(0, 5)) == 0:
        parts.append(draw(SURPLUS))
    data = b"".join(parts)
    cut = draw(st.sampled_from(["parts", "parts", "whole", "points", "drip"]))
    if cut == "whole":
        steps = [Step(data)]
    elif cut == "points":
        points = sorted({0, len(data), *draw(st.lists(st.integers(0, max(1, len(data))), max_size=4))})
        pieces = [data[start:stop] for start, stop in itertools.pairwise(points)]
        steps = [Step(piece, draw(SECONDS)) for piece in pieces]
    elif cut == "drip":
        size = max(1, len(data) // 40)
        pause = draw(st.sampled_from([0.0, 0.5, 2.0]))
        steps = [Step(data[start : start + size], pause) for start in range(0, len(data), size)]
    else:
        steps = [Step(part, draw(SECONDS) if draw(st.integers(0, 3)) == 0 else 0.0) for part in parts]
    if draw(st.integers(0, 4)) == 0:
        steps = steps[: draw(st.integers(0, len(steps)))]
    if draw(st.integers(0, 4)) == 0:
        steps.append(Step(draw(ENDLESS), draw(st.sampled_from([0.1, 2.0, 5.0, 11.0])), 0))
    start = draw(st.sampled_from([Start.BODY, Start.BODY, Start.HEAD, Start.AT_ONCE]))
    leaving = draw(st.sampled_from([None, None, Leaving.CLOSE, Leaving.RESET, Leaving.HALF_CLOSE]))
    return Answer(tuple(steps), start, leaving)


@st.composite
def engines(draw: st.DrawFn) -> EngineScript:
    """A hostile engine."""
    script = EngineScript(tuple(draw(st.lists(answers(), min_size=1, max_size=3))))
    how = draw(st.sampled_from(["all", "all", "all", "slow", "never", "head", "some connections"]))
    if how == "slow":
        return EngineScript(script.answers, 500, draw(st.sampled_from([0.1, 3.0])))
    if how == "never":
        return EngineScript(script.answers, 0)
    if how == "head":
        return EngineScript(script.answers, 400, read_limit=800)
    if how == "some connections":
        return EngineScript(
            script.answers, accepts=tuple(draw(st.lists(st.sampled_from(Accept), min_size=1, max_size=3)))
        )
    return script


REQUESTS = st.builds(
    ClientRequest,
    model=st.sampled_from(["tiny", "tiny", "fine"]),
    stream=st.booleans(),
    path=st.sampled_from([*["/v1/chat/completions"] * 5, "/v1/tokenize", "/v1/embeddings"]),
    padding=SIZES,
    answer_bytes=SIZES,
    resumable=st.booleans(),
    has_length=st.sampled_from([True, True, False]),
    expects_continue=st.sampled_from([False, False, True]),
    is_http10=st.sampled_from([False] * 5 + [True]),
    closes=st.sampled_from([False] * 5 + [True]),
)


@st.composite
def clients(draw: st.DrawFn) -> ClientScript:
    """A client; most are patient."""
    sending = draw(st.sampled_from([(1 << 20, 0.0)] * 4 + [(2_000, 0.1), (60, 1.0)]))
    reading = draw(st.sampled_from([(65_536, 0.0)] * 4 + [(3_000, 0.5), (20_000, 4.0), (100, 1.0), (0, 0.0)]))
    leaves = draw(st.sampled_from([PATIENCE_SECONDS] * 4 + [0.0, 0.01, 1.0, 5.0, 14.0]))
    return ClientScript(
        tuple(draw(st.lists(REQUESTS, min_size=1, max_size=3))),
        draw(st.sampled_from([0.0, 0.0, 0.5, 3.0])),
        draw(st.sampled_from([False, False, True])),
        *sending,
        *reading,
        leaves,
        draw(st.sampled_from(Leaving)),
    )


@given(engines(), st.lists(clients(), min_size=1, max_size=3), st.booleans())
def test_no_script_of_engines_and_clients_leaves_a_trace(
    engine: EngineScript, scripts: list[ClientScript], has_second: bool
) -> None:
    assert run_scene(engine, scripts, has_second=has_second) == []


@pytest.mark.parametrize("answer_bytes", range(60_000, 120_000, 3_000))
def test_connection_to_an_engine_is_not_paused_when_it_is_used_again(answer_bytes: int) -> None:
    silent = EngineScript((Answer(()),))
    request = ClientRequest("fine", answer_bytes=answer_bytes)
    slow = ClientScript((request,), read_bytes=8_000, read_seconds=0.2)
    assert run_scene(silent, [slow]) == []


def test_response_that_breaks_off_is_reset_so_that_it_does_not_look_whole() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n{%b\r\n" % (b" " * 65_535)
    breaks_off = EngineScript((Answer((Step(head + chunk, 1.0),), leaving=Leaving.CLOSE),))
    client = ClientScript((ClientRequest(is_http10=True),))
    received: list[ReceivedResponse] = []
    assert run_scene(breaks_off, [client], received=received) == []
    assert [(response.status, response.is_cut) for response in received] == [(200, True)]
