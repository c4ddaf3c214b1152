"""The head of a request, read strictly, once, by one piece of code: what this file accepts is what the request is.

Two readers that disagree about where a request ends can be made to see different requests (smuggling), so nothing here is
forgiving: CRLF line ends only, no folded lines, one Host, at most one of Content-Length and Transfer-Encoding and that
only once, ``chunked`` the only coding and never on HTTP/1.0. Nothing of the received framing is passed on: requests to
engines are framed anew.

A client sends much the same head with every request of a connection; only Content-Length differs. ``Template`` knows the last
head that was read strictly, and knows the next one again when it is the same text around other digits.
"""

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from fairlead.limits import Limits
from fairlead_gateway.errors import (
    BadExpectation,
    BadRequest,
    BadVersion,
    BodyTooLarge,
    BodyType,
    HeadTooLarge,
    TargetTooLong,
)

Fields = list[tuple[bytes, bytes]]

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE: Final = re.compile(rb"([A-Za-z][A-Za-z0-9_-]*) ([!-~]+) HTTP/([0-9])\.([0-9])")
_FIELDS: Final = re.compile(rb"(?:\r\n" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*)*")
_HOST: Final = re.compile(rb"[0-9A-Za-z\-._~%!$&'()*+,;=:\[\]]*")
_AUTHORITY: Final = re.compile(rb"([^/?#]+)(.*)")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_LENGTH_DIGITS: Final = 15
_ZERO: Final = 0x30  # the digit
_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]+)(?=[ \t]*(?:\r\n|\Z))", re.IGNORECASE)
_STRAY: Final = re.compile(rb"(?<!\r)\n|\r(?!\n)|\x00")
_STRAY_PARTIAL: Final = re.compile(rb"(?<!\r)\n|\r[^\n]|\x00")


class Head:
    """``path`` is without query and scheme, percent-decoded; ``query`` is as it came; ``length`` is None for a chunked body.

    ``fields`` are without Content-Length. ``passed_on`` is for ``wire``: what of them engines get, once somebody has asked.
    ``shown`` is for ``keys``: whose key is in them, and among which keys it was found.
    """

    __slots__ = (
        "_table",
        "continues",
        "fields",
        "keep_alive",
        "length",
        "method",
        "passed_on",
        "path",
        "query",
        "shown",
        "version",
    )

    def __init__(
        self,
        method: str,
        path: str,
        fields: Fields,
        version: int,  # 10 or 11
        length: int | None,
        keep_alive: bool,
        continues: bool,
        query: bytes = b"",
    ) -> None:
        self.method = method
        self.path = path
        self.fields = fields
        self.version = version
        self.length = length
        self.keep_alive = keep_alive
        self.continues = continues
        self.query = query
        self.passed_on: bytes | None = None
        self.shown: tuple[object, str] | None = None
        self._table: dict[bytes, bytes] | None = None

    def get(self, name: bytes) -> bytes | None:
        """The first field of that (lower-case) name."""
        table = self._table
        if table is None:
            table = self._table = dict(reversed(self.fields))
        return table.get(name)

    def again(self, length: int) -> "Head":
        """The head of a further request that differs in its length only."""
        self.get(b"")  # so that all share one table
        head = Head(self.method, self.path, self.fields, self.version, length, self.keep_alive, False, self.query)
        head.passed_on = self.passed_on
        head.shown = self.shown
        head._table = self._table
        return head


class Template:
    """The text of a head that was read strictly, around the digits of its Content-Length, with the empty line behind it.

    ``end`` is where the head ended that was read last.
    """

    __slots__ = ("_after", "_after_bytes", "_before", "_head", "_most", "_start", "end")

    def __init__(self, before: bytes, after: bytes, head: Head, limits: Limits) -> None:
        self._before = before
        self._after = after
        self._start = len(before)
        self._after_bytes = len(after)
        self._head = head
        self._most = limits.body_bytes
        self.end = 0

    def read(self, data: bytes) -> Head | None:
        """The head that ``data`` begins with, None when it is not the same text around other digits."""
        if not data.startswith(self._before):
            return None
        at, length = self._start, 0
        most = min(len(data), at + _LENGTH_DIGITS)
        while at < most:  # by hand: it is four digits, and to cut them out and convert them is a dozen calls
            digit = data[at] - _ZERO
            if digit < 0 or digit > 9:
                break
            length = length * 10 + digit
            at += 1
        end = at + self._after_bytes
        if at == self._start or length > self._most or data[at:end] != self._after:
            return None
        self.end = end
        return self._head.again(length)


def template(raw: bytes, head: Head, limits: Limits) -> Template | None:
    """What to know further heads of the connection by; None for a request that has no plain body or an expectation."""
    found = _LENGTH_FIELD.search(raw) if head.length and not head.continues else None
    if found is None:
        return None
    return Template(raw[: found.start(1)], raw[found.end(1) :] + b"\r\n\r\n", head, limits)


def check_partial(part: bytes | bytearray, start: int, limits: Limits) -> None:
    """Refuse a head that can no longer become right, so that nobody waits for its end. ``start``: checked before."""
    if not part[0:1].isalpha():
        raise BadRequest("this is not an HTTP request", code="malformed_http")
    if _STRAY_PARTIAL.search(part, max(0, start - 1)):
        raise BadRequest("the request head holds a bare CR, a bare LF or a NUL", code="malformed_http")
    if len(part) > limits.request_line_bytes and part.find(b"\r\n", 0, limits.request_line_bytes + 2) < 0:
        raise TargetTooLong(f"the request line is longer than {limits.request_line_bytes} bytes")
    if len(part) > limits.request_line_bytes + limits.header_bytes:
        raise HeadTooLarge(f"the header fields are longer than {limits.header_bytes} bytes")


def read_head(raw: bytes, limits: Limits) -> Head:
    """Read a whole head (without its final empty line). Raises BadRequest and its kin."""
    line_end = raw.find(b"\r\n")
    line_end = len(raw) if line_end < 0 else line_end
    if line_end > limits.request_line_bytes:
        raise TargetTooLong(f"the request line is longer than {limits.request_line_bytes} bytes")
    if len(raw) - line_end > limits.header_bytes:
        raise HeadTooLarge(f"the header fields are longer than {limits.header_bytes} bytes")
    line = _LINE.fullmatch(raw, 0, line_end)
    if line is None or _FIELDS.fullmatch(raw, line_end) is None:
        raise _malformed(raw, line is None)
    method, target, major, minor = line.groups()
    if major != b"1" or minor not in b"01":
        raise BadVersion("only HTTP/1.0 and HTTP/1.1 are spoken here")
    fields: Fields = []
    for text in raw[line_end + 2 :].split(b"\r\n") if line_end < len(raw) else ():
        name, _, value = text.partition(b":")
        fields.append((name.lower(), value.strip(b" \t")))
    if len(fields) > limits.headers_count:
        raise HeadTooLarge(f"more than {limits.headers_count} header fields")
    return _framed(method.decode("ascii"), target, 11 if minor == b"1" else 10, fields, limits)


def _framed(method: str, target: bytes, version: int, fields: Fields, limits: Limits) -> Head:
    table = dict(fields)
    if len(table) != len(fields):
        _refuse_repeats(fields)
    host = table.get(b"host")
    if (host is None and version == 11) or (host is not None and _HOST.fullmatch(host) is None):
        raise BadRequest("the Host header is missing or malformed", code="malformed_http", param="host")
    chunked = b"transfer-encoding" in table
    length: int | None = None
    if chunked:
        if version == 10 or b"content-length" in table or table[b"transfer-encoding"].lower() != b"chunked":
            raise BadRequest(
                "Transfer-Encoding must be exactly `chunked`, on HTTP/1.1, without Content-Length",
                code="malformed_http",
                param="transfer-encoding",
            )
    else:
        length = _length(table.get(b"content-length"), limits)
    if b"content-encoding" in table and table[b"content-encoding"].lower() not in (b"", b"identity"):
        raise BodyType("compressed request bodies are not accepted", param="content-encoding", hint="send plain JSON")
    connection = b",".join(value for name, value in fields if name == b"connection").lower()
    options = {option.strip(b" \t") for option in connection.split(b",")} if connection else frozenset()
    keep_alive = b"close" not in options and (version == 11 or b"keep-alive" in options)
    expect = table.get(b"expect")
    if expect is not None and expect.lower() != b"100-continue":
        raise BadExpectation("the only expectation met here is 100-continue", param="expect")
    continues = expect is not None and version == 11 and length != 0
    query = target.partition(b"#")[0].partition(b"?")[2]
    fields = [pair for pair in fields if pair[0] != b"content-length"]
    return Head(method, _path(method, target), fields, version, length, keep_alive, continues, query)


def _refuse_repeats(fields: Fields) -> None:
    names = [name for name, _ in fields]
    for name in (b"host", b"content-length", b"transfer-encoding", b"expect", b"content-encoding"):
        if names.count(name) > 1:
            word = name.decode("ascii")
            raise BadRequest(f"the header {word} is given more than once", code="malformed_http", param=word)


def _length(value: bytes | None, limits: Limits) -> int:
    if value is None:
        return 0
    if _LENGTH.fullmatch(value) is None:
        raise BadRequest("Content-Length is not a plain number", code="malformed_http", param="content-length")
    length = int(value)
    if length > limits.body_bytes:
        raise BodyTooLarge(f"the body is longer than {limits.body_bytes} bytes", param="content-length")
    return length


def _path(method: str, target: bytes) -> str:
    """The path of an origin-form or absolute-form target; ``*`` stays what it is."""
    if target == b"*" and method == "OPTIONS":
        return "*"
    scheme, found, rest = target.partition(b"://")
    if found and scheme.lower() in (b"http", b"https"):
        parts = _AUTHORITY.fullmatch(rest)
        if parts is None or b"@" in parts[1] or _HOST.fullmatch(parts[1]) is None:
            raise BadRequest("the request target is malformed", code="malformed_http")
        target = parts[2] if parts[2].startswith(b"/") else b"/" + parts[2]
    if not target.startswith(b"/"):
        raise BadRequest("the request target must be a path or an absolute URL", code="malformed_http")
    path = target.partition(b"?")[0].partition(b"#")[0]
    return unquote_to_bytes(path).decode("utf-8", "replace") if b"%" in path else path.decode("ascii")


def _malformed(raw: bytes, in_line: bool) -> BadRequest:
    """Say what is wrong without repeating a byte of it."""
    if _STRAY.search(raw):
        what = "it holds a bare CR, a bare LF or a NUL"
    elif in_line:
        what = "its first line is not `METHOD target HTTP/1.1`"
    elif b"\r\n " in raw or b"\r\n\t" in raw:
        what = "it holds a folded header line"
    else:
        what = "a header line is not `name: value`"
    return BadRequest(f"the request head is malformed: {what}", code="malformed_http")
