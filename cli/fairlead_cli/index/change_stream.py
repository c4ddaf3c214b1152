"""``fairlead index watch``: what changes in the index, one line a batch, as it is written.

The stream of changes is followed as gateways follow it. What was cut off meanwhile, a new epoch and a Redis that goes away are
said in a line of their own, on standard error, so that what is on standard output is changes only.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from redis.exceptions import ResponseError

from fairlead.limits import Limits
from fairlead_cli.errors import UnusableIndex
from fairlead_cli.index.connection import unreachable_error
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    HintsAdded,
    HintsExpired,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index.bootstrap import parse_entries, read_command
from fairlead_kvstore.index.format import POSITION_FIELD, decode_entry_with_time, decode_position
from fairlead_kvstore.redis import keys
from fairlead_kvstore.redis.link import RedisLink

_CHANGE_KINDS: Final[dict[str, tuple[type[Any], ...]]] = {
    "stored": (BlocksStored,),
    "removed": (BlocksRemoved,),
    "cleared": (InstanceCleared, InstanceDetached),
    "marked": (CompletenessChanged,),
}
SHARED_STORE: Final = "shared store"
"""The name under which hints are told, which belong to no instance."""


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """What is shown: instances whose id begins so, and one kind of change; None: all."""

    instance: str | None = None
    kind: str | None = None

    def matches(self, one: Change) -> bool:
        """Whether this change is shown."""
        name = SHARED_STORE if isinstance(one, HintsAdded | HintsExpired) else one.instance
        if self.instance is not None and not name.startswith(self.instance):
            return False
        return self.kind is None or isinstance(one, _CHANGE_KINDS[self.kind])


class InstanceChange(msgspec.Struct, omit_defaults=True):
    """What one batch changed of one instance: blocks by tier; and words."""

    stored: dict[str, int] = {}
    removed: dict[str, int] = {}
    cleared: str = ""
    gone: bool = False
    complete: bool | None = None
    reason: str = ""
    hinted: int = 0
    expired: int = 0


class ChangeBatch(msgspec.Struct):
    """One entry of the stream; ``wall`` is when it was written, Unix seconds."""

    epoch: int
    sequence: int
    wall: float
    instances: dict[str, InstanceChange]


def build_batch(place: tuple[int, int], wall: float, changes: Sequence[Change], wanted: ChangeFilter) -> ChangeBatch:
    """What is shown of an entry; without instances when nothing is."""
    found = ChangeBatch(*place, wall, {})
    for one in changes:
        if wanted.matches(one):
            name = SHARED_STORE if isinstance(one, HintsAdded | HintsExpired) else one.instance
            _add_change(found.instances.setdefault(name, InstanceChange()), one)
    return found


def _add_change(to: InstanceChange, one: Change) -> None:
    if isinstance(one, BlocksStored):
        tier = one.tier.name.lower()
        to.stored[tier] = to.stored.get(tier, 0) + len(one.hashes)
    elif isinstance(one, BlocksRemoved):
        tier = one.tier.name.lower()
        to.removed[tier] = to.removed.get(tier, 0) + len(one.hashes)
    elif isinstance(one, InstanceCleared):
        to.cleared = one.reason or "cleared"
    elif isinstance(one, InstanceDetached):
        to.gone = True
    elif isinstance(one, CompletenessChanged):
        to.complete, to.reason = one.complete, one.reason
    elif isinstance(one, HintsAdded):
        to.hinted += len(one.hashes)
    else:
        to.expired += len(one.hashes)


def format_batch(found: ChangeBatch) -> str:
    """For people."""
    time = datetime.fromtimestamp(found.wall, UTC).strftime("%H:%M:%S.%f")[:-3]
    told = "; ".join(f"{name} {', '.join(_change_words(one))}" for name, one in found.instances.items())
    return f"{time}  {found.epoch}-{found.sequence}  {told}"


def _change_words(one: InstanceChange) -> Iterator[str]:
    for sign, counts in (("+", one.stored), ("-", one.removed)):
        for tier, count in counts.items():
            yield f"{sign}{count} {tier}"
    if one.cleared:
        yield f"cleared: {one.cleared}"
    if one.gone:
        yield "gone"
    if one.complete is not None:
        yield f"{'complete' if one.complete else 'incomplete'}: {one.reason}"
    if one.hinted:
        yield f"+{one.hinted} hints"
    if one.expired:
        yield f"-{one.expired} hints"


async def follow_changes(
    link: RedisLink,
    model_key: str,
    wanted: ChangeFilter,
    limits: Limits,
    on_batch: Callable[[ChangeBatch], None],
    count: int | None = None,
    on_notice: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
) -> None:
    """From now on, until ``count`` batches were shown. Raises NoIndex before it began, BadIndex for what cannot be read."""
    place = await _start_position(link, model_key)
    on_notice(f"watching {model_key} from {place[0]}-{place[1]}; Ctrl-C ends it")
    shown = 0
    while count is None or shown < count:
        replies = await link.run([read_command(model_key, *place)])
        if replies is None:
            on_notice(f"{link.describe()}; what changes meanwhile is shown when it is back, as far as it is kept")
            await link.wait_connected()
            continue
        if isinstance(replies[0], ResponseError):
            raise UnusableIndex(f"the stream of {model_key} is none: {str(replies[0]).splitlines()[0][:120]}")
        some = _read(replies[0], model_key)
        for epoch, sequence, data in some:
            if epoch != place[0]:
                on_notice(f"epoch {epoch} begins: an indexer has written everything anew")
            elif sequence != place[1] + 1:
                on_notice(f"{epoch}-{place[1] + 1} to {epoch}-{sequence - 1} were cut off before they could be read")
            place = (epoch, sequence)
            found = _batch(place, data, model_key, wanted, limits, on_notice)
            if found is not None and found.instances:
                on_batch(found)
                shown += 1
                if shown == count:
                    return
        if not some:
            await asyncio.sleep(limits.index_poll_seconds)


async def _start_position(link: RedisLink, model_key: str) -> tuple[int, int]:
    _, idx, _ = keys.index_keys(model_key)
    replies = await link.run([("HGET", idx, POSITION_FIELD)])
    if replies is None:
        raise unreachable_error(link)
    return decode_position(replies[0]) or (0, 0)


def _read(reply: Any, model_key: str) -> list[tuple[int, int, bytes]]:
    try:
        return parse_entries(reply)
    except UnreadableError as error:
        raise UnusableIndex(f"the stream of {model_key} cannot be read: {error.message}") from None


def _batch(
    place: tuple[int, int],
    data: bytes,
    model_key: str,
    wanted: ChangeFilter,
    limits: Limits,
    aside: Callable[[str], None],
) -> ChangeBatch | None:
    if len(data) > limits.index_entry_bytes:
        aside(f"{place[0]}-{place[1]} cannot be read: it has {len(data)} bytes")
        return None
    try:
        wall, changes = decode_entry_with_time(data, model_key, 0.0)
    except UnreadableError as error:
        aside(f"{place[0]}-{place[1]} cannot be read: {error.message}")
        return None
    return build_batch(place, wall, changes, wanted)
