"""Hostile bytes: clients must not split requests, hide one in another, stall, crash or echo."""

import asyncio
import time

import pytest

from fairlead.limits import Limits
from fairlead_testing.engines.scripted import ScriptedEngine, scripted_engine
from fairlead_testing.gateway.running_gateway import fleet_of, running_gateway
from fairlead_testing.http.raw_client import RawConnection, RawResponse, get_request, post_request, send
from fairlead_testing.pytest_hooks.coroutine_tests import run_async

pytestmark = pytest.mark.sockets

BODY = b'{"model":"tiny","messages":[{"role":"user","content":"hi"}]}'
SMALL = Limits(header_timeout_seconds=0.2, body_idle_seconds=0.2, keepalive_idle_seconds=0.2)
CANARY = b"canary-in-the-coal-mine"


def through(data: bytes, limits: Limits | None = None) -> tuple[list[RawResponse], ScriptedEngine]:
    """Sends bytes to a gateway with an honest engine; the next client must get a response."""

    async def main() -> tuple[list[RawResponse], ScriptedEngine]:
        async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
            answers = await asyncio.wait_for(send(running.url, data), 30)
            after = await send(running.url, get_request("/v1/models"))
            assert [reply.status for reply in after] == [200]
            return answers, engine

    return run_async(main())


def request(head: bytes, body: bytes = BODY) -> bytes:
    return b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\n" + head + b"\r\n" + body


def sized(more: bytes = b"", host: bytes = b"Host: x\r\n") -> bytes:
    return host + b"Content-Length: %d\r\n" % len(BODY) + more


CHUNKED = b"Host: x\r\nTransfer-Encoding: chunked\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"

MALFORMED = {
    "content-length and chunked": request(sized(b"Transfer-Encoding: chunked\r\n"), b"0\r\n\r\n" + SMUGGLED),
    "chunked and content-length": request(CHUNKED + b"Content-Length: 4\r\n", b"0\r\n\r\n" + SMUGGLED),
    "transfer-encoding twice": request(CHUNKED + b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n" + SMUGGLED),
    "transfer-encoding twice, identity": request(CHUNKED + b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    "content-length twice, same": request(sized(sized(host=b""))),
    "content-length twice, different": request(sized(b"Content-Length: 3\r\n")),
    "content-length list": request(b"Host: x\r\nContent-Length: 5, 5\r\n"),
    "content-length signed": request(b"Host: x\r\nContent-Length: +%d\r\n" % len(BODY)),
    "content-length negative": request(b"Host: x\r\nContent-Length: -1\r\n"),
    "content-length with underscore": request(b"Host: x\r\nContent-Length: 1_0\r\n"),
    "content-length in hexadecimal": request(b"Host: x\r\nContent-Length: 0x3c\r\n"),
    "content-length empty": request(b"Host: x\r\nContent-Length:\r\n"),
    "content-length in other digits": request("Host: x\r\nContent-Length: ٤\r\n".encode()),
    "content-length huge": request(b"Host: x\r\nContent-Length: " + b"9" * 40 + b"\r\n"),
    "unknown transfer-encoding": request(b"Host: x\r\nTransfer-Encoding: gzip\r\n"),
    "trailing transfer-encoding": request(b"Host: x\r\nTransfer-Encoding: chunked, gzip\r\n"),
    "transfer-encoding xchunked": request(b"Host: x\r\nTransfer-Encoding: xchunked\r\n"),
    "transfer-encoding with a tab inside": request(b"Host: x\r\nTransfer-Encoding: chun\tked\r\n"),
    "chunked on HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
    "chunk size not hexadecimal": request(CHUNKED, b"zz\r\nab\r\n0\r\n\r\n"),
    "chunk size signed": request(CHUNKED, b"+5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with 0x": request(CHUNKED, b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk size with underscore": request(CHUNKED, b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    "chunk size with space": request(CHUNKED, b"5 \r\nhello\r\n0\r\n\r\n"),
    "chunk size overflowing": request(CHUNKED, b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "chunk size missing": request(CHUNKED, b"\r\nhello\r\n0\r\n\r\n"),
    "chunk end missing": request(CHUNKED, b"5\r\nhelloXX0\r\n\r\n"),
    "chunk end a bare LF": request(CHUNKED, b"5\r\nhello\n0\r\n\r\n"),
    "chunk lines with bare LF": request(CHUNKED, b"5\nhello\n0\n\n"),
    "chunk extension with a bare LF": request(CHUNKED, b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with a NUL": request(CHUNKED, b"5;\x00\r\nhello\r\n0\r\n\r\n"),
    "trailer with a space before the colon": request(CHUNKED, b"0\r\nX : y\r\n\r\n"),
    "trailer content-length": request(CHUNKED, b"0\r\nContent-Length: 5\r\n\r\n"),
    "bare LF lines": b"GET /v1/models HTTP/1.1\nHost: x\n\n",
    "one bare LF": b"GET /v1/models HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
    "bare CR in a value": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\rb\r\n\r\n",
    "bare CR in the request line": b"GET /v1/models\r HTTP/1.1\r\nHost: x\r\n\r\n",
    "folded header": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
    "folded by a tab": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\r\n\tb\r\n\r\n",
    "first header folded": b"GET /v1/models HTTP/1.1\r\n Host: x\r\n\r\n",
    "space before the colon": request(b"Host: x\r\nContent-Length : 4\r\n"),
    "tab before the colon": request(b"Host: x\r\nContent-Length\t: 4\r\n"),
    "no colon": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nnonsense\r\n\r\n",
    "empty header name": b"GET /v1/models HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n",
    "NUL in a value": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
    "NUL in a name": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX\x00: b\r\n\r\n",
    "control character in a value": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: a\x01b\r\n\r\n",
    "other letters in a name": "GET /v1/models HTTP/1.1\r\nHost: x\r\nÄ: b\r\n\r\n".encode(),
    "no Host": b"GET /v1/models HTTP/1.1\r\nX: y\r\n\r\n",
    "two Hosts": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two equal Hosts": b"GET /v1/models HTTP/1.1\r\nHost: x\r\nhost: x\r\n\r\n",
    "Host with a space": b"GET /v1/models HTTP/1.1\r\nHost: x y\r\n\r\n",
    "Host with a slash": b"GET /v1/models HTTP/1.1\r\nHost: x/y\r\n\r\n",
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/2.0": b"GET /v1/models HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/1.2": b"GET /v1/models HTTP/1.2\r\nHost: x\r\n\r\n",
    "http/1.1": b"GET /v1/models http/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.10": b"GET /v1/models HTTP/1.10\r\nHost: x\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two spaces in the request line": b"GET  /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "space at the end of the request line": b"GET /v1/models HTTP/1.1 \r\nHost: x\r\n\r\n",
    "space in the target": b"GET /v1/mo dels HTTP/1.1\r\nHost: x\r\n\r\n",
    "other letters in the target": "GET /v1/modelß HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "target without a slash": b"GET v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "target of another scheme": b"GET ftp://x/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "target whose path is a query": b"GET http://x?/v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "target with user information": b"GET http://a@x/v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x07" * 64,
    "binary noise": bytes(range(128, 256)),
    "a gzip body": request(sized(b"Content-Encoding: gzip\r\n")),
    "an expectation of something else": request(sized(b"Expect: a-miracle\r\n")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_gets_one_4xx_and_the_connection_ends(name: str) -> None:
    answers, engine = through(MALFORMED[name])
    assert [400 <= answer.status < 500 for answer in answers] == [True], answers
    assert answers[0].fields["connection"] == "close"
    assert answers[0].error["type"] == "invalid_request_error"
    assert engine.calls == []


@pytest.mark.parametrize(
    ("name", "data", "status"),
    [
        ("a header of 64 KiB", get_request("/v1/models", more="X: " + "a" * 65_536 + "\r\n"), 431),
        ("a header of 1 MiB", get_request("/v1/models", more="X: " + "a" * 1_048_576 + "\r\n"), 431),
        ("a header of 1 MiB without an end", b"GET / HTTP/1.1\r\nX: " + b"a" * 1_048_576, 431),
        ("1,000 headers", get_request("/v1/models", more="".join(f"X-{n}: y\r\n" for n in range(1_000))), 431),
        ("20,000 headers", get_request("/v1/models", more="".join(f"X-{n}: y\r\n" for n in range(20_000))), 431),
        ("a URL of 64 KiB", get_request("/" + "a" * 65_536), 414),
        ("a URL of 1 MiB without an end", b"GET /" + b"a" * 1_048_576, 414),
        ("a body over the limit", post_request(b" " * (33 * 1024 * 1024)), 413),
        ("a body over the limit, announced", request(b"Host: x\r\nContent-Length: 40000000\r\n", b"{"), 413),
        ("a chunk of more than the limit, announced", request(CHUNKED, b"7fffffffffffffff\r\n" + b"x" * 100_000), 413),
        ("empty lines without an end", b"\r\n" * 1_000_000, 400),
        ("a chunk extension of 1 MiB", request(CHUNKED, b"5;" + b"a" * 1_048_576 + b"\r\nhello\r\n0\r\n\r\n"), 413),
        ("many chunk extensions", request(CHUNKED, b"1;aaaaaaaaaaaaaaaaaaaa\r\nx\r\n" * 50_000 + b"0\r\n\r\n"), 413),
        ("a trailer of 1 MiB", request(CHUNKED, b"2\r\n{}\r\n0\r\nX: " + b"a" * 1_048_576 + b"\r\n\r\n"), None),
        ("trailers of 1 MiB", request(CHUNKED, b"2\r\n{}\r\n0\r\n" + b"X-Y: aaaaaaa\r\n" * 75_000 + b"\r\n"), None),
    ],
)  # fmt: skip
def test_too_much_of_anything_is_refused(name: str, data: bytes, status: int | None) -> None:
    answers, engine = through(data)
    assert len(answers) == 1, name
    assert answers[0].status == status if status else answers[0].status in (413, 431)
    assert answers[0].error["message"]
    assert engine.calls == []


LEGAL = {
    "plain": post_request(BODY),
    "chunked": request(CHUNKED, b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"),
    "chunked with extensions and trailers": request(
        CHUNKED, b"%X;a=b;c=\"d\"\r\n" % len(BODY) + BODY + b"\r\n000\r\nDigest: x\r\n\r\n"
    ),
    "Chunked in capitals": request(
        b"Host: x\r\ntransfer-ENCODING:   CHUNKED \t\r\n",
        b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"),
    "absolute-form URI": b"POST http://x:1/v1/chat/completions?a=b HTTP/1.1\r\nConnection: close\r\n" + sized() + b"\r\n" + BODY,
    "an h2c upgrade, ignored": request(
        sized(b"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n")
    ),
    "a websocket upgrade, ignored": request(sized(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")),
    "HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\n" + sized(host=b"") + b"\r\n" + BODY,
    "Host on HTTP/1.0": b"POST /v1/chat/completions HTTP/1.0\r\n" + sized() + b"\r\n" + BODY,
    "an empty line before": b"\r\n" + post_request(BODY),
    "a header of 30 KiB": request(sized(b"X: " + b"a" * 30_000 + b"\r\n")),
    "98 headers": request(sized(b"".join(b"X-%d: y\r\n" % n for n in range(97)))),
    "old letters in a value": request(sized("X: grüße\r\n".encode("latin-1"))),
    "an empty value": request(sized(b"X:\r\n")),
    "spaces around the JSON": post_request(b" \r\n\t" + BODY + b"\n"),
    "an underscored content-length beside": request(sized(b"Content_Length: 3\r\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", LEGAL)
def test_a_legal_request_gets_exactly_one_answer(name: str) -> None:
    answers, engine = through(LEGAL[name])
    assert [answer.status for answer in answers] == [200], answers
    assert len(engine.calls) == 1
    assert engine.calls[0].json["model"] == "tiny"


async def test_pipelined_requests_are_answered_in_order_one_by_one() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        parts = [post_request(BODY, more=f"x-request-id: p-{n}\r\n", close=n == 39) for n in range(40)]
        answers = await send(running.url, b"".join(parts))
        assert [answer.fields["x-request-id"] for answer in answers] == [f"p-{n}" for n in range(40)]
        assert {answer.status for answer in answers} == {200}
        decisions = [answer.fields["x-fairlead-decision"] for answer in answers]
        assert [call.header("x-request-id") for call in engine.calls] == decisions


def test_thousands_of_pipelined_requests_are_all_answered() -> None:
    answers, _ = through(get_request("/v1/models", close=False) * 5_000 + get_request("/v1/models"))
    assert len(answers) == 5_001
    assert {answer.status for answer in answers} == {200}


def test_a_malformed_request_behind_a_good_one_does_not_spoil_the_first_answer() -> None:
    answers, engine = through(post_request(BODY, close=False) + b"GET / HTTP/1.1\nHost: x\n\n")
    assert [answer.status for answer in answers] == [200, 400]
    assert len(engine.calls) == 1


@pytest.mark.parametrize(
    "chunks",
    [
        b"-1\r\nx\r\n0\r\n\r\n", b"+1\r\nx\r\n0\r\n\r\n", b"0x1\r\nx\r\n0\r\n\r\n", b"1_0\r\nx", b" 1\r\nx\r\n0\r\n\r\n",
        b"1 \r\nx\r\n0\r\n\r\n", b"g\r\nx", b"\r\nx", b"1\nx\n0\n\n", b"1\r\rx", b"1\r\nxy\r\n0\r\n\r\n", b"1\r\nx\n0\r\n\r\n",
        b"1\r\nx\r\r\n0\r\n\r\n", b"2\r\nx\r\n0\r\n\r\n", b"1;a\0b\r\nx\r\n0\r\n\r\n", b"1;a\nb\r\nx\r\n0\r\n\r\n",
        b"00000000000000001\r\nx",
        b"0\r\nA\r\n\r\n", b"0\r\nA : b\r\n\r\n", b"0\r\n: b\r\n\r\n", b"0\r\nA: b\nC: d\r\n\r\n", b"0\r\n A: b\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n", b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)  # fmt: skip
def test_chunks_are_read_strictly(chunks: bytes) -> None:
    answers, engine = through(request(CHUNKED, chunks) + get_request("/v1/models"))
    assert [answer.status for answer in answers] == [400], answers
    assert engine.calls == []


async def test_one_byte_chunks_are_legal_and_do_not_hold_up_others() -> None:
    text = b'{"model":"tiny","messages":[{"role":"user","content":"' + b"x" * 1_048_576 + b'"}]}'
    data = request(CHUNKED, b"".join(b"1\r\n%c\r\n" % byte for byte in text) + b"0\r\n\r\n")
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        running.gateway.loop_lag.start()
        other = await RawConnection.connect(running.url)
        slow = asyncio.create_task(send(running.url, data))
        answered = 0
        while not slow.done():
            await other.send(get_request("/readyz", close=False))
            assert (await other.read_response()).status == 200
            answered += 1
        await other.close()
        running.gateway.loop_lag.stop()
        assert [answer.status for answer in await slow] == [200]
        assert engine.calls[0].body == text
        assert answered > 5


async def test_requests_cut_anywhere_are_put_together_again() -> None:
    whole = (
        post_request(BODY, more="expect: 100-continue\r\n", close=False) + LEGAL["chunked with extensions and trailers"]
    )
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for size in (1, 2, 3, 7, 64):
            connection = await RawConnection.connect(running.url)
            for start in range(0, len(whole), size):
                await connection.send(whole[start : start + size])
                await asyncio.sleep(0)
            statuses = [answer.status for answer in await connection.read_all_responses()]
            assert [status for status in statuses if status != 100] == [200, 200]
            await connection.close()
        assert len(engine.calls) == 10


@pytest.mark.parametrize(
    ("name", "start", "word"),
    [
        ("head", b"GET /v1/models HTTP/1.1\r\nHost: x\r\n", "head"),
        ("first byte", b"G", "head"),
        ("body", request(sized(), b"{"), "body"),
        ("chunked body", request(CHUNKED, b"5\r\nhe"), "body"),
    ],
)
def test_a_request_that_stalls_is_cut_at_its_deadline(name: str, start: bytes, word: str) -> None:
    answers, engine = through(start, SMALL)
    assert [answer.status for answer in answers] == [408], name
    assert word in answers[0].error["message"]
    assert engine.calls == []


async def test_dripping_a_head_byte_by_byte_does_not_move_its_deadline() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), SMALL) as running:
        connection = await RawConnection.connect(running.url)
        reading = asyncio.create_task(connection.read_all_responses())
        await connection.send(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX: ")
        while not reading.done():
            await connection.send(b"a")
            await asyncio.sleep(0.01)
        assert [answer.status for answer in await reading] == [408]
        await connection.close()


async def test_dripping_a_body_ends_at_the_deadline_of_the_whole_body() -> None:
    limits = Limits(body_seconds=0.3)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        connection = await RawConnection.connect(running.url)
        reading = asyncio.create_task(connection.read_all_responses())
        await connection.send(request(b"Host: x\r\nContent-Length: 100000\r\n", b"{"))
        while not reading.done():
            await connection.send(b" ")
            await asyncio.sleep(0.01)
        assert [answer.status for answer in await reading] == [408]
        await connection.close()


def test_an_idle_connection_is_closed_without_a_word() -> None:
    answers, _ = through(b"", SMALL)
    assert answers == []
    answers, _ = through(get_request("/v1/models", close=False), SMALL)
    assert [answer.status for answer in answers] == [200]


async def test_the_expectation_of_100_continue_is_met_once() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(request(sized(b"Expect: 100-continue\r\n"), b""))
        assert (await connection.read_response()).status == 100
        await connection.send(BODY)
        assert [answer.status for answer in await connection.read_all_responses()] == [200]
        await connection.close()
        assert len(engine.calls) == 1
        assert engine.calls[0].header("expect") is None


def test_a_body_that_will_not_be_taken_gets_no_100_continue() -> None:
    answers, _ = through(request(b"Host: x\r\nContent-Length: 99999999\r\nExpect: 100-continue\r\n", b""))
    assert [answer.status for answer in answers] == [413]


async def test_a_half_closed_client_gets_its_answer() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for body in (BODY, BODY[:-1] + b',"stream":true}'):
            connection = await RawConnection.connect(running.url)
            await connection.send(post_request(body, close=False))
            connection.writer.write_eof()
            answers = await connection.read_all_responses()
            assert [answer.status for answer in answers] == [200]
            assert answers[0].complete
            await connection.close()
        assert len(engine.calls) == 2


async def test_an_incomplete_request_gets_an_error() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        for part in (b"GET /v1/mod", request(sized(), BODY[:10]), request(CHUNKED, b"5\r\nhel")):
            connection = await RawConnection.connect(running.url)
            await connection.send(part)
            connection.writer.write_eof()
            assert [answer.status for answer in await connection.read_all_responses()] == [400]
            await connection.close()
        assert engine.calls == []


async def test_methods_are_answered_as_http_says() -> None:
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url])) as running:
        connection = await RawConnection.connect(running.url)
        await connection.send(get_request("/v1/models", method="HEAD", close=False))
        head = await connection.read_response(head_only=True)
        assert head.status == 200
        assert int(head.fields["content-length"]) > 0
        await connection.send(get_request("/v1/models", method="OPTIONS", close=False))
        assert (await connection.read_response()).fields["allow"] == "GET, HEAD, OPTIONS"
        await connection.send(get_request("*", method="OPTIONS", close=False))
        assert "POST" in (await connection.read_response()).fields["allow"]
        await connection.send(get_request("/v1/chat/completions", method="GET", close=False))
        refused = await connection.read_response()
        assert (refused.status, refused.fields["allow"]) == (405, "POST, OPTIONS")
        assert refused.error["code"] == "method_not_allowed"
        await connection.send(get_request("/v1/models", method="FROBNICATE"))
        assert (await connection.read_response()).status == 405
        await connection.close()
        assert engine.calls == []


def test_no_answer_repeats_bytes_of_a_request(caplog: pytest.LogCaptureFixture) -> None:
    hostile = (
        b"GET /" + CANARY + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + CANARY + b"/\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + CANARY + b"\r\n\r\n",
        CANARY + b" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        post_request(CANARY),
        post_request({"model": CANARY.decode(), "messages": [{"role": "user", "content": "x"}]}),
        post_request({"model": "tiny", "messages": CANARY.decode()}),
        post_request({"model": "tiny", "messages": [{"role": CANARY.decode(), "content": {CANARY.decode(): 1}}]}),
        post_request({"model": "tiny", "messages": [], CANARY.decode(): CANARY.decode()}),
    )
    for data in hostile:
        answers, _ = through(data)
        assert [400 <= answer.status < 500 for answer in answers] == [True]
        assert CANARY not in answers[0].body
        assert CANARY.decode() not in str(answers[0].fields)
    assert CANARY.decode() not in caplog.text


async def test_every_malformed_input_is_answered_at_once() -> None:
    """Runs them at the same time: the deadlines are a minute and more."""
    limits = Limits(header_timeout_seconds=600.0, body_idle_seconds=600.0, body_seconds=600.0)
    async with scripted_engine() as engine, running_gateway(fleet_of([engine.url]), limits) as running:
        started = time.monotonic()
        replies = await asyncio.gather(*[send(running.url, data) for data in MALFORMED.values()])
        assert [len(answers) for answers in replies] == [1] * len(MALFORMED)
        assert time.monotonic() - started < 60
