"""``fairlead index stats``: who writes the index of a model, how far it is, and what each instance holds.

``unique`` blocks are held by no other instance: what a scale-down would lose with it. ``scale_down`` 1 is the instance that is
cheapest to lose by that; a gateway's status knows besides what was used lately. ``since_written`` says how many batches of
the stream a cold mirror must apply on top of what was written down of the instance.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fairlead.units import format_duration
from fairlead_cli.formatting import UNKNOWN
from fairlead_cli.index.snapshot import IndexSnapshot
from fairlead_kvstore.analysis.block_counts import BlockCounts, count_blocks
from fairlead_kvstore.analysis.removal_ranking import RemovalRank, rank_removals
from fairlead_kvstore.analysis.replication_hints import ReplicationHint

_TABLE_HEADINGS = (
    "INSTANCE",
    "BLOCKS",
    "UNIQUE",
    "LOSE",
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


class InstanceContents(msgspec.Struct, kw_only=True):
    """One instance. None is what nobody told. Seconds are durations up to now."""

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
    scale_down: int | None
    scale_down_reason: str
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


class IndexStats(msgspec.Struct, kw_only=True):
    """One model. ``stale_seconds``: how long nobody has written, None while somebody does; ``trouble``: why it cannot be used.
    ``hints``: blocks in shared stores. ``wanted``: hot prefixes that want another home, None where no gateway tells."""

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
    wanted: list[ReplicationHint] | None
    instances: list[InstanceContents]

    @property
    def is_healthy(self) -> bool:
        """Gateways can use it, and it is kept up."""
        return not self.trouble and not self.unreadable and self.leader is not None


def build_stats(picture: IndexSnapshot) -> IndexStats:
    """Of one model, from what was read."""
    mirror = picture.loaded.mirror if picture.loaded is not None else None
    counted = count_blocks(mirror) if mirror is not None else {}
    ranked = {one.instance: one for one in rank_removals(counted, _incomplete_instances(picture, counted), None)}
    lease, at, written = picture.lease, picture.at, picture.last_written
    blocks = 0 if mirror is None else sum(count for _, count in mirror.holder_sets())
    return IndexStats(
        model=picture.model_key,
        leader=lease.holder if lease is not None else None,
        lease_seconds=lease.seconds if lease is not None else None,
        epoch=at[0] if at is not None else None,
        sequence=at[1] if at is not None else None,
        stream_entries=picture.tail.entries,
        stale_seconds=None if lease is not None or written is None else max(0.0, picture.wall - written),
        trouble=picture.problem if mirror is None else "",
        unreadable=picture.unreadable,
        blocks=blocks,
        hints=mirror.hint_count if mirror is not None else 0,
        wanted=None if picture.hints is None else picture.hints.hints,
        instances=[
            _instance_contents(picture, name, counted.get(name, BlockCounts()), ranked.get(name))
            for name in picture.instances
        ],
    )


def _incomplete_instances(picture: IndexSnapshot, counted: Mapping[str, BlockCounts]) -> dict[str, str]:
    """Which of these are not known completely, and why."""
    found = {}
    for name in counted:
        known = picture.loaded.mirror.completeness(name) if picture.loaded is not None else None
        if known is None or not known.complete:
            found[name] = "nothing was told of it" if known is None else known.reason
    return found


def _instance_contents(
    picture: IndexSnapshot, name: str, held: BlockCounts, victim: RemovalRank | None
) -> InstanceContents:
    note, header = picture.note(name), picture.headers.get(name)
    known = picture.loaded.mirror.completeness(name) if picture.loaded is not None else None
    kept = header.slice if header is not None else None
    evicted = note.evicted_age_seconds if note is not None else kept.evicted_age_seconds if kept is not None else None
    sequence = picture.at[1] if picture.at is not None else None
    return InstanceContents(
        id=name,
        url=note.url if note is not None else None,
        connected=note.connected if note is not None else None,
        complete=known is not None and known.complete,
        reason=known.reason if known is not None else picture.unreadable.get(name, "nothing was told of it"),
        since_seconds=max(0.0, picture.now - known.since) if known is not None else None,
        epoch=kept.epoch if kept is not None else None,
        block_size=picture.block_size(name),
        blocks=held.blocks,
        unique=held.unique,
        scale_down=victim.rank if victim is not None else None,
        scale_down_reason=victim.reason if victim is not None else "nothing was told of it",
        gpu=held.gpu,
        cpu=held.cpu,
        disk=held.disk,
        hybrid=kept.hybrid if kept is not None else None,
        evicted_age_seconds=evicted,
        orphans=note.orphans if note is not None else None,
        following=note.following if note is not None else None,
        lag_seconds=note.lag_seconds if note is not None else None,
        since_written=None if header is None or sequence is None else max(0, sequence - header.sequence),
        trouble=note.trouble if note is not None else "",
    )


def render_stats(found: Sequence[IndexStats]) -> RenderableType:
    """For people: a headline and a table for each model, and below it what is wrong."""
    return Group(*(part for one in found for part in _model(one)))


def _model(one: IndexStats) -> Iterator[RenderableType]:
    sign = ("√", "green") if one.is_healthy else ("×", "red")
    writes = f"{one.leader} writes" if one.leader is not None else "nobody writes"
    if one.stale_seconds is not None:
        writes += f" since {format_duration(one.stale_seconds)}"
    at = UNKNOWN if one.epoch is None else f"{one.epoch}-{one.sequence}"
    hints = f", {one.hints:,} in shared stores" if one.hints else ""
    yield Text.assemble(
        sign, (f" {one.model}", "bold cyan"), f"  {one.blocks:,} blocks{hints}  {writes}", (f"  at {at}", "dim")
    )
    if one.trouble:
        yield Text(f"  it cannot be used: {one.trouble}", style="red")
    for name, why in sorted(one.unreadable.items()):
        yield Text(f"  {name} cannot be read: {why}", style="red")
    for hint in one.wanted or ():
        yield Text(f"  {hint.prefix}  {hint.tokens:,} tokens want {hint.wanted} homes: {hint.reason}", style="yellow")
    if one.instances:
        yield _table(one.instances)


def _table(instances: Sequence[InstanceContents]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in _TABLE_HEADINGS:
        left = head in ("INSTANCE", "COMPLETE")
        table.add_column(head, justify="left" if left else "right", no_wrap=head != "COMPLETE", overflow="fold")
    for one in instances:
        since = f" for {format_duration(one.since_seconds)}" if one.since_seconds is not None else ""
        complete = f"yes{since}: {one.reason}" if one.complete else f"no{since}: {one.reason}"
        if one.trouble:
            complete += f"; {one.trouble}"
        row = [one.id, *(f"{count:,}" for count in (one.blocks, one.unique)), _number(one.scale_down)]
        row += [f"{count:,}" for count in (one.gpu, one.cpu, one.disk)]
        row += [_number(one.block_size), _duration(one.evicted_age_seconds), _number(one.orphans)]
        row += [_number(one.following), _duration(one.lag_seconds), complete]
        table.add_row(*row, style=None if one.complete else "yellow")
    return table


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _duration(value: float | None) -> str:
    return UNKNOWN if value is None else format_duration(max(0.0, value))
