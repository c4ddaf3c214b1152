"""The parser of a connection's bytes into requests. It does no I/O, so tests can cut bytes
anywhere.

It parses one request at a time. `next_request` never reads behind the end of the request that it
returns.
"""

import re
from io import BytesIO
from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.http.chunked_body import ChunkedBody
from fairlead_gateway.http.request_head import (
    HeadTemplate,
    RequestHead,
    SharedTemplates,
    check_partial_head,
    create_template,
    parse_head,
)

_MAX_EMPTY_LINES: Final = 16
_LEADING_EMPTY_LINES: Final = re.compile(rb"(?:\r\n){0,%d}" % (_MAX_EMPTY_LINES + 1))


AWAITING_REQUEST: Final = 1
AWAITING_HEAD_END: Final = 2
AWAITING_BODY_END: Final = 3


class RequestParser:
    """The parser of one connection: `feed` takes bytes, `next_request` returns requests.

    templates: those of all connections of the port.
    """

    __slots__ = (
        "_body_parts",
        "_body_start",
        "_buffer",
        "_checked_bytes",
        "_chunked_body",
        "_empty_lines",
        "_head",
        "_limits",
        "_missing_bytes",
        "_template",
        "_templates",
        "head_bytes",
    )

    def __init__(self, limits: Limits, templates: SharedTemplates) -> None:
        self._limits = limits
        self._buffer: bytes | bytearray = b""
        self._body_start = 0  # in `_buffer`, where the body of the head just parsed begins
        self._checked_bytes = 0
        self._empty_lines = 0
        self._head: RequestHead | None = None
        self._chunked_body: ChunkedBody | None = None
        self._body_parts: BytesIO | None = None
        self._missing_bytes = 0
        self._template: HeadTemplate | None = None
        self._templates = templates
        self.head_bytes = 0
        """Bytes of the last parsed head."""

    @property
    def awaited(self) -> int:
        """The part that `next_request` found missing: one of the three `AWAITING_…` constants."""
        if self._head is not None:
            return AWAITING_BODY_END
        return AWAITING_HEAD_END if self._buffer else AWAITING_REQUEST

    @property
    def head(self) -> RequestHead | None:
        """The head of the request whose body is incomplete; None without one."""
        return self._head

    @property
    def needs_100_continue(self) -> bool:
        """True once per request, if the client waits for `100 Continue` before it sends
        its body.
        """
        head = self._head
        if head is None or not head.expects_continue:
            return False
        head.expects_continue = False
        return self._body_parts is None and not self._buffer

    @property
    def should_pause_reading(self) -> bool:
        """True if the bytes read ahead exceed the limit of a head, or hold too many requests."""
        return len(self._buffer) > self._limits.header_bytes or (
            self._buffer.count(b"\r\n\r\n") >= self._limits.pipelined_requests
        )

    @property
    def unparsed_bytes(self) -> int:
        """Bytes in memory that no parsed head covers: of an incomplete head, or read ahead."""
        return len(self._buffer) if self._head is None else 0

    @property
    def incomplete_bytes(self) -> int:
        """Bytes in memory of a request whose body is incomplete, with its head."""
        head = self._head
        if head is None:
            return 0
        if self._chunked_body is not None:
            return self.head_bytes + len(self._chunked_body) + len(self._buffer)
        return self.head_bytes + (head.length or 0) - self._missing_bytes

    @property
    def is_empty(self) -> bool:
        """True if no byte of a further request has arrived."""
        return self._head is None and not self._buffer

    def feed(self, data: bytes) -> None:
        """Adds received bytes."""
        if not self._buffer:
            self._buffer = data
        elif isinstance(self._buffer, bytearray):
            self._buffer += data
        else:
            self._buffer = bytearray(self._buffer) + data

    def next_request(self) -> tuple[RequestHead, bytes] | None:
        """Returns the next complete request; None while bytes are missing.

        Raises BadRequest and its subclasses.
        """
        head = self._head
        if head is None:
            head = self._next_head()
            if head is None:
                return None
        body = self._take_body()
        if body is None:
            return None
        self._head = None
        return head, body

    def on_eof(self) -> None:
        """Called when the client sends no more. Raises BadRequest if a request is incomplete."""
        if not self.is_empty:
            raise BadRequest("the request ends before it is whole", code="malformed_http")

    def _next_head(self) -> RequestHead | None:
        buffered = self._buffer
        if not buffered:
            return None
        template = self._template
        if template is not None and isinstance(buffered, bytes):
            head = template.match(buffered)
            if head is not None:
                return self._start_body(head, template.head_end)
        if not self._checked_bytes and buffered[:1] in (b"\r", b"\n"):
            buffered = self._buffer = self._skip_empty_lines(buffered)
        if not buffered or buffered == b"\r":
            return None
        end = buffered.find(b"\r\n\r\n", max(0, self._checked_bytes - 3))
        if end < 0:
            check_partial_head(buffered, self._checked_bytes, self._limits)
            self._checked_bytes = len(buffered)
            return None
        raw = bytes(buffered[:end])
        shared = self._templates.find(raw)
        if shared is not None:
            matched = shared.match(bytes(buffered[: end + 4]))
            if matched is not None:
                self._template = shared
                return self._start_body(matched, end + 4)
        head = parse_head(raw, self._limits)
        template = self._template = create_template(raw, head, self._limits)
        if template is not None:
            self._templates.add(raw, template)
        return self._start_body(head, end + 4)

    def _start_body(self, head: RequestHead, body_start: int) -> RequestHead:
        """Prepares for the body, which begins at `body_start` of the buffer; returns `head`."""
        self._checked_bytes = self._empty_lines = 0
        self._body_start = self.head_bytes = body_start
        self._head = head
        length = head.length
        self._missing_bytes = length if length is not None else 0
        self._chunked_body = ChunkedBody(self._limits) if length is None else None
        return head

    def _take_body(self) -> bytes | None:
        buffered, start, missing = self._buffer, self._body_start, self._missing_bytes
        self._body_start = 0
        if (
            self._chunked_body is None
            and self._body_parts is None
            and isinstance(buffered, bytes)
            and len(buffered) >= start + missing
        ):
            stop = start + missing  # most requests arrive at once
            self._buffer = buffered[stop:] if len(buffered) > stop else b""
            return buffered[start:stop]
        buffered, self._buffer = bytes(buffered[start:]), b""
        if self._chunked_body is not None:
            rest = self._chunked_body.feed(buffered)
            if rest is None:
                return None
            self._buffer = rest
            body, self._chunked_body = self._chunked_body.body(), None
            return body
        if len(buffered) < missing:
            if buffered:
                if self._body_parts is None:
                    self._body_parts = BytesIO()
                self._body_parts.write(buffered)
                self._missing_bytes -= len(buffered)
            return None
        body, self._buffer = buffered[:missing], buffered[missing:]
        if self._body_parts is not None:
            self._body_parts.write(body)
            body, self._body_parts = self._body_parts.getvalue(), None  # without another copy
        return body

    def _skip_empty_lines(self, data: bytes | bytearray) -> bytes:
        """Returns the data without up to 16 empty lines before a request line (RFC 9112, 2.2).

        A lone CR or LF is not a line. Raises BadRequest if there are more lines.
        """
        found = _LEADING_EMPTY_LINES.match(data)
        skipped = found.end() if found else 0
        self._empty_lines += skipped // 2
        if self._empty_lines > _MAX_EMPTY_LINES:
            raise BadRequest("too many empty lines before the request", code="malformed_http")
        return bytes(data[skipped:])
