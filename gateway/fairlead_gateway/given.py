"""Whether a client gave a field that Fairlead does not read otherwise. Such a field is absent when it is ``null`` or ``false``."""

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Raw, UnsetType

_ABSENT = (b"null", b"false")
_MEMBERS = msgspec.json.Decoder(dict[str, Raw])
_NOT_THERE = Raw(b"null")


def value(raw: Raw | UnsetType) -> bool:
    """Whether a field was given a value; ``null`` is none."""
    return raw is not UNSET and bytes(raw) != b"null"


def any_of(marks: Iterable[bytes], body: bytes) -> bool:
    """Whether one of the fields is on in a body that has been parsed before. ``marks`` are the names in quotes: they are searched for
    first, since most bodies hold none of them."""
    seen = [mark for mark in marks if mark in body]
    if not seen:
        return False
    members = _MEMBERS.decode(body)
    return any(bytes(members.get(mark[1:-1].decode(), _NOT_THERE)) not in _ABSENT for mark in seen)
