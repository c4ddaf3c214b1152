"""``fairlead replay-scaling``, from its arguments to its exit code, and the differences as text."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.history.recorder import TickRecord, decode_record, read_records
from fairlead_autoscaler.history.replay import PoolReplay, ReplayMoment, ReplayVariant, parse_changes, replay
from fairlead_cli import formatting
from fairlead_cli.exit_codes import run_query
from fairlead_cli.scaling.autoscaler_client import find_autoscaler, query
from fairlead_cli.scaling.time_argument import parse_moment

MAX_SHOWN_MOMENTS = 20
"""Moments that are told of one pool; the JSON has all."""


@dataclass(frozen=True, slots=True)
class ReplayScalingOptions:
    """The arguments of ``fairlead replay-scaling``."""

    recording: Path | None
    changes: Sequence[str]
    model: str | None
    since: str | None
    manage: str | None
    as_json: bool


def run(options: ReplayScalingOptions) -> int:
    """Replay and print; the exit code."""

    def show(found: Sequence[PoolReplay]) -> str:
        if options.as_json:
            return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
        return "\n".join(render_differences(found, options.changes))

    return run_query("replay-scaling", lambda: _replay(options), show, misuse=(BadInput,))


def _replay(wish: ReplayScalingOptions) -> Sequence[PoolReplay]:
    changes = parse_changes(wish.changes)
    looks = [look for look in _looks(wish) if wish.model in (None, look.model.name, look.model.name.partition("/")[2])]
    if not looks:
        raise LookupError("no look of such a model is recorded")
    from fairlead_autoscaler.mix import simulation_solver  # NumPy and a solver: who replays has the autoscaler

    return replay(looks, changes, simulation_solver())


def _looks(wish: ReplayScalingOptions) -> Iterator[TickRecord]:
    since = 0.0 if wish.since is None else parse_moment(wish.since, time.time(), "--since")
    if wish.recording is not None:
        return (look for look in _read(wish.recording) if look.wall >= since)
    lines = query(find_autoscaler(wish.manage), "/autoscaling/recording", {"since": repr(since)}).splitlines()
    return (decode_record(line) for line in lines)


def _read(recording: Path) -> Iterator[TickRecord]:
    try:
        yield from read_records(recording)
    except OSError as error:
        raise BadInput(f"{recording}: {error.strerror or error}", field="RECORDING") from error


def render_differences(found: Sequence[PoolReplay], changes: Sequence[str]) -> list[str]:
    """What differs, pool by pool."""
    lines = [
        f"recorded, and with {', '.join(changes) or 'nothing changed'}; each look begins from the replicas that there were then, so "
        "this is what would have been decided, not what would have come of it"
    ]
    for one in found:
        lines += ["", *_pool(one)]
    return lines


def _pool(one: PoolReplay) -> Iterator[str]:
    first, last = one.moments[0].wall, one.moments[-1].wall
    span = f"{_format_time(first)} to {_format_time(last)}, {formatting.pluralize(len(one.moments), 'look')}"
    begins = "" if one.has_state else "; it begins without what the core knew then"
    yield f"{one.model}/{one.pool}: {span}{begins}"
    if one.deviations:
        yield (
            f"  this release decides otherwise than was recorded at "
            f"{formatting.pluralize(one.deviations, 'look')}, without any change"
        )
    runs: tuple[tuple[ReplayVariant, str], ...] = (("again", "recorded settings"), ("other", "changed settings"))
    for which, name in runs:
        need = one.mean_need(which)
        mean = "" if need is None else f"{need:8.2f} replicas needed on the mean, "
        yield f"  {name:<20}{mean}{max(one.replica_counts(which))} planned at most"
    differences = one.differences()
    if not differences:
        yield "  no moment differs"
    for moment_ in differences[:MAX_SHOWN_MOMENTS]:
        yield f"  {_format_time(moment_.wall)}  {_render_pair(moment_)}"
    if len(differences) > MAX_SHOWN_MOMENTS:
        yield f"  … and {len(differences) - MAX_SHOWN_MOMENTS} more; --json has all"


def _render_pair(moment_: ReplayMoment) -> str:
    one, other = moment_.reproduced, moment_.changed
    return f"{one.replicas} ({one.rule}) -> {other.replicas} ({other.rule}: {other.reason})"


def _format_time(wall: float) -> str:
    return datetime.fromtimestamp(wall).strftime("%Y-%m-%d %H:%M:%S")
