"""``fairlead index stats``: who writes the index of a model, its position, and the contents of each
instance.

``unique`` blocks are on no other instance: a scale-down would lose them. A gateway's status also
knows which of them were used recently.
``since_written`` is the number of batches that were written since the instance was as a whole.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairlead.units import format_duration
from fairlead_cli.formatting import UNKNOWN, printable
from fairlead_cli.index.loaded_index import LoadedIndex
from fairlead_cli.index.snapshot import IndexSnapshot
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS

_TABLE_HEADINGS = (
    "INSTANCE",
    "BLOCKS",
    "UNIQUE",
    "GPU",
    "CPU",
    "DISK",
    "SIZE",
    "EVICTED AT",
    "ORPHANS",
    "BATCH",
    "LAG",
    "COMPLETE",
)


class BlockCounts(msgspec.Struct):
    """Distinct blocks of one instance: by tier, in any tier, and those that no other instance has
    in any tier.
    """

    gpu: int = 0
    cpu: int = 0
    disk: int = 0
    blocks: int = 0
    unique: int = 0


class InstanceContents(msgspec.Struct, kw_only=True):
    """The index's data of one instance. None is unknown. Seconds are ages.

    pod: name of its pod, whose uid is the first part of ``id``.
    """

    id: str
    url: str | None
    connected: bool | None
    complete: bool
    reason: str
    since_seconds: float | None
    epoch: int | None
    block_size: int | None
    blocks: int
    unique: int
    gpu: int
    cpu: int
    disk: int
    hybrid: bool | None
    evicted_age_seconds: float | None
    orphans: int | None
    following: int | None
    lag_seconds: float | None
    since_written: int | None
    trouble: str
    pod: str | None = None

    @property
    def name(self) -> str:
        return self.id if self.pod is None else self.id.replace(self.id.partition("/")[0], self.pod, 1)


class IndexStats(msgspec.Struct, kw_only=True):
    """The state of one model's index.

    stale_seconds: age of the last write when no indexer writes, else None.

    trouble: why the index is unusable.

    deleted: the cluster has no such model any more, and Redis drops the index soon.

    hints: blocks in shared stores.
    """

    model: str
    leader: str | None
    lease_seconds: float | None
    epoch: int | None
    sequence: int | None
    stream_entries: int
    stale_seconds: float | None
    trouble: str
    unreadable: dict[str, str]
    blocks: int
    hints: int
    instances: list[InstanceContents]
    deleted: bool = False

    @property
    def is_healthy(self) -> bool:
        return self.deleted or (not self.trouble and not self.unreadable and self.leader is not None)

    def name_pods(self, names: Mapping[str, str]) -> None:
        for contents in self.instances:
            contents.pod = names.get(contents.id.partition("/")[0])


def count_blocks(index: LoadedIndex) -> tuple[dict[str, BlockCounts], int]:
    """Returns the block counts of every known instance, and how many different blocks all have."""
    blocks = {name: {own for own, _ in index.blocks_of(name)} for name in index.instances()}
    owners, found = Counter(own for some in blocks.values() for own in some), dict[str, BlockCounts]()
    for name, some in blocks.items():
        tiers = Counter(tier for _, tier in index.blocks_of(name))
        gpu, cpu, disk = (tiers[tier] for tier in INSTANCE_TIERS)
        found[name] = BlockCounts(gpu, cpu, disk, len(some), sum(owners[own] == 1 for own in some))
    return found, len(owners)


def build_stats(snapshot: IndexSnapshot) -> IndexStats:
    """Returns the stats of one snapshot."""
    index = snapshot.loaded
    counted, distinct = count_blocks(index) if index is not None else ({}, 0)
    at, written = snapshot.content.at, snapshot.last_written
    return IndexStats(
        model=snapshot.model_key,
        leader=snapshot.leader,
        lease_seconds=snapshot.lease_seconds,
        epoch=at[0] if at is not None else None,
        sequence=at[1] if at is not None else None,
        stream_entries=snapshot.entries,
        stale_seconds=None if snapshot.leader is not None or written is None else max(0.0, snapshot.wall - written),
        trouble=snapshot.problem,
        unreadable=snapshot.content.unreadable,
        blocks=distinct,
        hints=len(index.shared) if index is not None else 0,
        instances=[_instance_contents(snapshot, name, counted.get(name, BlockCounts())) for name in snapshot.instances],
    )


def _instance_contents(snapshot: IndexSnapshot, name: str, counted: BlockCounts) -> InstanceContents:
    note, header = snapshot.note(name), snapshot.content.headers.get(name)
    known = snapshot.loaded.completeness(name) if snapshot.loaded is not None else None
    slice_header = header.slice if header is not None else None
    source = note if note is not None else slice_header
    evicted = source.evicted_age_seconds if source is not None else None
    sequence = snapshot.content.at[1] if snapshot.content.at is not None else None
    return InstanceContents(
        id=name,
        url=note.url if note is not None else None,
        connected=note.connected if note is not None else None,
        complete=known is not None and known[0],
        reason=known[1] if known is not None else snapshot.content.unreadable.get(name, "nothing is known of it"),
        since_seconds=max(0.0, snapshot.now - known[2]) if known is not None else None,
        epoch=slice_header.epoch if slice_header is not None else None,
        block_size=snapshot.block_size(name),
        blocks=counted.blocks,
        unique=counted.unique,
        gpu=counted.gpu,
        cpu=counted.cpu,
        disk=counted.disk,
        hybrid=slice_header.hybrid if slice_header is not None else None,
        evicted_age_seconds=evicted,
        orphans=note.orphans if note is not None else None,
        following=note.following if note is not None else None,
        lag_seconds=note.lag_seconds if note is not None else None,
        since_written=None if header is None or sequence is None else max(0, sequence - header.sequence),
        trouble=note.trouble if note is not None else "",
    )


def render_stats(all_stats: Sequence[IndexStats], *, is_wide: bool = False) -> RenderableType:
    return Group(*(part for stats in all_stats for part in _model(stats, is_wide)))


def _model(stats: IndexStats, is_wide: bool) -> Iterator[RenderableType]:
    sign = ("√", "green") if stats.is_healthy else ("×", "red")
    writes = f"{printable(stats.leader)} writes" if stats.leader is not None else "nobody writes"
    if stats.stale_seconds is not None:
        writes += f" since {format_duration(stats.stale_seconds)}"
    if stats.deleted:
        writes += "; the model no longer exists"
    at = UNKNOWN if stats.epoch is None else f"{stats.epoch}-{stats.sequence}"
    hints = f", {stats.hints:,} in shared stores" if stats.hints else ""
    yield Text.assemble(
        sign,
        (f" {printable(stats.model)}", "bold cyan"),
        f"  {stats.blocks:,} blocks{hints}  {writes}",
        (f"  at {at}", "dim"),
    )
    if stats.trouble:
        yield Text(f"  it cannot be used: {printable(stats.trouble)}", style="red")
    for name, why in sorted(stats.unreadable.items()):
        yield Text(printable(f"  {name} cannot be read: {why}"), style="red")
    if stats.instances:
        yield _table(stats.instances, is_wide)


def _table(instances: Sequence[InstanceContents], is_wide: bool) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in (*_TABLE_HEADINGS, *(("ID",) if is_wide else ())):
        is_text = head in ("INSTANCE", "COMPLETE", "ID")
        table.add_column(head, justify="left" if is_text else "right", no_wrap=head != "COMPLETE", overflow="fold")
    for contents in instances:
        since = f" for {format_duration(contents.since_seconds)}" if contents.since_seconds is not None else ""
        complete = f"yes{since}: {contents.reason}" if contents.complete else f"no{since}: {contents.reason}"
        if contents.trouble:
            complete += f"; {contents.trouble}"
        counts = (contents.blocks, contents.unique, contents.gpu, contents.cpu, contents.disk)
        row: list[str | Text] = [_text(contents.name), *(f"{count:,}" for count in counts)]
        row += [_number(contents.block_size), _duration(contents.evicted_age_seconds), _number(contents.orphans)]
        row += [_number(contents.following), _duration(contents.lag_seconds), _text(complete)]
        if is_wide:
            row.append(_text(contents.id))
        table.add_row(*row, style=None if contents.complete else "yellow")
    return table


def _text(text: str) -> Text:
    return Text(printable(text))


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _duration(value: float | None) -> str:
    return UNKNOWN if value is None else format_duration(max(0.0, value))
