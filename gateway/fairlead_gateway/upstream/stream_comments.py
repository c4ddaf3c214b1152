"""The head and the comments of streams while nothing comes from their engines.

A streamed request that waits gets its head after a while, then comments: load balancers close a
connection without bytes, mostly after 60 s. Until then the status of a refusal is that of the
response. After it, a refusal is an event.
"""

from collections.abc import Callable
from typing import Final

from fairlead_gateway.http.listener import ResponseWriter
from fairlead_gateway.http.timers import TimeoutEntry, TimeoutQueue
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.upstream.response import EngineResponse

COMMENT: Final = b": keep-alive\n\n"


class StreamTimes:
    """The times after which silent streams of a worker get a head, and comments."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        loop, limits, now = runtime.loop, runtime.limits, runtime.now
        self.heads = TimeoutQueue(loop, limits.stream_head_seconds, now)
        self.comments = TimeoutQueue(loop, limits.keep_alive_seconds, now)


class SseKeepAlive(TimeoutEntry):
    """The sender of the head and of comments into one silent stream.

    Then no proxy or client in between closes the stream. A comment goes out only after the head and
    between two whole events. A client that does not read gets none.

    send_head: sends the head of a stream whose answer has not begun; None once it has ended.
    """

    __slots__ = ("_added_at", "_engine_response", "_queue", "_response", "_times", "send_head")

    def __init__(self, response: ResponseWriter, times: StreamTimes, send_head: Callable[[], None]) -> None:
        super().__init__()
        self._response = response
        self._times = times
        self.send_head: Callable[[], None] | None = send_head
        self._engine_response: EngineResponse | None = None
        self._added_at: float | None = None
        self._queue: TimeoutQueue | None = None
        self._enter(times.heads)

    def start(self, engine_response: EngineResponse) -> None:
        """Starts the comments between events, or continues them with another engine's response."""
        self._engine_response = engine_response
        self._added_at = engine_response.last_at
        if self._queue is not self._times.comments:
            self._leave()
            self._enter(self._times.comments)

    def stop(self) -> None:
        self._leave()
        self._engine_response = self.send_head = None

    def on_timeout(self) -> None:
        """Sends what is due if the stream was silent, and waits again."""
        self._queue = None
        response, engine_response = self._response, self._engine_response
        if self.send_head is None or response.finished:
            return
        if not response.started:
            self.send_head()
        if engine_response is None:
            response.write_chunks([COMMENT])
        else:
            if engine_response.last_at == self._added_at and not engine_response.is_paused:
                response.write_chunks([COMMENT])
            self._added_at = engine_response.last_at
        self._enter(self._times.comments)

    def _enter(self, queue: TimeoutQueue) -> None:
        self._queue = queue
        queue.add(self, queue.now())

    def _leave(self) -> None:
        if self._queue is not None:
            self._queue.remove(self)
            self._queue = None
