"""Records the answer to a request with an idempotency key, and sends it to each of its clients.

The request is served with a `RecordedResponse` in place of a connection. Each client has a
`ClientReader`, which sends the answer from its beginning, as fast as that client reads.
"""

from collections.abc import Callable
from typing import Final

from fairlead_gateway.http.listener import HttpRequest, ResponseTransport, ResponseWriter
from fairlead_gateway.idempotency.answer_table import AnswerHead, AnswerReader, AnswerTable, KeyedAnswer

REPLAYED: Final = "idempotent-replayed: true\r\n"
"""The header of an answer that was not computed for this request, as Stripe names it."""
_SLICE_BYTES: Final = 65_536
_MAX_UNREAD_BYTES: Final = 262_144
"""Limit: bytes that the slowest client of an answer that is not kept may lag behind its engine."""


class RecordedResponse(ResponseWriter):
    """The response of a request that runs for all clients with its key.

    on_end: called once when it ends.
    """

    __slots__ = ("_answer", "_has_failed", "_is_engine_paused", "_now", "_on_end", "_table")

    def __init__(
        self,
        table: AnswerTable,
        answer: KeyedAnswer,
        http_request: HttpRequest,
        transport: ResponseTransport,
        now: Callable[[], float],
        on_end: Callable[[KeyedAnswer], None],
    ) -> None:
        super().__init__(transport, http_request.head, http_request.id)
        self._table = table
        self._answer = answer
        self._now = now
        self._on_end = on_end
        self._has_failed = self._is_engine_paused = False

    def send(self, status: int, header_text: str, body: bytes, *, content_type: str = "application/json") -> None:
        """Records a complete response; does nothing after a start."""
        if self.finished or self.started:
            return
        self.started = True
        self._answer.head = AnswerHead(
            status, header_text, self.request_id, content_type=content_type, length=len(body)
        )
        self._table.add(self._answer, [body])
        self._end()

    def start_stream(self, status: int, header_text: str, *, length: int | None = None) -> None:
        """Records the head of an event stream, or of a long response of `length` bytes."""
        if self.finished or self.started:
            return
        self.started = True
        self.accepts_comments = length is None
        self._answer.head = AnswerHead(status, header_text, self.request_id, length=length)

    def write_chunks(self, chunks: list[bytes], *, final: bool = False) -> None:
        """Records chunks, and passes them on to the clients."""
        if self.finished:
            return
        answer = self._answer
        if answer.head is not None:  # known now: it is set right after the start
            answer.head.is_event_stream = self.accepts_comments
        if final and self.last_comment is not None:
            chunks = [self.last_comment(), *chunks]
        self._table.add(answer, [chunk for chunk in chunks if chunk])
        if final:
            self._end()
        else:
            answer.notify()
            self.adjust_speed()

    def end_with_error(self, event: bytes) -> None:
        self._has_failed = True
        super().end_with_error(event)

    def abort(self) -> None:
        """Cuts the answer off: each client sees that it is incomplete."""
        if not self.finished:
            self._answer.is_cut = True
            self._end()

    def on_connection_lost(self) -> None:
        """Cancels the request, which no client waits for any more."""
        if not self.finished:
            self._answer.is_cut = True
            self._table.end(self._answer, self._now())
            self._transport.on_request_released()
            super().on_connection_lost()

    def adjust_speed(self) -> None:
        """Pauses the engine while a client of an answer that is not kept reads too slowly."""
        answer = self._answer
        unread = sum([len(chunk) for chunk in answer.chunks]) if answer.lost else 0
        is_paused = unread > _MAX_UNREAD_BYTES
        if is_paused != self._is_engine_paused and self.on_backpressure is not None:
            self._is_engine_paused = is_paused
            self.on_backpressure(is_paused)

    def _end(self) -> None:
        self._transport.on_request_released()
        self._detach()
        answer = self._answer
        self._table.end(answer, self._now(), has_failed=self._has_failed)
        answer.notify()
        self._table.compact(answer)
        self._on_end(answer)


class ClientReader(AnswerReader):
    """A client that gets an answer from its beginning.

    on_left: called when the client has disconnected, or has read the whole answer.
    on_read: called when a client that had paused has read on.
    """

    __slots__ = ("_answer", "_headers", "_is_paused", "_on_left", "_on_read", "_response")

    def __init__(
        self,
        answer: KeyedAnswer,
        response: ResponseWriter,
        on_left: Callable[[KeyedAnswer], None],
        on_read: Callable[[], None] | None,
        *,
        is_replay: bool,
    ) -> None:
        super().__init__()
        self._answer = answer
        self._response = response
        self._on_left = on_left
        self._on_read = on_read
        self._headers = REPLAYED if is_replay else ""
        self._is_paused = False
        answer.readers.append(self)
        response.on_client_gone = self._leave
        response.on_backpressure = self._set_paused
        self.on_changed()

    def on_changed(self) -> None:
        """Sends what the client does not have yet."""
        answer, response, head = self._answer, self._response, self._answer.head
        if response.finished or self._is_paused:
            return
        if head is not None and not response.started:
            response.request_id = head.request_id
            if head.content_type:
                body = b"".join(answer.chunks)
                response.send(head.status, head.header_text + self._headers, body, content_type=head.content_type)
                self.position = len(answer.chunks)
                self._leave()
                return
            response.start_stream(head.status, head.header_text + self._headers, length=head.length)
            response.accepts_comments = response.accepts_comments and head.is_event_stream
        if head is not None:
            self._send_chunks()
        if answer.is_cut and not response.finished and not self._is_paused:
            response.abort()
        if response.finished:
            self._leave()

    def _send_chunks(self) -> None:
        """Sends chunks in slices, until the client is too slow."""
        answer, response = self._answer, self._response
        while not self._is_paused and not response.finished:
            chunks: list[bytes] = []
            size = 0
            for chunk in answer.unread_chunks(self.position):
                chunks.append(chunk)
                size += len(chunk)
                if size >= _SLICE_BYTES:
                    break
            self.position += len(chunks)
            is_last = answer.is_complete and self.position == answer.forgotten_chunks + len(answer.chunks)
            if chunks or is_last:
                response.write_chunks(chunks, final=is_last)
            if size < _SLICE_BYTES:
                return

    def _set_paused(self, is_paused: bool) -> None:
        self._is_paused = is_paused
        if not is_paused:
            self.on_changed()
            self._answer.trim()
            if self._on_read is not None:
                self._on_read()

    def _leave(self) -> None:
        if self in self._answer.readers:
            self._answer.readers.remove(self)
            self._answer.trim()
            self._on_left(self._answer)
