"""The answer to one request: one whole message, or a stream of pieces; exactly one, exactly once.

It frames anew: own head, own Content-Length or chunks (one chunk for every piece, so that a client sees the pieces that the
engine sent), and ``Connection: close`` where the connection ends behind it. HTTP/1.0 gets its stream without chunks.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from fairlead_gateway.head import Head

_OPENINGS: Final = {int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\ndate: " for status in HTTPStatus}
_SIZES: Final = [b"%x\r\n" % size for size in range(1_024)]  # how a chunk of so many bytes begins


class Line:
    """What an answer needs of the connection it goes out on. A class to derive from: through a Protocol compiled code would have to
    look up every method by its name. It is no ABC: instances of a compiled class that has one for its base break on weak references
    instead of refusing them."""

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Send bytes."""

    @abstractmethod
    def replied(self, keep: bool) -> None:
        """The answer is complete; ``keep`` says whether the connection may serve another request."""

    @abstractmethod
    def cut(self) -> None:
        """Break off so that the answer cannot look complete."""

    @abstractmethod
    def date(self) -> str:
        """The Date header's value."""

    @abstractmethod
    def client(self) -> str | None:
        """The address at its other end."""

    @property
    @abstractmethod
    def ending(self) -> bool:
        """The connection takes no further request."""


class Reply:
    """``gone`` is called when the client leaves before the end; ``flow`` with True when it does not keep up, with False
    when it does again. ``pulses``: an SSE comment may be put between two pieces."""

    __slots__ = (
        "_chunked",
        "_head_only",
        "_keep",
        "_line",
        "_old",
        "begun",
        "ended",
        "flow",
        "gone",
        "pulses",
        "request_id",
    )

    def __init__(self, line: Line, head: Head | None, request_id: str) -> None:
        self._line = line
        self._keep = head is not None and head.keep_alive
        self._old = head is not None and head.version == 10
        self._head_only = head is not None and head.method == "HEAD"
        self._chunked = False
        self.request_id = request_id
        self.begun = False
        self.ended = False
        self.pulses = False
        self.gone: Callable[[], object] | None = None
        self.flow: Callable[[bool], None] | None = None

    @property
    def between_chunks(self) -> bool:
        """What is written next is the size of a chunk, the last one included."""
        return self._chunked and not self.ended

    def whole(self, status: int, fields: str, body: bytes, *, kind: str = "application/json") -> None:
        """Answer with one message. ``fields`` is ready header text, each line with its CRLF."""
        if self.ended or self.begun:
            return
        self.begun = True
        typed = f"content-type: {kind}\r\ncontent-length: " if body else "content-length: "
        head = self._head(status, f"{typed}{len(body)}\r\n{fields}")
        self._line.write(head if self._head_only else head + body)
        self._finish()

    def begin(self, status: int, fields: str, *, length: int | None = None) -> None:
        """Send the head of an event stream, or of a long answer of ``length`` bytes."""
        if self.ended or self.begun:
            return
        self.begun = True
        if length is not None:
            framing = f"content-length: {length}\r\n"
        elif self._old:
            framing, self._keep = "", False
        else:
            framing, self._chunked, self.pulses = "transfer-encoding: chunked\r\n", True, True
        self._line.write(self._head(status, framing + fields))

    def pieces(self, pieces: Sequence[bytes], *, last: bool = False) -> None:
        """Send pieces, each as a chunk of its own; ``last`` ends the answer."""
        if self.ended:
            return
        if self._chunked:
            if len(pieces) == 1 and not last:
                data = _chunk(pieces[0])
            else:
                data = b"".join([_chunk(piece) for piece in pieces])
                if last:
                    data += b"0\r\n\r\n"
        else:
            data = b"".join(pieces)
        if data:
            self._line.write(data)
        if last:
            self._finish()

    def broken(self, event: bytes) -> None:
        """End a stream with an error event: said aloud and framed properly, so that the connection, which was told keep-alive, may
        ask again: clients that read to the end do, and would lose their next request."""
        self.pieces([event], last=True)

    def cut(self) -> None:
        """Break off an answer that began and cannot be completed."""
        if not self.ended:
            self._over()
            self._line.cut()

    def client(self) -> str | None:
        """The address that the request came from, as the connection has it."""
        return self._line.client()

    def lost(self) -> None:
        """The connection is gone; whoever makes the answer is told."""
        if not self.ended:
            gone = self.gone
            self._over()
            if gone is not None:
                gone()

    def _head(self, status: int, fields: str) -> bytes:
        keep = self._keep = self._keep and not self._line.ending
        connection = "" if keep and not self._old else f"connection: {'keep-alive' if keep else 'close'}\r\n"
        opening = _OPENINGS.get(status)
        if opening is None:
            opening = f"HTTP/1.1 {status} Unknown\r\ndate: "
        text = f"{opening}{self._line.date()}\r\nx-request-id: {self.request_id}\r\n{connection}{fields}\r\n"
        return text.encode("latin-1")

    def _over(self) -> None:
        """Nobody is called any more, and nobody is known any more: a circle of references would wait for the collector."""
        self.ended = True
        self.gone = self.flow = None

    def _finish(self) -> None:
        self._over()
        self._line.replied(self._keep)  # what the head said: a client that was told `keep-alive` may ask once more


def _chunk(piece: bytes) -> bytes:
    """A piece, framed."""
    size = len(piece)
    return (_SIZES[size] if size < len(_SIZES) else b"%x\r\n" % size) + piece + b"\r\n"
