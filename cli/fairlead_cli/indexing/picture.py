"""One model's index as Redis has it at this moment: the mirror that a gateway would make of it, and everything around it.

The mirror is loaded by the very code that gateways use, so that what is told here is what they see. Beside it are read the lease
(who writes), the headers of the instances, what the indexer notes of them, and the ends of the stream.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

from redis.exceptions import ResponseError

from fairlead.clock import Clock
from fairlead.limits import Limits
from fairlead_cli.errors import BadIndex
from fairlead_cli.indexing.reaching import away
from fairlead_kvstore import keys
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index.hints import Hints, unpacked
from fairlead_kvstore.index.layout import AT, DATA, META, Header, Meta, changes_at, decode, header_instance, parse_at
from fairlead_kvstore.index.left import fields
from fairlead_kvstore.index.load import Loaded, NotLoaded, load
from fairlead_kvstore.index.mirror import IndexMirror
from fairlead_kvstore.index.notes import NOTES, Note, Notes
from fairlead_kvstore.redis import RedisLink

_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.3
"""An indexer that has just begun writes everything down first, and an instance's parts may be replaced while they are read."""
_HEADERS_AT_ONCE: Final = 64

Pause = Callable[[float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may write, and for how long without another word."""

    epoch: int
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Tail:
    """The stream of changes: how long it is, its first and last ``(epoch, sequence)``, and when the last was written (Unix)."""

    entries: int = 0
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None
    wall: float | None = None


@dataclass(slots=True)
class Picture:
    """``ahead``: Unix time less monotonic time. ``loaded`` is None when no mirror can be made, for ``trouble``."""

    model_key: str
    wall: float
    now: float
    ahead: float
    at: tuple[int, int] | None = None
    meta: Meta | None = None
    lease: Lease | None = None
    tail: Tail = field(default_factory=Tail)
    notes: Notes | None = None
    hints: Hints | None = None
    headers: dict[str, Header] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    loaded: Loaded | None = None
    trouble: str = ""

    @property
    def mirror(self) -> IndexMirror:
        """What gateways have. Raises BadIndex."""
        if self.loaded is None:
            hint = "gateways go on with what they had; an indexer that leads writes everything anew when it must"
            raise BadIndex(f"the index of {self.model_key} cannot be read: {self.trouble}", hint=hint)
        return self.loaded.mirror

    @property
    def instances(self) -> list[str]:
        """All that are known of, by any source."""
        noted = self.notes.instances if self.notes is not None else {}
        told = self.loaded.mirror.instances() if self.loaded is not None else ()
        return sorted({*told, *noted, *self.headers, *self.unreadable} - {"hints"})

    def note(self, instance: str) -> Note | None:
        """What the indexer says of it; None when it says nothing."""
        return None if self.notes is None else self.notes.instances.get(instance)

    def block_size(self, instance: str) -> int | None:
        """The tokens of one of its blocks; None when nothing of it was seen yet."""
        note, header = self.note(instance), self.headers.get(instance)
        noted = None if note is None else note.block_size
        return noted or (None if header is None else header.slice.block_size)

    @property
    def written(self) -> float | None:
        """When something was last written, Unix seconds."""
        told = (self.notes, self.meta)
        times = [self.tail.wall, *(one.wall for one in told if one is not None)]
        return max((one for one in times if one is not None), default=None)


async def look(link: RedisLink, model_key: str, clock: Clock, limits: Limits, pause: Pause = asyncio.sleep) -> Picture:
    """How it is now; for some seconds an indexer that is writing it down is waited for. Raises NoIndex."""
    for attempt in range(_ATTEMPTS):
        picture = await _once(link, model_key, clock, limits)
        if picture.loaded is not None or picture.lease is None or attempt == _ATTEMPTS - 1:
            break
        await pause(_PAUSE_SECONDS)
    return picture


async def _once(link: RedisLink, model_key: str, clock: Clock, limits: Limits) -> Picture:
    now, wall = clock.now(), clock.wall()
    picture = Picture(model_key, wall, now, wall - now)
    own, idx, ev = keys.index_keys(model_key)
    replies = await link.run(
        [
            ("HMGET", idx, AT, META, NOTES),
            ("GET", own),
            ("PTTL", own),
            ("XLEN", ev),
            ("XRANGE", ev, "-", "+", "COUNT", 1),
            ("XREVRANGE", ev, "+", "-", "COUNT", 1),
            ("HKEYS", idx),
            ("GET", keys.hints(model_key)),
        ]
    )
    if replies is None:
        raise away(link)
    for reply in replies:
        if isinstance(reply, ResponseError):
            picture.trouble = f"Redis refuses: {str(reply).splitlines()[0][:120]}"
            return picture
    (at, meta, notes), lease, left, length, first, last, names, hints = replies
    picture.hints = unpacked(hints)
    picture.at, picture.lease = parse_at(at), parse_lease(lease, left)
    picture.meta = _value(picture, "meta", meta, Meta)
    picture.notes = _value(picture, "notes", notes, Notes)
    try:
        picture.tail = Tail(int(length), _id(first), _id(last), _wall(last, model_key))
    except (UnreadableError, KeyError, TypeError, IndexError, ValueError) as error:
        picture.unreadable["the last entry"] = str(error)[:120]
    await _headers(link, idx, picture, sorted(names))
    found = await load(link, model_key, picture.ahead, now, limits)
    if isinstance(found, NotLoaded):
        picture.trouble = found.why
    else:
        picture.loaded = found
        picture.unreadable |= found.unreadable
    return picture


async def _headers(link: RedisLink, idx: str, picture: Picture, names: list[bytes]) -> None:
    """Of the instances that count, which is those of the present epoch."""
    wanted = [name for name in names if header_instance(name) is not None]
    for start in range(0, len(wanted), _HEADERS_AT_ONCE):
        some = wanted[start : start + _HEADERS_AT_ONCE]
        values = await fields(link, idx, some)
        if values is None:
            raise away(link)
        for name, data in zip(some, values, strict=True):
            instance = header_instance(name) or ""
            header = _value(picture, instance, data, Header)
            if header is not None and (picture.at is None or header.epoch == picture.at[0]):
                picture.headers[instance] = header


def parse_lease(data: Any, milliseconds: Any) -> Lease | None:
    """The lease, if there is one."""
    if not isinstance(data, bytes) or not isinstance(milliseconds, int):
        return None
    epoch, colon, holder = data.partition(b":")
    if not colon or not epoch.isdigit() or len(epoch) > 20:
        return None
    return Lease(int(epoch), holder.decode("utf-8", "replace")[:256], max(0, milliseconds) / 1e3)


def _value(picture: Picture, name: str, data: Any, kind: type[Any]) -> Any:
    if data is None:
        return None
    try:
        return decode(data, kind)
    except UnreadableError as error:
        picture.unreadable[name] = error.message
        return None


def _wall(reply: Any, model_key: str) -> float | None:
    return changes_at(reply[0][1][DATA], model_key, 0.0)[0] if reply else None


def _id(reply: Any) -> tuple[int, int] | None:
    if not reply:
        return None
    epoch, _, sequence = bytes(reply[0][0]).partition(b"-")
    return int(epoch), int(sequence)
