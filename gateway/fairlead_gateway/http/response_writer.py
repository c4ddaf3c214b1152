"""The writer of one response: a complete message, or a stream of chunks.

It does not reuse the engine's framing. It writes its own head with its own Content-Length or
chunks, and `Connection: close` if the connection ends. One chunk of a stream is one chunk of the
engine. An HTTP/1.0 client gets its stream without chunks.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from fairlead_gateway.http.request_head import RequestHead

_STATUS_LINES: Final = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\ndate: " for status in HTTPStatus}
_CHUNK_SIZE_LINES: Final = [b"%x\r\n" % size for size in range(1_024)]


class ResponseTransport:
    """The connection that a response is written to, as a plain base class.

    Why: through a Protocol, compiled code looks up every method by its name. An ABC is not used:
    instances of a compiled class with an ABC as base break on weak references.
    """

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Sends bytes."""

    @abstractmethod
    def on_response_complete(self, keep_alive: bool) -> None:
        """Called when the response is complete.

        keep_alive: whether the connection may serve another request.
        """

    @abstractmethod
    def on_request_released(self) -> None:
        """Called when the body of the request is in memory no more."""

    @abstractmethod
    def abort(self) -> None:
        """Closes the connection so that the response cannot look complete."""

    @abstractmethod
    def date(self) -> str:
        """Returns the value of the Date header."""

    @abstractmethod
    def client_address(self) -> str | None:
        """Returns the address of the client; None if it is not known."""

    @property
    @abstractmethod
    def is_draining(self) -> bool:
        """True if the connection takes no further request."""


class ResponseWriter:
    """The writer of the one response to a request.

    on_client_gone: called if the client disconnects before the end.
    on_backpressure: called with True if the client reads too slowly, with False when it catches up.
    head: of the request; its `response_fields` are a part of the answer. None: it was not parsed.
    accepts_comments: True if an SSE comment may be written between two chunks.
    """

    __slots__ = (
        "_chunked",
        "_head_only",
        "_is_http10",
        "_keep_alive",
        "_transport",
        "accepts_comments",
        "finished",
        "head",
        "on_backpressure",
        "on_client_gone",
        "request_id",
        "started",
    )

    def __init__(self, transport: ResponseTransport, head: RequestHead | None, request_id: str) -> None:
        self._transport = transport
        self._keep_alive = head is not None and head.keep_alive
        self._is_http10 = head is not None and head.version == 10
        self._head_only = head is not None and head.method == "HEAD"
        self._chunked = False
        self.request_id = request_id
        self.head = head
        self.started = False
        self.finished = False
        self.accepts_comments = False
        self.on_client_gone: Callable[[], object] | None = None
        self.on_backpressure: Callable[[bool], None] | None = None

    @property
    def is_between_chunks(self) -> bool:
        """True if the next bytes are the size of a chunk."""
        return self._chunked and not self.finished

    def send(self, status: int, header_text: str, body: bytes, *, content_type: str = "application/json") -> None:
        """Sends a complete response, without its body for HEAD; does nothing after a start.

        header_text: header lines, each with its CRLF.
        """
        if self.finished or self.started:
            return
        self.started = True
        framing = (
            f"content-type: {content_type}\r\ncontent-length: {len(body)}\r\n" if body else "content-length: 0\r\n"
        )
        head = self._build_head(status, framing, header_text)
        self._transport.write(head if self._head_only else head + body)
        self._complete()

    def start_stream(self, status: int, header_text: str, *, length: int | None = None) -> None:
        """Sends the head of an event stream, or of a long response of `length` bytes."""
        if self.finished or self.started:
            return
        self.started = True
        if length is not None:
            framing = f"content-length: {length}\r\n"
        elif self._is_http10:
            framing, self._keep_alive = "", False
        else:
            framing, self._chunked, self.accepts_comments = "transfer-encoding: chunked\r\n", True, True
        self._transport.write(self._build_head(status, framing, header_text))

    def write_chunks(self, chunks: Sequence[bytes], *, final: bool = False) -> None:
        """Sends each item as one chunk, or as plain bytes if the response has no chunks.

        final: ends the response.
        """
        if self.finished:
            return
        if self._chunked:
            if len(chunks) == 1 and not final:
                data = _frame_chunk(chunks[0])
            else:
                data = b"".join([_frame_chunk(piece) for piece in chunks])
                if final:
                    data += b"0\r\n\r\n"
        else:
            data = b"".join(chunks)
        if data:
            self._transport.write(data)
        if final:
            self._complete()

    def end_with_error(self, event: bytes) -> None:
        """Ends a stream with an error event and correct framing.

        Why: the client was promised keep-alive. If the connection were cut, a client that read to
        the end would lose its next request.
        """
        self.write_chunks([event], final=True)

    def abort(self) -> None:
        """Aborts a response that was started and cannot be completed."""
        if not self.finished:
            self._detach()
            self._transport.abort()

    def on_request_released(self) -> None:
        """Called when the request's body is dropped before the response is complete."""
        if not self.finished:
            self._transport.on_request_released()

    def client_address(self) -> str | None:
        """Returns the address of the client; None if it has none, or has disconnected."""
        return self._transport.client_address()

    def on_connection_lost(self) -> None:
        """Called when the connection is lost; calls `on_client_gone`."""
        if not self.finished:
            on_client_gone = self.on_client_gone
            self._detach()
            if on_client_gone is not None:
                on_client_gone()

    def _build_head(self, status: int, framing: str, header_text: str) -> bytes:
        keep_alive = self._keep_alive = self._keep_alive and not self._transport.is_draining
        connection = (
            "" if keep_alive and not self._is_http10 else f"connection: {'keep-alive' if keep_alive else 'close'}\r\n"
        )
        status_line = _STATUS_LINES.get(status)
        if status_line is None:
            status_line = f"HTTP/1.1 {status} Unknown\r\ndate: "
        date = self._transport.date()
        common = "" if self.head is None else self.head.response_fields
        text = (
            f"{status_line}{date}\r\nx-request-id: {self.request_id}\r\n{connection}{framing}{common}{header_text}\r\n"
        )
        return text.encode("latin-1")

    def _detach(self) -> None:
        """Marks the response as finished and drops the callbacks.

        Why: a cycle of references would wait for the garbage collector.
        """
        self.finished = True
        self.on_client_gone = self.on_backpressure = None

    def _complete(self) -> None:
        self._detach()
        self._transport.on_response_complete(self._keep_alive)  # as the head said


def _frame_chunk(data: bytes) -> bytes:
    size = len(data)
    return (_CHUNK_SIZE_LINES[size] if size < len(_CHUNK_SIZE_LINES) else b"%x\r\n" % size) + data + b"\r\n"
