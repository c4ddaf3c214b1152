"""A slice is kept for the next indexer, and is again what was kept; see ``kept.py``."""

from typing import Final

from fairlead_kvstore.errors import KeptError
from fairlead_kvstore.truth.adapters import Adapters
from fairlead_kvstore.truth.blocks import TICK_SECONDS
from fairlead_kvstore.truth.changes import Change
from fairlead_kvstore.truth.kept import KeptSlice, Rows, kept_table, parts, table
from fairlead_kvstore.truth.slice import Slice
from fairlead_kvstore.truth.tiers import Tier

_AS_IT_IS: Final = ("epoch", "block_size", "hybrid", "evicted_age_seconds", "group", "names_extras")
_TIMES: Final = ("awaited_until", "last_clear")


def keep(item: Slice, wall: float) -> tuple[KeptSlice, Rows]:
    """What another process needs to go on from here; the rows by the name of their part.

    ``wall`` is Unix time less monotonic time, in seconds.
    """
    parked = item.adapters.parked.items()
    tables = [kept_table(item.blocks), *(kept_table(blocks, content, name) for content, (name, blocks) in parked)]
    numbered = enumerate((item.blocks, *item.adapters))
    rows = {name: data for number, blocks in numbered for name, data in parts(blocks, number)}
    vague = [int(tier) for tier in sorted(item.vague)]
    kept = KeptSlice(wall, *item.standing.kept(), tables, item.adapters.keep(), vague, doubt=item.standing.doubt)
    for name in (*_AS_IT_IS, *_TIMES):
        setattr(kept, name, getattr(item, name))
    return kept, rows


def restore(item: Slice, kept: KeptSlice, rows: Rows, wall: float, now: float, out: list[Change]) -> None:
    """Be what was kept, as if the stream had broken off at ``now``. Raises KeptError, having changed nothing.

    The blocks are not told as changes: they are where the slice was kept.
    """
    later = kept.wall - wall
    shift = round(later / TICK_SECONDS)
    names = len(kept.adapters.names)
    tables = [table(one, number, rows, names, shift) for number, one in enumerate(kept.tables)]
    if not tables:
        raise KeptError("nothing was kept", reason="rows")
    for name in _AS_IT_IS:
        setattr(item, name, getattr(kept, name))
    for name in _TIMES:
        then = getattr(kept, name)
        setattr(item, name, None if then is None else then + later)
    item.vague = {Tier(tier) for tier in kept.vague if tier in (Tier.CPU, Tier.DISK)}
    item.blocks, *others = tables
    item.adapters = Adapters(item.instance, item.blocks, item.limits.kv_adapter_versions)
    named = zip(kept.tables[1:], others, strict=True)
    item.adapters.restore(kept.adapters, {one.content: (one.name, blocks) for one, blocks in named})
    standing = (kept.complete, kept.reason, kept.since + later)
    item.standing.restore(standing, item.adapters.doubt(), "the indexer was restarted", now, out)
