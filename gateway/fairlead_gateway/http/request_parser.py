"""The parser of a connection's bytes into requests. It does no I/O, so tests can cut bytes
anywhere.

It parses one request at a time. `next_request` never reads behind the end of the request that it
returns.

A strict parser of request heads. It is the only one, so requests have one interpretation.

Why: two parsers that disagree about the end of a request allow request smuggling. So the parser
accepts nothing doubtful. A head must have CRLF line ends, no folded lines and exactly one Host. At
most one of Content-Length and Transfer-Encoding may appear, and only once. `chunked` is the only
coding, never on HTTP/1.0. Requests to engines have their own framing; nothing of the received one
is forwarded. Headers with a key may appear once, so that a proxy and the gateway cannot take two
callers for the one who asks.

Clients send nearly the same head with every request of a connection; only Content-Length differs.
`HeadTemplate` recognizes such a head without parsing it again.

A strict parser of chunked request bodies, linear in the number of bytes.

A chunk is `SIZE[;extension] CRLF data CRLF`. A chunk of size 0 ends the body; trailers and an empty
line follow. Sizes are plain hexadecimal digits and line ends are CRLF. Extensions and trailers are
read, bounded and dropped. The overhead of framing is bounded too. The start of a line that arrives
in parts is examined once.

Why: the next request begins right behind the body, so its end must be found to the byte. Parser
libraries do not report where a message ended.
"""

import contextlib
import re
from io import BytesIO
from typing import Final
from urllib.parse import unquote_to_bytes

from fairlead.limits import Limits
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.errors import (
    BadRequest,
    BodyTooLarge,
    HeadTooLarge,
    TargetTooLong,
    UnsupportedBodyType,
    UnsupportedExpectation,
    UnsupportedHttpVersion,
)

_FIELD_TEXT = rb"[\t\x20-\x7e\x80-\xff]*"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;" + _FIELD_TEXT + rb")?\r\n")
_PARTIAL_SIZE_LINE = re.compile(rb"(?:[0-9A-Fa-f]{1,16}(?:;" + _FIELD_TEXT + rb")?\r?)?")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):" + _FIELD_TEXT + rb"\r\n")
_PARTIAL_TRAILER_LINE = re.compile(rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?::" + _FIELD_TEXT + rb")?)?\r?")
_MORE_TEXT = re.compile(_FIELD_TEXT + rb"\r?")
_MORE_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*(?::" + _FIELD_TEXT + rb")?\r?")
_MAX_SIZE_DIGITS = 16
_FORBIDDEN_TRAILERS = frozenset({b"content-length", b"transfer-encoding", b"host"})

HeaderFields = list[tuple[bytes, bytes]]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_LINE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9_-]*) ([!-~]+) HTTP/([0-9])\.([0-9])")
_FIELD_LINES: Final = re.compile(rb"(?:\r\n" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*)*")
_HOST_VALUE: Final = re.compile(rb"[0-9A-Za-z\-._~%!$&'()*+,;=:\[\]]*")
_AUTHORITY: Final = re.compile(rb"([^/?#]+)(.*)")
_LENGTH_VALUE: Final = re.compile(rb"[0-9]{1,15}")
_MAX_LENGTH_DIGITS: Final = 15
_MAX_SHARED_TEMPLATES: Final = 64
_MAX_SHARED_BYTES: Final = 4_096
PIPELINED_REQUESTS: Final = 16
"""Limit: requests read ahead on one connection; then reading pauses."""
_DIGIT_ZERO: Final = 0x30  # the digit
_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=[ \t]*(?:\r\n|\Z))", re.IGNORECASE)
_SINGLE_FIELDS: Final = (
    *(b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"),
    *(b"authorization", b"x-api-key"),
)
SESSION_HEADERS: Final = (
    *(b"x-session-id", b"x-claude-code-session-id", b"thread-id", b"session-id", b"session_id"),
    b"x-session-affinity",
)
"""Headers in which clients name a conversation, in the order in which they count."""
AGENT_HEADER: Final = b"x-claude-code-agent-id"
"""The agent of a session, which has a conversation of its own."""
_RARE: Final = b"upgrade x-request-id x-request-timeout x-fairlead-hops idempotency-key".split()
RARE_FIELDS: Final = frozenset((*_RARE, *SESSION_HEADERS, AGENT_HEADER))
"""Fields that every request is asked for and few have."""
_MODEL_PATH: Final = b"/v1/models/"
_PLAIN_HINT: Final = "send plain JSON; Codex does with `enable_request_compression = false` under `[features]`"
_STRAY_CONTROL: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_STRAY_CONTROL_PARTIAL: Final = re.compile(rb"(?<!\r)\n|\r[^\n]|\x00")

_MAX_EMPTY_LINES: Final = 16
_LEADING_EMPTY_LINES: Final = re.compile(rb"(?:\r\n){0,%d}" % (_MAX_EMPTY_LINES + 1))

AWAITING_REQUEST: Final = 1
AWAITING_HEAD_END: Final = 2
AWAITING_BODY_END: Final = 3


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
            raise _too_long(limits)
        if self._received_bytes > limits.body_wire_factor * len(self._data) + 2 * limits.trailer_bytes and end is None:
            raise BodyTooLarge("the chunked body spends far more bytes on framing than on data")
        return None if end is None else data[end:]

    def body(self) -> bytes:
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


class RequestHead:
    """A parsed request head.

    path: without query and scheme, percent-decoded, except slashes outside of the names of models;
        slashes at its end, and further ones in a row, are left out.
    query: as received.
    version: 10 or 11.
    length: None for a chunked body.
    fields: names in lower case, without Content-Length.
    forwarded_fields, dropped_fields: cache of the request encoder; the fields that engines get, as
        text, and the names of unusual ones that they do not get.
    is_checked, response_fields: cache of `cors`; whether the head has passed, and header
        text for all of its answers.
    caller_cache: cache of `api_keys`; the caller, and the set of keys in which its key was
        found.
    """

    __slots__ = (
        "_fields_by_name",
        "_has_rare",
        "caller_cache",
        "dropped_fields",
        "expects_continue",
        "fields",
        "forwarded_fields",
        "is_checked",
        "keep_alive",
        "length",
        "method",
        "path",
        "query",
        "response_fields",
        "version",
    )

    def __init__(
        self,
        method: str,
        path: str,
        fields: HeaderFields,
        version: int,
        length: int | None,
        keep_alive: bool,
        expects_continue: bool,
        query: bytes = b"",
    ) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.version = version
        self.length = length
        self.keep_alive = keep_alive
        self.expects_continue = expects_continue
        self.query = query
        self.forwarded_fields: bytes | None = None
        self.dropped_fields: tuple[bytes, ...] = ()
        self.is_checked = False
        self.response_fields = ""
        self.caller_cache: tuple[object, Caller] | None = None
        self._fields_by_name: dict[bytes, bytes] | None = None
        self._has_rare = True

    def get(self, name: bytes) -> bytes | None:
        """Returns the value of the first field with that lower-case name; None without one."""
        table = self._fields_by_name
        if table is None:
            table = self._fields_by_name = dict(reversed(self.fields))
            self._has_rare = not RARE_FIELDS.isdisjoint(table)
        return table.get(name)

    def get_rare(self, name: bytes) -> bytes | None:
        return self.get(name) if self._has_rare else None

    def first_rare(self, names: tuple[bytes, ...]) -> bytes | None:
        """Returns the first value of one of these names in `RARE_FIELDS` that is not empty."""
        if self._has_rare:
            for name in names:
                value = self.get(name)
                if value:
                    return value
        return None

    def with_content_length(self, length: int) -> "RequestHead":
        """Returns the head of a further request that differs only in its length."""
        if self._fields_by_name is None:
            self.get(b"")  # fills the table, which all copies then share
        head = RequestHead(
            self.method, self.path, self.fields, self.version, length, self.keep_alive, False, self.query
        )
        head.forwarded_fields = self.forwarded_fields
        head.dropped_fields = self.dropped_fields
        head.is_checked = self.is_checked
        head.response_fields = self.response_fields
        head.caller_cache = self.caller_cache
        head._fields_by_name = self._fields_by_name
        head._has_rare = self._has_rare
        return head


class HeadTemplate:
    """The text of a strictly parsed head, before and after the digits of its Content-Length.

    head_end: the offset at which the last matched head ended.
    """

    __slots__ = ("_head", "_max_body_bytes", "_prefix", "_prefix_bytes", "_suffix", "_suffix_bytes", "head_end")

    def __init__(self, prefix: bytes, suffix: bytes, head: RequestHead, limits: Limits) -> None:
        self._prefix = prefix
        self._suffix = suffix
        self._prefix_bytes = len(prefix)
        self._suffix_bytes = len(suffix)
        self._head = head
        self._max_body_bytes = limits.body_bytes
        self.head_end = 0

    def match(self, data: bytes) -> RequestHead | None:
        """Returns the head at the start of `data`.

        None if more than the digits differ, or if the body is too long.
        """
        if not data.startswith(self._prefix):
            return None
        position, length = self._prefix_bytes, 0
        end_of_digits = min(len(data), position + _MAX_LENGTH_DIGITS)
        while position < end_of_digits:  # faster than cutting the digits out and converting them
            digit = data[position] - _DIGIT_ZERO
            if digit < 0 or digit > 9:
                break
            length = length * 10 + digit
            position += 1
        end = position + self._suffix_bytes
        if position == self._prefix_bytes or length > self._max_body_bytes or data[position:end] != self._suffix:
            return None
        self.head_end = end
        return self._head.with_content_length(length)


class SharedTemplates:
    """The templates of recent heads of a port, for all of its connections.

    Why: connections of one client program send the same head. Parsed once for each, it takes 1.4 KB
    of each open stream.

    Why whole heads are the keys: a head may end with an API key. A comparison byte by byte with the
    head of another client would show by its time how much of it is equal.
    """

    __slots__ = ("_templates",)

    def __init__(self) -> None:
        self._templates: dict[bytes, HeadTemplate] = {}

    def find(self, raw: bytes) -> HeadTemplate | None:
        """Returns the template of an earlier head that differs only in its length; None without
        one.
        """
        key = _shared_key(raw)
        return None if key is None else self._templates.get(key)

    def add(self, raw: bytes, template: HeadTemplate) -> None:
        """Shares the template of a head. Forgets the oldest one if there are too many."""
        key = _shared_key(raw)
        if key is None:
            return
        if len(self._templates) >= _MAX_SHARED_TEMPLATES:
            del self._templates[next(iter(self._templates))]
        self._templates[key] = template


def _shared_key(raw: bytes) -> bytes | None:
    found = _LENGTH_FIELD.search(raw) if len(raw) <= _MAX_SHARED_BYTES else None
    return None if found is None else b"%b\0%b" % (raw[: found.start(1)], raw[found.end(1) :])


def create_template(raw: bytes, head: RequestHead, limits: Limits) -> HeadTemplate | None:
    """Returns a template for further heads of the connection.

    None if the request has no body with a Content-Length, or expects `100 Continue`.
    """
    found = _LENGTH_FIELD.search(raw) if head.length and not head.expects_continue else None
    if found is None:
        return None
    return HeadTemplate(raw[: found.start(1)], raw[found.end(1) :] + b"\r\n\r\n", head, limits)


def check_partial_head(received: bytes | bytearray, start: int, limits: Limits) -> None:
    """Raises BadRequest or a subclass if an incomplete head can no longer become valid.

    start: number of bytes that were checked before.
    """
    if not received[0:1].isalpha():
        raise BadRequest("this is not an HTTP request", code="malformed_http")
    if _STRAY_CONTROL_PARTIAL.search(received, max(0, start - 1)):
        raise BadRequest("the request head holds a bare CR, a bare LF or a NUL", code="malformed_http")
    if len(received) > limits.request_line_bytes and received.find(b"\r\n", 0, limits.request_line_bytes + 2) < 0:
        raise TargetTooLong(f"the request line is longer than {limits.request_line_bytes} bytes")
    if len(received) > limits.request_line_bytes + limits.header_bytes:
        raise HeadTooLarge(f"the header fields are longer than {limits.header_bytes} bytes")


def parse_head(raw: bytes, limits: Limits) -> RequestHead:
    """Parses a complete head, without its final empty line. Raises BadRequest and its
    subclasses.
    """
    line_end = raw.find(b"\r\n")
    line_end = len(raw) if line_end < 0 else line_end
    if line_end > limits.request_line_bytes:
        raise TargetTooLong(f"the request line is longer than {limits.request_line_bytes} bytes")
    if len(raw) - line_end > limits.header_bytes:
        raise HeadTooLarge(f"the header fields are longer than {limits.header_bytes} bytes")
    line = _REQUEST_LINE.fullmatch(raw, 0, line_end)
    if line is None or _FIELD_LINES.fullmatch(raw, line_end) is None:
        raise _malformed_head(raw, line is None)
    method, target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise UnsupportedHttpVersion("the HTTP version must be 1.0 or 1.1")
    fields: HeaderFields = []
    for text in raw[line_end + 2 :].split(b"\r\n") if line_end < len(raw) else ():
        name, _, value = text.partition(b":")
        fields.append((name.lower(), value.strip(b" \t")))
    if len(fields) > limits.headers_count:
        raise HeadTooLarge(f"the request has more than {limits.headers_count} header fields")
    method_name = method.decode("ascii")
    try:
        return _parse_framing(method_name, target, 11 if minor == b"1" else 10, fields, limits)
    except BadRequest as error:
        with contextlib.suppress(BadRequest):
            error.path = _parse_path(method_name, target)
        raise


def _parse_framing(method: str, target: bytes, version: int, fields: HeaderFields, limits: Limits) -> RequestHead:
    by_name = dict(fields)
    # Framing is never guessed: a proxy in front that reads it otherwise would let a client smuggle
    # a second request.
    if len(by_name) != len(fields):
        _reject_repeats(fields)
    host = by_name.get(b"host")
    if (host is None and version == 11) or (host is not None and _HOST_VALUE.fullmatch(host) is None):
        raise BadRequest("the Host header is missing or malformed", code="malformed_http", param="host")
    chunked = b"transfer-encoding" in by_name
    length: int | None = None
    if chunked:
        if version == 10 or b"content-length" in by_name or by_name[b"transfer-encoding"].lower() != b"chunked":
            raise BadRequest(
                "Transfer-Encoding must be exactly `chunked`, on HTTP/1.1, without Content-Length",
                code="malformed_http",
                param="transfer-encoding",
            )
    else:
        length = _parse_length(by_name.get(b"content-length"), limits)
    if b"content-encoding" in by_name and by_name[b"content-encoding"].lower() not in (b"", b"identity"):
        raise UnsupportedBodyType(
            "compressed request bodies are not accepted", param="content-encoding", hint=_PLAIN_HINT
        )
    connection = b",".join(value for name, value in fields if name == b"connection").lower()
    options = {option.strip(b" \t") for option in connection.split(b",")} if connection else frozenset()
    keep_alive = b"close" not in options and (version == 11 or b"keep-alive" in options)
    expect = by_name.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise UnsupportedExpectation("the only supported expectation is 100-continue", param="expect")
    expects_continue = expect is not None and version == 11 and length != 0
    query = target.partition(b"#")[0].partition(b"?")[2]
    fields = [pair for pair in fields if pair[0] != b"content-length"]
    return RequestHead(
        method, _parse_path(method, target), fields, version, length, keep_alive, expects_continue, query
    )


def _reject_repeats(fields: HeaderFields) -> None:
    names = [name for name, _ in fields]
    for name in _SINGLE_FIELDS:
        if names.count(name) > 1:
            word = name.decode("ascii")
            raise BadRequest(f"the header {word} is given more than once", code="malformed_http", param=word)


def _parse_length(value: bytes | None, limits: Limits) -> int:
    if value is None:
        return 0
    if _LENGTH_VALUE.fullmatch(value) is None:
        raise BadRequest("Content-Length is not a plain number", code="malformed_http", param="content-length")
    length = int(value)
    if length > limits.body_bytes:
        raise _too_long(limits, "content-length")
    return length


def _too_long(limits: Limits, param: str | None = None) -> BodyTooLarge:
    hint = "send a shorter one, or ask the operator of the gateway for a larger FAIRLEAD_BODY_SIZE"
    return BodyTooLarge(f"the body is longer than {limits.body_bytes} bytes", param=param, hint=hint)


def _parse_path(method: str, target: bytes) -> str:
    """Returns the path of an origin-form or absolute-form target; `*` is returned unchanged."""
    if target == b"*" and method == "OPTIONS":
        return "*"
    scheme, found, rest = target.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        parts = _AUTHORITY.fullmatch(rest)
        if parts is None or b"@" in parts[1] or _HOST_VALUE.fullmatch(parts[1]) is None:
            raise BadRequest("the request target is malformed", code="malformed_http")
        target = parts[2] if parts[2].startswith(b"/") else b"/" + parts[2]
    if not target.startswith(b"/"):
        raise BadRequest("the request target must be a path or an absolute URL", code="malformed_http")
    path = target.partition(b"?")[0].partition(b"#")[0]
    text = _decode(path) if b"%" in path else path.decode("ascii")
    if text.endswith("/") or text.find("//") >= 0:
        text = "/" + "/".join([part for part in text.split("/") if part])
    return text


def _decode(path: bytes) -> str:
    """Returns a path percent-decoded. Slashes stay encoded, except under `/v1/models/`.

    Why: a proxy in front that blocks paths might not read `%2F` as a slash. Decoded here, such a
    path could reach a blocked one.
    """
    if not path.startswith(_MODEL_PATH):
        path = path.replace(b"%2f", b"%252F").replace(b"%2F", b"%252F")
    return unquote_to_bytes(path).decode("utf-8", "replace")


def _malformed_head(raw: bytes, in_request_line: bool) -> BadRequest:
    """Returns an error that names the defect without repeating received bytes."""
    if _STRAY_CONTROL.search(raw):
        what = "it holds a bare CR, a bare LF or a NUL"
    elif in_request_line:
        what = "its first line is not `METHOD target HTTP/1.1`"
    elif b"\r\n " in raw or b"\r\n\t" in raw:
        what = "it holds a folded header line"
    else:
        what = "a header line is not `name: value`"
    return BadRequest(f"the request head is malformed: {what}", code="malformed_http")


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
        return len(self._buffer) > self._limits.header_bytes or (self._buffer.count(b"\r\n\r\n") >= PIPELINED_REQUESTS)

    @property
    def unparsed_bytes(self) -> int:
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
