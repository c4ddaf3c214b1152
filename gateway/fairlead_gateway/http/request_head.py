"""A strict parser of request heads. It is the only one, so requests have one interpretation.

Why: two parsers that disagree about the end of a request allow request smuggling. So the parser
accepts nothing doubtful. A head must have CRLF line ends, no folded lines and exactly one Host. At
most one of Content-Length and Transfer-Encoding may appear, and only once. `chunked` is the only
coding, never on HTTP/1.0. Requests to engines have their own framing; nothing of the received one
is forwarded. Headers with a key may appear once, so that a proxy and the gateway cannot take two
callers for the one who asks.

Clients send nearly the same head with every request of a connection; only Content-Length differs.
`HeadTemplate` recognizes such a head without parsing it again.
"""

import contextlib
import re
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
_DIGIT_ZERO: Final = 0x30  # the digit
_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=[ \t]*(?:\r\n|\Z))", re.IGNORECASE)
_SINGLE_FIELDS: Final = (
    *(b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"),
    *(b"authorization", b"x-api-key"),
)
RARE_FIELDS: Final = frozenset((b"x-request-id", b"x-request-timeout", b"x-session-id", b"x-fairlead-hops"))
"""Fields that every request is asked for and few have."""
_MODEL_PATH: Final = b"/v1/models/"
_STRAY_CONTROL: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_STRAY_CONTROL_PARTIAL: Final = re.compile(rb"(?<!\r)\n|\r[^\n]|\x00")


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
    is_checked, response_fields: cache of `browser_access`; whether the head has passed, and header
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
        """Returns the same for a name in `RARE_FIELDS`, at once where a head has none of them."""
        return self.get(name) if self._has_rare else None

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
    """Returns the head without the digits of its length; None for a long one, or without length."""
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
            "compressed request bodies are not accepted", param="content-encoding", hint="send plain JSON"
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
        raise BodyTooLarge(f"the body is longer than {limits.body_bytes} bytes", param="content-length")
    return length


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
