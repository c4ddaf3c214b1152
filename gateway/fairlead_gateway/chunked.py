"""The body of a chunked request, read strictly, in time that grows with its bytes and with nothing else.

A chunk is ``SIZE[;extension] CRLF data CRLF``; a chunk of size 0 ends the body, then come trailers and an empty line. Sizes are plain
hexadecimal digits, line ends CRLF; extensions and trailers are read and dropped, and bounded, as is what framing may cost. The
body's end is found to the byte, because what follows is the next request: that is why no parser library does this, as none
tells where a message ended without being stopped at every place where it might.
"""

import re

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest, BodyTooLarge, HeadTooLarge

_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _TEXT + rb")?\r\n")
_SIZE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;" + _TEXT + rb")?\r?)?")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):" + _TEXT + rb"\r\n")
_TRAILER_BEGUN = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?::" + _TEXT + rb")?)?\r?")
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})


class ChunkedBody:
    """Feed it what arrives until ``feed`` returns what lies behind the body."""

    __slots__ = ("_data", "_left", "_limits", "_rest", "_trailers", "_wire")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data = bytearray()
        self._rest = b""  # the beginning of a line
        self._left = 0  # of a chunk's data with its CRLF
        self._wire = 0
        self._trailers = -1  # bytes of trailers; -1 before the last chunk

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> bytes | None:
        """None: more is needed. Bytes: the body is whole and these lie behind it. Raises BadRequest and its kin."""
        self._wire += len(data)
        data, self._rest = self._rest + data, b""
        at = self._chunks(data)
        end = self._trailing(data, at) if self._trailers >= 0 else None
        limits = self._limits
        if len(self._data) > limits.body_bytes:
            raise BodyTooLarge(f"the body is longer than {limits.body_bytes} bytes")
        if self._wire > limits.body_wire_factor * len(self._data) + 2 * limits.trailer_bytes and end is None:
            raise BodyTooLarge("the chunked body spends far more bytes on framing than on data")
        return None if end is None else data[end:]

    def whole(self) -> bytes:
        """The decoded body."""
        return bytes(self._data)

    def _chunks(self, data: bytes) -> int:
        """Take data and size lines; where it stopped."""
        at = 0
        view = memoryview(data)
        match, body, most = _SIZE.match, self._data, self._limits.body_bytes
        while self._trailers < 0:
            if self._left:
                at = self._take(view, at)
                if self._left:
                    return at
            line = match(data, at)
            if line is None:
                self._wait(data, at, _SIZE_BEGUN)
                return at
            at = line.end()
            size = int(line[1], 16)
            stop = at + size
            if size == 0:
                self._trailers = 0
            elif size > most:
                raise BodyTooLarge(f"the body is longer than {most} bytes")
            elif data[stop : stop + 2] == b"\r\n":  # all of it is here
                body += view[at:stop]
                at = stop + 2
            else:
                self._left = size + 2
        return at

    def _take(self, view: memoryview, at: int) -> int:
        """A chunk's data and the CRLF behind it, as far as they are here."""
        if self._left > 2:
            part = view[at : at + self._left - 2]
            self._data += part
            self._left -= len(part)
            at += len(part)
        while 0 < self._left <= 2 and at < len(view):
            if view[at] != (13 if self._left == 2 else 10):
                raise _malformed()
            self._left -= 1
            at += 1
        return at

    def _trailing(self, data: bytes, at: int) -> int | None:
        """Trailers and the empty line; where the body ends, None while that is not here."""
        while True:
            if data.startswith(b"\r\n", at):
                return at + 2
            line = _TRAILER.match(data, at)
            if line is None:
                self._wait(data, at, _TRAILER_BEGUN)
                return None
            if line[1].lower() in _FRAMING:
                raise _malformed()
            self._trailers += line.end() - at
            at = line.end()
            if self._trailers > self._limits.trailer_bytes:
                raise self._long_trailers()

    def _wait(self, data: bytes, at: int, begun: re.Pattern[bytes]) -> None:
        """Keep the beginning of a line, unless it can no longer become one."""
        if begun.fullmatch(data, at) is None:
            raise _malformed()
        if len(data) - at > self._limits.trailer_bytes:
            if self._trailers < 0:
                raise BodyTooLarge("a chunk's extension is too long")
            raise self._long_trailers()
        self._rest = data[at:]

    def _long_trailers(self) -> HeadTooLarge:
        return HeadTooLarge(f"the trailers are longer than {self._limits.trailer_bytes} bytes")


def _malformed() -> BadRequest:
    return BadRequest("the chunked body is malformed", code="malformed_http")
