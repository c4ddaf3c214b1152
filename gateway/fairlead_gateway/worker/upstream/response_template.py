"""Recognizes an engine's response whose head differs from an earlier one only in its length.

llhttp parses the head of the first response on a connection. Further responses with the same bytes,
except the digits of Content-Length, need no parser if each arrives whole in one read. Anything else
goes to llhttp. A server that writes the date gets a new template each second.
"""

import re
from typing import Final

_LENGTH_FIELD: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_HEAD_END: Final = b"\r\n\r\n"
_DIGIT_ZERO: Final = 0x30


class ResponseTemplate:
    """The text of an accepted head with Content-Length, before and after its digits.

    body_start: offset of the body in the last data that matched.
    """

    __slots__ = ("_digits", "_fields", "_prefix", "_prefix_bytes", "_suffix", "_suffix_bytes", "body_start")

    def __init__(self, prefix: bytes, suffix: bytes, digits: int, fields: dict[bytes, bytes]) -> None:
        self._prefix = prefix
        self._prefix_bytes = len(prefix)
        self._suffix = suffix
        self._suffix_bytes = len(suffix)
        self._digits = digits
        self._fields = fields
        self.body_start = 0

    def match(self, data: bytes) -> bool:
        """Returns whether `data` is one whole response with this head, and a body."""
        if not data.startswith(self._prefix):
            return False
        position, length, size = self._prefix_bytes, 0, len(data)
        end_of_digits = min(size, position + self._digits)
        while position < end_of_digits:  # faster than cutting the digits out and converting them
            digit = data[position] - _DIGIT_ZERO
            if digit < 0 or digit > 9:
                break
            length = length * 10 + digit
            position += 1
        start = position + self._suffix_bytes
        if position == self._prefix_bytes or not length or start + length != size:
            return False
        self.body_start = start
        return data[position:start] == self._suffix

    def fields(self, data: bytes) -> dict[bytes, bytes]:
        """Returns the header fields of data that matched."""
        fields = self._fields.copy()
        fields[b"content-length"] = data[self._prefix_bytes : self.body_start - self._suffix_bytes]
        return fields


def create_template(data: bytes, fields: dict[bytes, bytes]) -> ResponseTemplate | None:
    """Returns the template of a complete response that was accepted.

    None unless `data` is the whole response, with a body of the length that its head states.

    fields: the header fields by lower-case name.
    """
    end = data.find(_HEAD_END) + len(_HEAD_END)
    if end < len(_HEAD_END) or b"content-length" not in fields or b"transfer-encoding" in fields:
        return None
    found = _LENGTH_FIELD.search(data, 0, end)
    if found is None or _LENGTH_FIELD.search(data, found.end(), end) is not None:
        return None
    length = int(found[1])
    if not length or len(data) != end + length:
        return None
    digits = found.end(1) - found.start(1)
    return ResponseTemplate(data[: found.start(1)], data[found.end(1) : end], digits, fields)
