"""A strict parser of chunked request bodies, linear in the number of bytes.

A chunk is `SIZE[;extension] CRLF data CRLF`. A chunk of size 0 ends the body; trailers and an empty
line follow. Sizes are plain hexadecimal digits and line ends are CRLF. Extensions and trailers are
read, bounded and dropped. The overhead of framing is bounded too. The start of a line that arrives
in parts is examined once.

Why: the next request begins right behind the body, so its end must be found to the byte. Parser
libraries do not report where a message ended.
"""

import re

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest, BodyTooLarge, HeadTooLarge

_FIELD_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _FIELD_TEXT + rb")?\r\n")
_PARTIAL_SIZE_LINE = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;" + _FIELD_TEXT + rb")?\r?)?")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):" + _FIELD_TEXT + rb"\r\n")
_PARTIAL_TRAILER_LINE = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?::" + _FIELD_TEXT + rb")?)?\r?")
_MORE_TEXT = re.compile(_FIELD_TEXT + rb"\r?")
_MORE_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*(?::" + _FIELD_TEXT + rb")?\r?")
_MAX_SIZE_DIGITS = 16
_FORBIDDEN_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host"})


class ChunkedBody:
    """The body of one chunked request, fed with bytes as they arrive."""

    __slots__ = (
        "_chunk_bytes_left",
        "_data",
        "_in_text",
        "_limits",
        "_partial_line",
        "_received_bytes",
        "_trailer_bytes",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data = bytearray()
        self._partial_line = bytearray()
        self._in_text = False  # whether the partial line has its `;` or `:`
        self._chunk_bytes_left = 0  # with the CRLF behind the data
        self._received_bytes = 0
        self._trailer_bytes = -1  # -1 before the last chunk

    def __len__(self) -> int:
        """Bytes in memory."""
        return len(self._data) + len(self._partial_line)

    def feed(self, data: bytes) -> bytes | None:
        """Adds bytes; returns those behind the body once it is complete, else None.

        Raises BadRequest and its subclasses.
        """
        self._received_bytes += len(data)
        end = None
        if not self._partial_line or self._completes_line(data):
            if self._partial_line:
                data, self._partial_line = bytes(self._partial_line) + data, bytearray()
            position = self._read_chunks(data)
            end = self._read_trailers(data, position) if self._trailer_bytes >= 0 else None
        limits = self._limits
        if len(self._data) > limits.body_bytes:
            raise BodyTooLarge(f"the body is longer than {limits.body_bytes} bytes")
        if self._received_bytes > limits.body_wire_factor * len(self._data) + 2 * limits.trailer_bytes and end is None:
            raise BodyTooLarge("the chunked body spends far more bytes on framing than on data")
        return None if end is None else data[end:]

    def body(self) -> bytes:
        """Returns the decoded body."""
        return bytes(self._data)

    def _read_chunks(self, data: bytes) -> int:
        """Reads size lines and data; returns the position where it stopped."""
        position = 0
        view = memoryview(data)
        match, body, max_bytes = _SIZE_LINE.match, self._data, self._limits.body_bytes
        while self._trailer_bytes < 0:
            if self._chunk_bytes_left:
                position = self._take_chunk_data(view, position)
                if self._chunk_bytes_left:
                    return position
            line = match(data, position)
            if line is None:
                self._keep_partial_line(data, position, _PARTIAL_SIZE_LINE)
                return position
            if line.end() - line.end(1) > self._limits.chunk_extension_bytes + 3:
                raise self._extension_too_long()
            position = line.end()
            size = int(line[1], 16)
            stop = position + size
            if size == 0:
                self._trailer_bytes = 0
            elif size > max_bytes:
                raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")
            elif data[stop : stop + 2] == b"\r\n":  # all of it is here
                body += view[position:stop]
                position = stop + 2
            else:
                self._chunk_bytes_left = size + 2
        return position

    def _take_chunk_data(self, view: memoryview, position: int) -> int:
        """Reads the arrived part of a chunk's data and CRLF; returns the position behind it."""
        if self._chunk_bytes_left > 2:
            part = view[position : position + self._chunk_bytes_left - 2]
            self._data += part
            self._chunk_bytes_left -= len(part)
            position += len(part)
        while 0 < self._chunk_bytes_left <= 2 and position < len(view):
            if view[position] != (13 if self._chunk_bytes_left == 2 else 10):
                raise _malformed_body()
            self._chunk_bytes_left -= 1
            position += 1
        return position

    def _read_trailers(self, data: bytes, position: int) -> int | None:
        """Reads the trailers and the empty line; returns the end of the body, None if it has not
        arrived.
        """
        while True:
            if data.startswith(b"\r\n", position):
                return position + 2
            line = _TRAILER_LINE.match(data, position)
            if line is None:
                self._keep_partial_line(data, position, _PARTIAL_TRAILER_LINE)
                return None
            if line[1].lower() in _FORBIDDEN_TRAILERS:
                raise _malformed_body()
            self._trailer_bytes += line.end() - position
            position = line.end()
            if self._trailer_bytes > self._limits.trailer_bytes:
                raise self._trailers_too_long()

    def _completes_line(self, data: bytes) -> bool:
        """Returns True if the partial line must be matched again with `data` behind it.

        Otherwise it adds `data` to the line. Only the new bytes are examined, so that a line that
        arrives byte by byte costs no more than one that arrives at once.
        """
        partial = self._partial_line
        if b"\n" in data or (self._trailer_bytes < 0 and not self._in_text):  # a size is short
            return True
        if data:
            more = _MORE_TEXT if self._in_text else _MORE_NAME
            if partial.endswith(b"\r") or more.fullmatch(data) is None:
                raise _malformed_body()
            partial += data
            self._in_text = self._in_text or b":" in data
            self._check_partial_length()
        return False

    def _keep_partial_line(self, data: bytes, position: int, partial: re.Pattern[bytes]) -> None:
        """Keeps the start of a line for later. Raises if it cannot become a valid line."""
        if partial.fullmatch(data, position) is None:
            raise _malformed_body()
        self._partial_line = bytearray(data[position:])
        self._in_text = (b";" if self._trailer_bytes < 0 else b":") in self._partial_line
        self._check_partial_length()

    def _check_partial_length(self) -> None:
        limits, length = self._limits, len(self._partial_line)
        if self._trailer_bytes >= 0:
            if length > limits.trailer_bytes:
                raise self._trailers_too_long()
        elif length > _MAX_SIZE_DIGITS + limits.chunk_extension_bytes + 2:
            raise self._extension_too_long()

    def _extension_too_long(self) -> BodyTooLarge:
        return BodyTooLarge(f"the extension of a chunk is longer than {self._limits.chunk_extension_bytes} bytes")

    def _trailers_too_long(self) -> HeadTooLarge:
        return HeadTooLarge(f"the trailers are longer than {self._limits.trailer_bytes} bytes")


def _malformed_body() -> BadRequest:
    return BadRequest("the chunked body is malformed", code="malformed_http")
