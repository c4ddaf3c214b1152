"""A strict reader of what a client receives: responses in order, and nothing else."""

import re
from dataclasses import dataclass, field

_STATUS_LINE = re.compile(r"HTTP/1\.1 ([1-9][0-9]{2}) [ -~]*")
_FIELD_LINE = re.compile(r"([a-z][a-z0-9-]*): ?([\t -~\x80-\xff]*)")
_SIZE_LINE = re.compile(rb"[0-9a-f]{1,8}\r\n")


@dataclass(slots=True)
class ReceivedResponse:
    """A response.

    is_complete: its framing says that all of it has arrived.
    is_cut: the connection was reset, or ended before that.
    """

    status: int
    fields: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    is_complete: bool = False
    is_cut: bool = False

    @property
    def closes(self) -> bool:
        """Whether the head says that the connection ends behind the response."""
        return self.fields.get("connection") == "close"

    @property
    def events(self) -> list[bytes]:
        """The data of its events."""
        lines = bytes(self.body).replace(b"\r\n", b"\n").split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


class ResponseReader:
    """The reader of one connection.

    allowed: the number of requests that were begun; there may be as many responses.
    Raises AssertionError for bytes that no valid response has.
    """

    def __init__(self) -> None:
        self.responses: list[ReceivedResponse] = []
        self.allowed = 0
        self.interim_count = 0
        self._buffer = bytearray()
        self._current: ReceivedResponse | None = None
        self._bytes_left: int | None = None
        self._is_chunked = False

    @property
    def complete_count(self) -> int:
        """The number of complete responses."""
        return sum(response.is_complete for response in self.responses)

    def feed(self, data: bytes) -> None:
        """Takes bytes as they arrive."""
        self._buffer += data
        while self._read_head() if self._current is None else self._read_body(self._current):
            pass

    def on_end(self, *, is_reset: bool) -> None:
        """Takes the end of the connection."""
        current, self._current = self._current, None
        if current is not None:
            current.is_cut = is_reset or self._is_chunked or self._bytes_left is not None
            current.is_complete = not current.is_cut
        else:
            probe = b"HTTP/1.1 "  # what a half-closed client gets before its response
            assert is_reset or self._buffer in (b"", probe), f"half a head: {bytes(self._buffer)!r}"

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if self._buffer:
            assert len(self.responses) < self.allowed, f"bytes without a request: {bytes(self._buffer[:200])!r}"
        if end < 0:
            assert b"HTTP/1.1 ".startswith(self._buffer[:9]) or self._buffer.startswith(b"HTTP/1.1 "), self._buffer
            return False
        line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        found = _STATUS_LINE.fullmatch(line)
        assert found, line
        fields: dict[str, str] = {}
        for text in lines:
            pair = _FIELD_LINE.fullmatch(text)
            assert pair, text
            assert pair[1] not in fields, text
            fields[pair[1]] = pair[2]
        self._start(int(found[1]), fields)
        return True

    def _start(self, status: int, fields: dict[str, str]) -> None:
        if status < 200:
            assert (status, fields) == (100, {}), (status, fields)
            self.interim_count += 1
            return
        response = ReceivedResponse(status, fields)
        self.responses.append(response)
        self._is_chunked = "transfer-encoding" in fields
        length = fields.get("content-length")
        if self._is_chunked:
            assert fields["transfer-encoding"] == "chunked", fields
            assert length is None, fields
        if length is not None:
            assert length.isdigit(), fields
        if status in (204, 304):
            assert not self._is_chunked, fields
            length = "0"
        self._bytes_left = None if length is None else int(length)
        if length is None and not self._is_chunked:
            assert response.closes, fields
        if self._bytes_left == 0:
            response.is_complete = True
        else:
            self._current = response

    def _read_body(self, response: ReceivedResponse) -> bool:
        if not self._buffer:
            return False
        if self._is_chunked:
            return self._read_chunk(response)
        left = len(self._buffer) if self._bytes_left is None else self._bytes_left
        response.body += self._buffer[:left]
        taken = min(left, len(self._buffer))
        del self._buffer[:taken]
        if self._bytes_left is not None:
            self._bytes_left -= taken
            if not self._bytes_left:
                self._complete(response)
        return True

    def _read_chunk(self, response: ReceivedResponse) -> bool:
        end = self._buffer.find(b"\r\n")
        if end < 0:
            assert re.fullmatch(rb"[0-9a-f]{0,8}\r?", self._buffer), self._buffer[:40]
            return False
        assert _SIZE_LINE.fullmatch(self._buffer[: end + 2]), self._buffer[:40]
        size = int(self._buffer[:end], 16)
        stop = end + 2 + size
        if len(self._buffer) < stop + 2:
            return False
        assert self._buffer[stop : stop + 2] == b"\r\n", self._buffer[stop : stop + 40]
        response.body += self._buffer[end + 2 : stop]
        del self._buffer[: stop + 2]
        if not size:
            self._complete(response)
        return True

    def _complete(self, response: ReceivedResponse) -> None:
        response.is_complete = True
        self._current = None
