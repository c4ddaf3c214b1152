"""Response heads, byte for byte in the order of uvicorn under vLLM."""

from email.utils import formatdate
from http import HTTPStatus

from fairlead.runtime.clock import Clock

JSON_TYPE = b"application/json"
EVENT_STREAM_TYPE = b"text/event-stream; charset=utf-8"


class HeaderBuilder:
    """A builder of response heads; it rebuilds the dated status line once per second."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._second = -1
        self._openings: dict[int, bytes] = {}
        self._date = b""

    def status_lines(self, status: int) -> bytes:
        """Returns the status line, ``date`` and ``server``."""
        second = int(self._clock.wall())
        if second != self._second:
            self._second = second
            self._openings.clear()
            self._date = formatdate(second, usegmt=True).encode()
        opening = self._openings.get(status)
        if opening is None:
            phrase = HTTPStatus(status).phrase.encode()
            opening = b"HTTP/1.1 %d %b\r\ndate: %b\r\nserver: uvicorn\r\n" % (status, phrase, self._date)
            self._openings[status] = opening
        return opening

    def response_head(self, status: int, length: int, content_type: bytes | None, before: bytes, tail: bytes) -> bytes:
        """Returns the head of a response of known length.

        - before: header lines ahead of the length.
        - tail: header lines behind the type.
        """
        kind = b"content-type: %b\r\n" % content_type if content_type is not None else b""
        return b"%b%bcontent-length: %d\r\n%b%b\r\n" % (self.status_lines(status), before, length, kind, tail)

    def stream_head(self, status: int, content_type: bytes, tail: bytes) -> bytes:
        """Returns the head of a chunked response."""
        return b"%bcontent-type: %b\r\n%btransfer-encoding: chunked\r\n\r\n" % (
            self.status_lines(status),
            content_type,
            tail,
        )


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK = b"0\r\n\r\n"
