"""A fuzz target: the bytes of an engine's connection.

Whatever they are, the request ends exactly once, with a response or an error. The same bytes, cut
differently, give the same response if both give one.
"""

import asyncio
import atexit
import re
from collections.abc import Hashable

from fuzzing.target import Target, cuttings

from fairlead.engines.credentials import EngineCredentials
from fairlead.limits import Limits
from fairlead.runtime.clock import ManualClock
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.connection import EngineConnection, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.response import EngineResponse

_LIMITS = Limits(response_head_bytes=2_000)
_ADDRESS = "http://127.0.0.1:1"
_RENEWED = 20_000  # inputs for one loop, which keeps cancelled timers


class _Line(asyncio.Transport):
    """A transport without a peer."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def write(self, data: object) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0


class _RecordedResponse:
    """The response to a request, and each of its ends.

    Why the gateway's own sink: where the gateway is compiled, no interpreted class can be one.
    """

    def __init__(self, runtime: WorkerRuntime) -> None:
        self.ends: list[str] = []
        self.sink = EngineResponse(
            runtime,
            stream_requested=False,
            strip_usage=False,
            is_passthrough=False,
            on_silence=lambda: 0.0,
            on_verdict=self._on_verdict,
        )

    def _on_verdict(self, error: UpstreamError | None) -> None:
        assert not self.ends, "ended twice"
        assert self.sink.is_complete == (error is None)
        assert error is not None or 200 <= self.sink.status <= 999, self.sink.status
        self.ends.append("complete" if error is None else error.cause)

    def result(self) -> tuple[object, ...]:
        """Returns all that was recorded."""
        return self.sink.status, tuple(sorted(self.sink.headers.items())), self.sink.buffered_body, self.ends


class _Place:
    """A connection pool and its runtime, on a loop that is replaced now and then."""

    def __init__(self) -> None:
        self._left = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def current(self) -> tuple[ConnectionPool, WorkerRuntime]:
        """Returns the current pool and runtime."""
        self._left -= 1
        if self._left < 0:
            self.close()
            self._left, self._loop = _RENEWED, asyncio.new_event_loop()
            self._pool = ConnectionPool(_LIMITS, self._loop, EngineCredentials({}, self._loop.time))
            self._runtime = WorkerRuntime(ManualClock(), _LIMITS, self._loop)
        return self._pool, self._runtime

    def close(self) -> None:
        """Closes the loop."""
        if self._loop is not None:
            self._loop.close()


_place = _Place()
atexit.register(_place.close)


def answered(pieces: list[bytes]) -> _RecordedResponse:
    """Returns the result of these bytes, after which the engine closes."""
    pool, runtime = _place.current()
    connection, line, response = EngineConnection(pool, _ADDRESS), _Line(), _RecordedResponse(runtime)
    connection.connection_made(line)
    connection.send_request([b"GET / HTTP/1.1\r\n\r\n"], response.sink, 5.0)
    for piece in pieces:
        if line.closed:
            break
        connection.data_received(piece)
    connection.connection_lost(None)
    assert len(response.ends) == 1, "a request that never ends"
    return response


def check(data: bytes) -> Hashable:
    """Checks that a request ended once, in one way."""
    whole = answered([data] if data else [])
    for pieces in cuttings(data):
        again = answered(pieces)
        if whole.ends == again.ends == ["complete"]:
            assert again.result() == whole.result(), "cut otherwise, another answer"
        else:
            first, second = whole.sink.status, again.sink.status
            assert second in (0, first) or not first, "cut otherwise, another head"
    return whole.sink.status, whole.ends[0], bool(whole.sink.buffered_body), tuple(sorted(whole.sink.headers))[:4]


WORDS = [
    *(
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 500 X\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 099 X\r\n",
    ),
    *(
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
    ),
    *(
        b"content-length: 5\r\n",
        b"content-length: 0\r\n",
        b"transfer-encoding: chunked\r\n",
        b"connection: close\r\n",
        b"\r\n",
        b"\n",
        b"\r",
    ),
    *(
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"hello",
        b": ",
        b"\0",
        b"\xff",
        b"x" * 300,
        b"content-type: text/event-stream\r\n",
    ),
    *(
        b"connection: upgrade\r\n",
        b"trailer: x\r\n",
        b"content-length: 99999999999999999999\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
    ),
]
PIECES = re.compile(rb"[^\r\n]*\r\n|[^\r\n]+|[\r\n]")
_PLAIN = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5\r\n\r\nhello"
_CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n"
_CLOSED = b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}\n\n"
_INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + _PLAIN
SEEDS = [_PLAIN, _CHUNKED, _CLOSED, _INTERIM, _PLAIN + _CHUNKED, b"HTTP/1.1 204 No Content\r\n\r\n"]
UPSTREAM = Target("upstream", "the bytes of an engine's connection", check, SEEDS, WORDS, PIECES, 0.05)
