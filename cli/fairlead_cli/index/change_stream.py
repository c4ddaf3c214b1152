"""``fairlead index watch``: changes of the index as they are written, one line for each batch.

Lost entries, a new epoch and a lost Redis are
reported on standard error, so that standard output has changes only.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from fairlead_cli.exit_codes import IndexUnreachable, UnusableIndex
from fairlead_cli.index.connection import run_commands
from fairlead_cli.index.loaded_index import read_entries
from fairlead_kvstore.blockstore.changes import (
    BlocksRemoved,
    BlocksStored,
    Change,
    CompletenessChanged,
    InstanceCleared,
    InstanceDetached,
)
from fairlead_kvstore.blockstore.storage_tiers import StorageTier, is_shared_store
from fairlead_kvstore.errors import UnreadableError
from fairlead_kvstore.index import redis_keys
from fairlead_kvstore.index.format import POSITION_FIELD, decode_entry_with_time, decode_position
from fairlead_kvstore.redis.link import RedisLink

_POLL_SECONDS: Final = 0.02
_CHANGE_KINDS: Final[dict[str, tuple[type[Any], ...]]] = {
    "stored": (BlocksStored,),
    "removed": (BlocksRemoved,),
    "cleared": (InstanceCleared, InstanceDetached),
    "marked": (CompletenessChanged,),
}


@dataclass(frozen=True, slots=True)
class ChangeFilter:
    """The changes to show: instances whose id begins with ``instance``, and one kind; None means
    all.
    """

    instance: str | None = None
    kind: str | None = None

    def matches(self, change: Change) -> bool:
        """Whether a change is shown."""
        if self.instance is not None and not change.instance.startswith(self.instance):
            return False
        return self.kind is None or isinstance(change, _CHANGE_KINDS[self.kind])


class InstanceChange(msgspec.Struct, omit_defaults=True):
    """Changes of one batch to one instance or shared store: stored and removed blocks by tier, and
    other changes.
    """

    stored: dict[str, int] = {}
    removed: dict[str, int] = {}
    cleared: str = ""
    gone: bool = False
    complete: bool | None = None
    reason: str = ""


class ChangeBatch(msgspec.Struct):
    """One entry of the stream; ``wall`` is its Unix time."""

    epoch: int
    sequence: int
    wall: float
    instances: dict[str, InstanceChange]


def build_batch(
    position: tuple[int, int], wall: float, changes: Sequence[Change], filter_: ChangeFilter
) -> ChangeBatch:
    """Returns those changes of a stream entry that the filter lets through, by instance."""
    shown = ChangeBatch(*position, wall, {})
    for change in changes:
        if filter_.matches(change):
            _add_change(shown.instances.setdefault(change.instance, InstanceChange()), change)
    return shown


def _add_change(target: InstanceChange, change: Change) -> None:
    if isinstance(change, BlocksStored | BlocksRemoved):
        tier = StorageTier.REMOTE if is_shared_store(change.instance) else change.tier
        counts, name = target.stored if isinstance(change, BlocksStored) else target.removed, tier.name.lower()
        counts[name] = counts.get(name, 0) + len(change.hashes)
    elif isinstance(change, InstanceCleared):
        target.cleared = change.reason or "cleared"
    elif isinstance(change, InstanceDetached):
        target.gone = True
    else:
        target.complete, target.reason = change.complete, change.reason


def format_batch(change_batch: ChangeBatch) -> str:
    """Returns a batch as a line."""
    time = datetime.fromtimestamp(change_batch.wall, UTC).strftime("%H:%M:%S.%f")[:-3]
    text = "; ".join(
        f"{name} {', '.join(_change_words(instance_change))}"
        for name, instance_change in change_batch.instances.items()
    )
    return f"{time}  {change_batch.epoch}-{change_batch.sequence}  {text}"


def _change_words(instance_change: InstanceChange) -> Iterator[str]:
    for sign, counts in (("+", instance_change.stored), ("-", instance_change.removed)):
        for tier, count in counts.items():
            yield f"{sign}{count} {tier}"
    if instance_change.cleared:
        yield f"cleared: {instance_change.cleared}"
    if instance_change.gone:
        yield "gone"
    if instance_change.complete is not None:
        yield f"{'complete' if instance_change.complete else 'incomplete'}: {instance_change.reason}"


def _print_notice(text: str) -> None:
    print(text, file=sys.stderr)


async def follow_changes(
    link: RedisLink,
    model_key: str,
    filter_: ChangeFilter,
    on_batch: Callable[[ChangeBatch], None],
    count: int | None = None,
) -> None:
    """Calls ``on_batch`` for each batch with changes to show, ``count`` times; without end if None.

    Raises IndexUnreachable at the start, UnusableIndex for unreadable data.
    """
    position = await _start_position(link, model_key)
    _print_notice(f"watching {model_key} from {position[0]}-{position[1]}; Ctrl-C ends it")
    shown = 0
    while count is None or shown < count:
        try:
            new_entries = await read_entries(link, model_key, *position)
        except UnreadableError as error:
            raise UnusableIndex(f"the stream of {model_key} cannot be read: {error.message}") from None
        except IndexUnreachable:
            _print_notice(
                f"{link.describe()}; changes made meanwhile are shown after it is back, if Redis still has them"
            )
            await link.wait_connected()
            continue
        for epoch, sequence, data in new_entries:
            if epoch != position[0]:
                _print_notice(f"epoch {epoch} begins: an indexer has rewritten everything")
            elif sequence != position[1] + 1:
                _print_notice(
                    f"entries {epoch}-{position[1] + 1} to {epoch}-{sequence - 1} were removed before they could be read"
                )
            position = (epoch, sequence)
            shown_batch = _batch(position, data, filter_)
            if shown_batch is not None and shown_batch.instances:
                on_batch(shown_batch)
                shown += 1
                if shown == count:
                    return
        if not new_entries:
            await asyncio.sleep(_POLL_SECONDS)


async def _start_position(link: RedisLink, model_key: str) -> tuple[int, int]:
    _, idx, _ = redis_keys.index_keys(model_key)
    (value,) = await run_commands(link, ("HGET", idx, POSITION_FIELD))
    return decode_position(value) or (0, 0)


def _batch(
    position: tuple[int, int],
    data: bytes,
    filter_: ChangeFilter,
) -> ChangeBatch | None:
    try:
        wall, changes = decode_entry_with_time(data, 0.0)
    except UnreadableError as error:
        _print_notice(f"{position[0]}-{position[1]} cannot be read: {error.message}")
        return None
    return build_batch(position, wall, changes, filter_)
