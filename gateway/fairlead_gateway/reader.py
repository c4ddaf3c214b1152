"""Bytes of a connection in, whole requests out; no I/O, so that any cutting of the bytes can be tried in a test.

It reads one request at a time: ``next`` never looks behind the end of the request it returns, so bytes that follow stay
bytes until their turn comes.
"""

import re
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.chunked import ChunkedBody
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.head import Head, Template, check_partial, read_head, template

_EMPTY_LINES: Final = 16
_EMPTY: Final = re.compile(rb"(?:\r\n){0,%d}" % (_EMPTY_LINES + 1))


NOTHING_YET: Final = 1  # what is missing for the next request
HEAD_END: Final = 2
BODY_END: Final = 3


class RequestReader:
    """``feed`` it what arrives, take requests with ``next`` until it says None."""

    __slots__ = (
        "_ahead",
        "_at",
        "_checked",
        "_chunked",
        "_empty",
        "_head",
        "_limits",
        "_missing",
        "_parts",
        "_template",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ahead: bytes | bytearray = b""
        self._at = 0  # of ``_ahead``, where the body begins whose head has just been read
        self._checked = 0
        self._empty = 0
        self._head: Head | None = None
        self._chunked: ChunkedBody | None = None
        self._parts: list[bytes] = []
        self._missing = 0
        self._template: Template | None = None

    @property
    def waiting(self) -> int:
        """What ``next`` found missing: one of the three above."""
        if self._head is not None:
            return BODY_END
        return HEAD_END if self._ahead else NOTHING_YET

    @property
    def head(self) -> Head | None:
        """The head of a request whose body is not whole yet."""
        return self._head

    @property
    def owes_continue(self) -> bool:
        """The client waits for ``100 Continue`` before it sends its body; true at most once a request."""
        head = self._head
        if head is None or not head.continues:
            return False
        head.continues = False
        return not self._parts and not self._ahead

    @property
    def full(self) -> bool:
        """So much is read ahead that reading should pause."""
        return len(self._ahead) > self._limits.header_bytes or (
            self._ahead.count(b"\r\n\r\n") >= self._limits.pipelined_requests
        )

    @property
    def held(self) -> int:
        """Bytes kept: of an unfinished body, and read ahead."""
        head = self._head
        if head is None:
            return len(self._ahead)
        return len(self._chunked) if self._chunked is not None else (head.length or 0) - self._missing

    @property
    def empty(self) -> bool:
        """Nothing of a further request is here."""
        return self._head is None and not self._ahead

    def feed(self, data: bytes) -> None:
        """Add what arrived."""
        if not self._ahead:
            self._ahead = data
        elif isinstance(self._ahead, bytearray):
            self._ahead += data
        else:
            self._ahead = bytearray(self._ahead) + data

    def next(self) -> tuple[Head, bytes] | None:
        """The next whole request, or None while bytes are missing. Raises BadRequest and its kin."""
        head = self._head
        if head is None:
            head = self._next_head()
            if head is None:
                return None
        body = self._body()
        if body is None:
            return None
        self._head = None
        return head, body

    def ended(self) -> None:
        """The client sends no more. Raises BadRequest when that leaves a request unfinished."""
        if not self.empty:
            raise BadRequest("the request ends before it is whole", code="malformed_http")

    def _next_head(self) -> Head | None:
        ahead = self._ahead
        if not ahead:
            return None
        known = self._template
        if known is not None and isinstance(ahead, bytes):
            head = known.read(ahead)
            if head is not None:
                return self._begin(head, known.end)
        if not self._checked and ahead[:1] in (b"\r", b"\n"):
            ahead = self._ahead = self._without_empty_lines(ahead)
        if not ahead or ahead == b"\r":
            return None
        end = ahead.find(b"\r\n\r\n", max(0, self._checked - 3))
        if end < 0:
            check_partial(ahead, self._checked, self._limits)
            self._checked = len(ahead)
            return None
        raw = bytes(ahead[:end])
        head = read_head(raw, self._limits)
        self._template = template(raw, head, self._limits)
        return self._begin(head, end + 4)

    def _begin(self, head: Head, at: int) -> Head:
        """The body of ``head`` comes next; it begins at ``at`` of what is here."""
        self._checked = self._empty = 0
        self._at = at
        self._head = head
        length = head.length
        self._missing = length if length is not None else 0
        self._chunked = ChunkedBody(self._limits) if length is None else None
        return head

    def _body(self) -> bytes | None:
        ahead, at, missing = self._ahead, self._at, self._missing
        self._at = 0
        if self._chunked is None and not self._parts and isinstance(ahead, bytes) and len(ahead) >= at + missing:
            stop = at + missing  # all of it came at once: most do
            self._ahead = ahead[stop:] if len(ahead) > stop else b""
            return ahead[at:stop]
        ahead, self._ahead = bytes(ahead[at:]), b""
        if self._chunked is not None:
            rest = self._chunked.feed(ahead)
            if rest is None:
                return None
            self._ahead = rest
            body, self._chunked = self._chunked.whole(), None
            return body
        if len(ahead) < missing:
            if ahead:
                self._parts.append(ahead)
                self._missing -= len(ahead)
            return None
        body, self._ahead = ahead[:missing], ahead[missing:]
        if self._parts:
            body = b"".join([*self._parts, body])
            self._parts = []
        return body

    def _without_empty_lines(self, data: bytes | bytearray) -> bytes:
        """A few empty lines before a request line are passed over (RFC 9112, 2.2); a lone CR or LF is not one."""
        found = _EMPTY.match(data)
        skipped = found.end() if found else 0
        self._empty += skipped // 2
        if self._empty > _EMPTY_LINES:
            raise BadRequest("too many empty lines before the request", code="malformed_http")
        return bytes(data[skipped:])
