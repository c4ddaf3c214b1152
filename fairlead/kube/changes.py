"""What a watch tells: lines of JSON, each one change of one object."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from fairlead.kube.errors import Unreachable, error_from
from fairlead.kube.resource import Manifest


class ChangeKind(StrEnum):
    """What happened. A bookmark carries only how far the watch has come."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"
    BOOKMARK = "BOOKMARK"


@dataclass(frozen=True, slots=True)
class Change:
    """One change. ``object`` is the object after it; of a deleted one, its last state."""

    kind: ChangeKind
    object: Manifest


class Lines:
    """Cuts bytes as they come into whole lines; a line of more than ``most`` bytes raises Unreachable."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rest = b""

    def take(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their ends."""
        *whole, rest = (self._rest + data if self._rest else data).split(b"\n")
        if len(rest) > self._most:
            raise Unreachable(f"an event of a watch has more than {self._most} bytes")
        self._rest = rest
        return (line for line in whole if line.strip())


def change_of(line: bytes, asked: str) -> Change:
    """One line of a watch. Raises the error that an ``ERROR`` event holds (Gone, most often), Unreachable for what is no event."""
    try:
        event = msgspec.json.decode(line)
        kind, found = event["type"], event["object"]
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise Unreachable(f"{asked}: what came is no event of a watch") from error
    if kind == "ERROR":
        raise error_from(found if isinstance(found, dict) else {}, asked)
    if not isinstance(found, dict) or kind not in ChangeKind.__members__:
        raise Unreachable(f"{asked}: an event of the kind {str(kind)[:50]!r} is not known")
    return Change(ChangeKind(kind), found)
