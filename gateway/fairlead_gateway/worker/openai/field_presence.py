"""Whether a client gave a field that Fairlead does not read otherwise. Such a field is absent when it is ``null`` or ``false``."""

from collections.abc import Iterable

import msgspec
from msgspec import UNSET, Raw, UnsetType

_DISABLED_VALUES = (b"null", b"false")
_MEMBERS_DECODER = msgspec.json.Decoder(dict[str, Raw])
_ABSENT_MEMBER = Raw(b"null")


def has_value(raw: Raw | UnsetType) -> bool:
    """Whether a field was given a value; ``null`` is none."""
    return raw is not UNSET and bytes(raw) != b"null"


def is_any_enabled(quoted_names: Iterable[bytes], body: bytes) -> bool:
    """Whether one of the fields is on in a body that has been parsed before. ``marks`` are the names in quotes: they are searched for
    first, since most bodies hold none of them."""
    seen = [mark for mark in quoted_names if mark in body]
    if not seen:
        return False
    members = _MEMBERS_DECODER.decode(body)
    return any(bytes(members.get(mark[1:-1].decode(), _ABSENT_MEMBER)) not in _DISABLED_VALUES for mark in seen)
