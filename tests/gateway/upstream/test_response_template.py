"""Responses that are recognized by an earlier head: they end as if llhttp had parsed them."""

import asyncio
from collections.abc import Coroutine
from typing import cast

import pytest

from fairlead.limits import Limits
from fairlead_gateway.http.timers import TimerQueue
from fairlead_gateway.upstream.connection import (
    ConnectionOwner,
    EndpointActivity,
    EngineConnection,
    ResponseSink,
    UpstreamError,
    create_template,
)

HEAD = b"HTTP/1.1 200 OK\r\nserver: one\r\nContent-Length: %d\r\ncontent-type: application/json\r\n\r\n"
FIRST = HEAD % 11 + b'{"a":"bcde"}'[:11]


def response(length: int, head: bytes = HEAD) -> bytes:
    return head % length + b"x" * length


DATED = HEAD.replace(b"server: one", b"date: now")
ODD = [
    response(99),
    response(7),
    response(100),  # a digit more than the first
    response(0),
    response(99, DATED),
    response(99, HEAD.replace(b"server: one", b"connection: close")),
    response(99, HEAD.replace(b"200 OK", b"404 Not Found")),
    response(99, HEAD.replace(b"200 OK", b"503 Full")),
    response(99, HEAD.replace(b"HTTP/1.1", b"HTTP/1.0")),
    response(99, HEAD.replace(b"%d", b"%d0")),  # longer than what comes
    response(99, HEAD.replace(b"%d", b"+%d")),
    response(99, HEAD.replace(b"%d", b"%d\r\ncontent-length: 98")),
    HEAD.replace(b"%d", b"") + b"x" * 9,
    HEAD.replace(b"%d", b"09") + b"x" * 9,
    response(99) + b"more than it said",
    response(99) + response(98),
    b"HTTP/1.1 100 Continue\r\n\r\n" + response(99),
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"no response at all",
    response(20_000),
]


class _Transport:
    """A transport that notes what becomes of it."""

    def __init__(self, events: list[object]) -> None:
        self.events = events
        self.closing = False

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return self.closing

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.closing = True
        self.events.append("abort")

    def close(self) -> None:
        self.closing = True
        self.events.append("close")

    def pause_reading(self) -> None:
        self.events.append("pause")

    def resume_reading(self) -> None:
        self.events.append("resume")


class _Owner(ConnectionOwner):
    def __init__(self, events: list[object]) -> None:
        self.loop = asyncio.get_running_loop()
        self.limits = Limits()
        self.timers = TimerQueue(self.loop)
        self.events = events
        self.counted = EndpointActivity()

    def activity(self, address: str) -> EndpointActivity:
        return self.counted

    def authorization_for(self, address: str) -> bytes:
        return b""

    def release(self, connection: EngineConnection) -> None:
        self.events.append("released")

    def discard(self, connection: EngineConnection) -> None: ...

    def resume_in_turn(self, connection: EngineConnection) -> None: ...

    def probe_listening(self, connection: EngineConnection) -> None: ...


class _Sink(ResponseSink):
    def __init__(self, events: list[object]) -> None:
        self.events = events

    def on_head(self, status: int, fields: dict[bytes, bytes]) -> None:
        self.events.append((status, dict(fields)))

    def on_body(self, chunks: list[bytes], complete: bool) -> None:
        self.events.append((b"".join(chunks), complete))

    def on_error(self, error: UpstreamError) -> None:
        self.events.append(error.cause)

    def on_silence(self) -> float:
        return 0.0


class _Engine:
    """One connection whose bytes the test brings."""

    def __init__(self) -> None:
        self.events: list[object] = []
        self.owner = _Owner(self.events)
        self.connection = EngineConnection(self.owner, "http://engine")
        self.connection.connection_made(cast(asyncio.Transport, _Transport(self.events)))

    def exchange(self, *parts: bytes) -> list[object]:
        """Returns what one request sees of the bytes."""
        self.events.clear()
        before = self.owner.counted.receive_count
        self.connection.send_request([b"request"], _Sink(self.events), 60.0)
        for part in parts:
            if self.connection._sink is not None:
                self.connection.data_received(part)
        self.events.append(self.owner.counted.receive_count - before)
        return list(self.events)


def run(check: Coroutine[None, None, None]) -> None:
    asyncio.run(check)


@pytest.mark.parametrize("number", range(len(ODD)))
def test_response_behind_a_known_head_ends_as_on_a_new_connection(number: int) -> None:
    async def check() -> None:
        odd = ODD[number]
        for cut in [len(odd), *range(1, min(len(odd), 150), 7)]:
            fresh, warm = _Engine(), _Engine()
            assert warm.exchange(FIRST)[-2] == (FIRST[-11:], True)
            assert warm.exchange(odd[:cut], odd[cut:]) == fresh.exchange(odd[:cut], odd[cut:]), cut

    run(check())


def test_only_a_head_that_differs_goes_to_the_parser() -> None:
    async def check() -> None:
        engine = _Engine()
        engine.exchange(FIRST)
        fed: list[bytes] = []
        parser = engine.connection._parser

        class Counting:
            def feed_data(self, data: bytes) -> None:
                fed.append(data)
                parser.feed_data(data)

            def __getattr__(self, name: str) -> object:
                return getattr(parser, name)

        engine.connection._parser = Counting()
        same, dated = response(55), response(44, DATED)
        assert engine.exchange(same)[0] == (
            200,
            {b"server": b"one", b"content-length": b"55", b"content-type": b"application/json"},
        )
        assert fed == []
        engine.exchange(dated)
        assert fed == [dated]
        engine.exchange(response(43, DATED))
        assert fed == [dated], "the newest head is the template"

    run(check())


def test_heads_that_all_differ_are_no_longer_compared() -> None:
    async def check() -> None:
        engine = _Engine()
        for number in range(20):
            engine.exchange(response(44, DATED.replace(b"now", b"%02d" % number)))
        template = engine.connection._template
        engine.exchange(response(44, DATED))
        assert engine.connection._template is template

    run(check())


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n\r\n", response(0), response(9)[:-1], response(9) + b"x"])
def test_part_of_a_response_makes_no_template(data: bytes) -> None:
    assert create_template(data, {b"content-length": b"9"}) is None
