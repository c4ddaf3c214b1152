"""The body of a chunked request, decoded by llhttp, with the bounds that llhttp does not have.

llhttp is strict about sizes and line ends; how long extensions and trailers may be and how many bytes on the wire a body
byte may cost is our part. Trailers are read and dropped. One parser serves one message, because the end of the message
must be found to the byte: what follows is the next request and is read by ``head``, never by llhttp.
"""

import httptools

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest, BodyTooLarge, HeadTooLarge

_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_END = b"\r\n\r\n"


class ChunkedBody:
    """Feed it what arrives until ``feed`` returns what lies behind the body."""

    __slots__ = ("_complete", "_data", "_limits", "_parser", "_quiet", "_tail", "_trailers", "_wire")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data = bytearray()
        self._wire = 0
        self._quiet = 0
        self._trailers = -1  # the priming head's own field comes first
        self._tail = b""
        self._complete = False
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_HEAD)

    def feed(self, data: bytes) -> bytes | None:
        """None: more is needed. Bytes: the body is whole and these lie behind it. Raises BadRequest and its kin."""
        # A message can only end with CRLF CRLF, which may have begun in the data before.
        window = self._tail + data
        shift = len(self._tail)
        view = memoryview(data)
        start = 0
        search = 0
        while start < len(data):
            found = window.find(_END, search)
            stop = len(data) if found < 0 else max(start, found + 4 - shift)
            if stop > start:
                self._feed(view[start:stop])
            if self._complete:
                return data[stop:]
            start = stop
            search = found + 1 if found >= 0 else len(window)
        self._tail = window[-3:]
        return None

    def whole(self) -> bytes:
        """The decoded body."""
        return bytes(self._data)

    def on_body(self, part: bytes) -> None:
        """llhttp found (a part of) a chunk's data."""
        self._data += part
        self._quiet = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """llhttp read a trailer; its name and value are dropped."""
        self._trailers = 0 if self._trailers < 0 else self._trailers + len(name) + len(value) + 4

    def on_message_complete(self) -> None:
        """llhttp saw the end."""
        self._complete = True

    def _feed(self, data: memoryview) -> None:
        self._wire += len(data)
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise BadRequest("the chunked body is malformed", code="malformed_http") from error
        limits = self._limits
        if len(self._data) > limits.body_bytes:
            raise BodyTooLarge(f"the body is longer than {limits.body_bytes} bytes")
        if self._trailers > limits.trailer_bytes:
            raise HeadTooLarge(f"the trailers are longer than {limits.trailer_bytes} bytes")
        if self._quiet > 2 * limits.trailer_bytes or (
            self._wire > limits.body_wire_factor * len(self._data) + 2 * limits.trailer_bytes
        ):
            raise BodyTooLarge("the chunked body spends far more bytes on framing than on data")
