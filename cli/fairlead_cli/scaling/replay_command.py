"""``fairlead replay-scaling``: the autoscaler's decisions with other settings."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final

from cyclopts import Parameter

from fairlead.errors import BadInput
from fairlead.units import parse_duration, parse_percentage
from fairlead_autoscaler.history.recorder import TickRecord, decode_record, read_records
from fairlead_autoscaler.history.replay import PoolReplay, ReplayMoment, ReplayVariant, parse_changes, replay
from fairlead_cli import formatting
from fairlead_cli.exit_codes import run_query
from fairlead_cli.moments import parse_moment
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.scaling.autoscaler_client import AutoscalerSource, open_autoscaler, query
from fairlead_cli.target import ModelFlag, qualified_name

MAX_SHOWN_MOMENTS = 20
"""Differences shown for one pool; the JSON output has all."""
_TARGET_PARSERS: Final[Mapping[str, Callable[[str], float]]] = MappingProxyType(
    dict.fromkeys(("ttft", "tpot", "itl", "period"), parse_duration) | {"target": parse_percentage}
)
"""Readers of the latency targets that a replay may change, by the names that people use."""
_CORE_NAMES: Final[Mapping[str, str]] = MappingProxyType({"tpot": "itl"})
"""Names of targets in the core, where they differ from those of `spec.slo`."""


_AUTOSCALER = AutoscalerSource()


def replay_scaling(
    recording: Annotated[
        Path | None,
        Parameter(help="A recording: a file or a folder. Default: the autoscaler's memory of the last hours."),
    ] = None,
    /,
    *,
    set: Annotated[
        tuple[str, ...],
        Parameter(
            name="--set",
            help="A change, such as target=99%, tpot=100ms or window_seconds=120. Can be given again.",
        ),
    ] = (),
    model: ModelFlag = None,
    since: Annotated[
        str | None, Parameter(help="Only from then on: 20m (ago), 14:05, an ISO date and time, or Unix seconds.")
    ] = None,
    source: Annotated[AutoscalerSource, Parameter(name="*")] = _AUTOSCALER,
    output: OutputFlag = "table",
) -> int:
    """Replay the autoscaler's decisions on its observations, with other settings.

    Shows how many replicas would have been needed, and where decisions differ. The observations
    stay as they were: a replay shows what would have been decided at each moment, not its
    consequences. JSON and YAML have every moment, with the numbers that decided.

    --set takes target, ttft, tpot and period as in spec.slo, and the settings of the core. The
    reference page of the autoscaler lists these.

    Exits 0 with a result, 1 when nothing of that model is recorded, 2 on wrong usage, 3 when no
    autoscaler can be reached.
    """
    name = qualified_name(model, source.cluster.namespace)

    def fetch() -> Sequence[PoolReplay]:
        changes = parse_changes(map(to_core_change, set))
        recorded = list(_looks(recording, since, source))
        looks = [look for look in recorded if name in (None, look.model.name, look.model.name.partition("/")[2])]
        if not looks:
            raise LookupError(_missing_problem(name, since, recorded))
        from fairlead_autoscaler.mix import simulation_solver  # NumPy and a solver: who replays has the autoscaler

        return replay(looks, changes, simulation_solver())

    def show(replayed: Sequence[PoolReplay]) -> str:
        if is_document(output):
            return format_document([_to_plain(pool) for pool in replayed], output)
        return "\n".join(render_differences(replayed, set))

    return run_query(fetch, show)


def _to_plain(pool: PoolReplay) -> dict[str, Any]:
    """Returns the replay of a pool for JSON."""
    return {
        "model": pool.model,
        "pool": pool.pool,
        "moments": [
            {
                "wall": moment.wall,
                "seconds": moment.seconds,
                "recorded": moment.recorded,
                "again": moment.reproduced,
                "other": moment.changed,
            }
            for moment in pool.moments
        ],
        "remembered": pool.has_state,
    }


def to_core_change(text: str) -> str:
    """Returns a change as the core reads it, with the name that it has there and a plain number.

    A latency target may be written as in `spec.slo`: `tpot=100ms`, `target=99%`. Other texts are
    returned as they are. Raises BadInput for a target that is no number and has no such unit.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    parser = _TARGET_PARSERS.get(name)
    if parser is None or not equals:
        return text
    if not _is_number(value):
        try:
            value = repr(parser(value))
        except BadInput as error:
            message = f"--set: {name}: {value!r} is neither a number nor a value as in spec.slo"
            raise BadInput(message, field="--set", hint=error.hint) from None
    return f"{_CORE_NAMES.get(name, name)}={value}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _missing_problem(model: str | None, since: str | None, recorded: Sequence[TickRecord]) -> str:
    """Returns why there is nothing to replay, with the models that are recorded."""
    if recorded:
        names = ", ".join(sorted({look.model.name for look in recorded}))
        return f"--model: nothing is recorded of {model}; recorded are: {names}"
    if since is not None:
        return f"--since: nothing is recorded since {since}; leave it out for all that is recorded"
    return "nothing is recorded yet: the autoscaler records once a model has `autoscaling.mode` Auto or Advise"


def _looks(recording: Path | None, since: str | None, source: AutoscalerSource) -> Iterator[TickRecord]:
    start = 0.0 if since is None else parse_moment(since, time.time(), "--since")
    if recording is not None:
        return (look for look in _read(recording) if look.wall >= start)
    with open_autoscaler(source.autoscaler, source.cluster) as endpoint:
        lines = query(endpoint, "/autoscaling/recording", {"since": repr(start)}).splitlines()
    return (decode_record(line) for line in lines)


def _read(recording: Path) -> Iterator[TickRecord]:
    try:
        yield from read_records(recording)
    except OSError as error:
        raise BadInput(f"{recording}: {error.strerror or error}", field="RECORDING") from error


def render_differences(replayed: Sequence[PoolReplay], changes: Sequence[str]) -> list[str]:
    """Returns lines with the differences between recorded and replayed decisions, pool by pool."""
    lines = [
        f"the recorded settings, and {', '.join(changes) or 'the same again: --set names no change'}",
        "each decision starts from the replicas that existed then: this is what would have been decided, "
        "not what would have followed",
    ]
    for pool in replayed:
        lines += ["", *_pool(pool)]
    return lines


def _pool(pool: PoolReplay) -> Iterator[str]:
    first, last = pool.moments[0].wall, pool.moments[-1].wall
    span = f"{_format_time(first)} to {_format_time(last)}, {formatting.pluralize(len(pool.moments), 'observation')}"
    note = "" if pool.has_state else "; it begins without what the autoscaler had learned"
    yield f"{pool.model}/{pool.pool}: {span}{note}"
    if pool.deviations:
        yield (
            f"  with the recorded settings, this release decides differently at "
            f"{formatting.pluralize(pool.deviations, 'observation')}"
        )
    variants: tuple[tuple[ReplayVariant, str], ...] = (("again", "recorded settings"), ("other", "changed settings"))
    for which, name in variants:
        need = pool.mean_need(which)
        mean = "" if need is None else f"{need:8.2f} replicas needed on average, "
        yield f"  {name:<20}{mean}{max(pool.replica_counts(which))} planned at most"
    differences = pool.differences()
    if not differences:
        yield "  no decision differs"
    for moment in differences[:MAX_SHOWN_MOMENTS]:
        yield f"  {_format_time(moment.wall)}  {_render_pair(moment)}"
    if len(differences) > MAX_SHOWN_MOMENTS:
        yield f"  … and {len(differences) - MAX_SHOWN_MOMENTS} more; -o json has all"


def _render_pair(moment: ReplayMoment) -> str:
    recorded, changed = moment.reproduced, moment.changed
    return f"{recorded.replicas} ({recorded.rule}) -> {changed.replicas} ({changed.rule}: {changed.reason})"


def _format_time(wall: float) -> str:
    return datetime.fromtimestamp(wall).strftime("%Y-%m-%d %H:%M:%S")
