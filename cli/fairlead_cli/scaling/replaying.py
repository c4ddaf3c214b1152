"""``fairlead replay-scaling``, from its arguments to its exit code, and the differences as text."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.recording import Look, look_of, read
from fairlead_autoscaler.replaying import Moment, Replayed, Which, changes_of, replay
from fairlead_cli.asking import asked
from fairlead_cli.local import words
from fairlead_cli.scaling.asking import ask, autoscaler, moment

SHOWN = 20
"""Moments that are told of one pool; the JSON has all."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The arguments of ``fairlead replay-scaling``."""

    recording: Path | None
    changes: Sequence[str]
    model: str | None
    since: str | None
    manage: str | None
    as_json: bool


def run(wish: Wish) -> int:
    """Replay and print; the exit code."""

    def show(found: Sequence[Replayed]) -> str:
        if wish.as_json:
            return msgspec.json.format(msgspec.json.encode(found), indent=2).decode()
        return "\n".join(told(found, wish.changes))

    return asked("replay-scaling", lambda: _replayed(wish), show, misuse=(BadInput,))


def _replayed(wish: Wish) -> Sequence[Replayed]:
    changes = changes_of(wish.changes)
    looks = [look for look in _looks(wish) if wish.model in (None, look.model.name, look.model.name.partition("/")[2])]
    if not looks:
        raise LookupError("no look of such a model is recorded")
    from fairlead_autoscaler.mix import unhurried  # NumPy and a solver: who replays has the autoscaler

    return replay(looks, changes, unhurried())


def _looks(wish: Wish) -> Iterator[Look]:
    since = 0.0 if wish.since is None else moment(wish.since, time.time(), "--since")
    if wish.recording is not None:
        return (look for look in _read(wish.recording) if look.wall >= since)
    lines = ask(autoscaler(wish.manage), "/autoscaling/recording", {"since": repr(since)}).splitlines()
    return (look_of(line) for line in lines)


def _read(recording: Path) -> Iterator[Look]:
    try:
        yield from read(recording)
    except OSError as error:
        raise BadInput(f"{recording}: {error.strerror or error}", field="RECORDING") from error


def told(found: Sequence[Replayed], changes: Sequence[str]) -> list[str]:
    """What differs, pool by pool."""
    lines = [
        f"recorded, and with {', '.join(changes) or 'nothing changed'}; each look begins from the replicas that there were then, so "
        "this is what would have been decided, not what would have come of it"
    ]
    for one in found:
        lines += ["", *_pool(one)]
    return lines


def _pool(one: Replayed) -> Iterator[str]:
    first, last = one.moments[0].wall, one.moments[-1].wall
    span = f"{_clock(first)} to {_clock(last)}, {words.plural(len(one.moments), 'look')}"
    begins = "" if one.remembered else "; it begins without what the core knew then"
    yield f"{one.model}/{one.pool}: {span}{begins}"
    if one.strayed:
        yield f"  this release decides otherwise than was recorded at {words.plural(one.strayed, 'look')}, without any change"
    runs: tuple[tuple[Which, str], ...] = (("again", "recorded settings"), ("other", "changed settings"))
    for which, name in runs:
        need = one.needed(which)
        mean = "" if need is None else f"{need:8.2f} replicas needed on the mean, "
        yield f"  {name:<20}{mean}{max(one.numbers(which))} planned at most"
    differences = one.differences()
    if not differences:
        yield "  no moment differs"
    for moment_ in differences[:SHOWN]:
        yield f"  {_clock(moment_.wall)}  {_pair(moment_)}"
    if len(differences) > SHOWN:
        yield f"  … and {len(differences) - SHOWN} more; --json has all"


def _pair(moment_: Moment) -> str:
    one, other = moment_.again, moment_.other
    return f"{one.replicas} ({one.rule}) -> {other.replicas} ({other.rule}: {other.reason})"


def _clock(wall: float) -> str:
    return datetime.fromtimestamp(wall).strftime("%Y-%m-%d %H:%M:%S")
