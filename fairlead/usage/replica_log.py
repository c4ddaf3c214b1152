"""When replicas existed, in which state and at what price, as gateways saw them.

Each gateway keeps a log of its own: a line whenever its fleet changes, and a heartbeat in between.
A line says that everything stayed as it was since the line before. The first line of a process, and
the one after a gap, says nothing about the time before.

Several gateways see the same replicas. Their logs are merged by second: a second of a replica
counts once, however many gateways saw it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import msgspec

from fairlead.fleet.model import Fleet, InstanceState
from fairlead.usage.record import day_of

STATES: Final = tuple(state.value for state in (
    InstanceState.READY, InstanceState.DRAINING, InstanceState.SLEEPING, InstanceState.STARTING
))  # fmt: skip
"""All states. Of several that gateways saw in one second, the first counts."""
_DAY_SECONDS: Final = 86_400

Capacity: TypeAlias = tuple[str, str, str, str, int | None]
"""Day, model, pool, state, and price in billionths of a US dollar per hour."""


class ReplicaView(msgspec.Struct, frozen=True, array_like=True):
    """A replica as a gateway sees it.

    - nano_usd_per_hour: None if its price is not known.
    """

    model: str
    pool: str
    state: str
    nano_usd_per_hour: int | None = None


class ReplicaLine(msgspec.Struct, omit_defaults=True):
    """A line of the log.

    - at: Unix seconds.
    - is_first: nothing is known about the time before; `changed` names all replicas.
    """

    at: int
    is_first: bool = msgspec.field(default=False, name="first")
    changed: dict[str, ReplicaView] = {}
    gone: list[str] = []

    @property
    def day(self) -> str:
        return day_of(self.at if self.is_first else self.at - 1)


class ReplicaSpan(msgspec.Struct, frozen=True, array_like=True):
    """A replica from second `start` until before second `end`."""

    replica: str
    start: int
    end: int
    view: ReplicaView


def replicas_of(fleet: Fleet) -> dict[str, ReplicaView]:
    """Returns the replicas of a fleet by id. The ranks of a replica count as one."""
    found: dict[str, ReplicaView] = {}
    for key, instances in fleet.instances.items():
        for instance in instances:
            view = ReplicaView(key, instance.pool, instance.state.value, instance.replica_nano_usd_per_hour)
            known = found.get(instance.replica_id)
            if known is None or STATES.index(view.state) < STATES.index(known.state):
                found[instance.replica_id] = view
    return found


class ReplicaLog:
    """The writer's side: turns what a gateway sees into lines.

    max_gap_seconds: after a longer pause, as of a suspended machine, the time before is unknown.
    """

    def __init__(self, max_gap_seconds: int) -> None:
        self._max_gap_seconds = max_gap_seconds
        self._views: dict[str, ReplicaView] = {}
        self._at: int | None = None

    def observe(self, at: int, views: Mapping[str, ReplicaView]) -> list[ReplicaLine]:
        """Returns the lines about the time up to `at`, and about the replicas from then on.

        A day ends with a line of its own, and the next begins with all replicas.
        """
        last = self._at
        if last is not None and at < last:
            return []  # the clock was set back: wait until it has caught up
        lines: list[ReplicaLine] = []
        is_day_begin = at == last and at % _DAY_SECONDS == 0  # a further line would be about the day before
        if last is not None and at - last <= self._max_gap_seconds and not is_day_begin:
            midnight = (last // _DAY_SECONDS + 1) * _DAY_SECONDS
            if at >= midnight:
                first = views if at == midnight else self._views
                lines += [ReplicaLine(midnight), ReplicaLine(midnight, True, dict(first))]
            if at != midnight:
                changed = {name: view for name, view in views.items() if self._views.get(name) != view}
                gone = [name for name in self._views if name not in views]
                lines.append(ReplicaLine(at, False, changed, gone))
        else:
            lines.append(ReplicaLine(at, True, dict(views)))
        self._views, self._at = dict(views), at
        return lines


class ReplicaSpans:
    """The reader's side: collects the spans of one log."""

    def __init__(self) -> None:
        self.spans: list[ReplicaSpan] = []
        self._open: dict[str, tuple[int, ReplicaView]] = {}
        self._at = 0

    def add(self, line: ReplicaLine) -> None:
        """Adds a line, in the order of the log."""
        if line.is_first:
            self.close()
        self._at = max(self._at, line.at)
        for name in (*line.gone, *line.changed):
            opened = self._open.pop(name, None)
            if opened is not None:
                self._end_span(name, *opened)
        for name, view in line.changed.items():
            self._open[name] = (self._at, view)

    def close(self) -> None:
        """Ends all spans at the last line: nothing is known about the time after."""
        for name, opened in self._open.items():
            self._end_span(name, *opened)
        self._open.clear()

    def _end_span(self, name: str, start: int, view: ReplicaView) -> None:
        if self._at > start:
            self.spans.append(ReplicaSpan(name, start, self._at, view))


def replica_seconds(spans: Iterable[ReplicaSpan]) -> dict[Capacity, int]:
    """Returns the seconds of replicas, each second of a replica counted once.

    Of several views of a second, the state that is first in `STATES` counts, then the higher price.
    """
    by_replica: dict[str, list[ReplicaSpan]] = defaultdict(list)
    for span in spans:
        by_replica[span.replica].append(span)
    totals: dict[Capacity, int] = defaultdict(int)
    for group in by_replica.values():
        for start, end, view in _without_overlaps(group):
            for day, seconds in _by_day(start, end):
                totals[day, view.model, view.pool, view.state, view.nano_usd_per_hour] += seconds
    return dict(totals)


class _Piece(NamedTuple):
    start: int
    end: int
    view: ReplicaView


def _without_overlaps(spans: list[ReplicaSpan]) -> list[_Piece]:
    bounds = sorted({time for span in spans for time in (span.start, span.end)})
    starting = sorted(spans, key=lambda span: span.start)
    pieces: list[_Piece] = []
    live: list[ReplicaSpan] = []
    position = 0
    for start, end in pairwise(bounds):
        live = [span for span in live if span.end > start]
        while position < len(starting) and starting[position].start <= start:
            live.append(starting[position])
            position += 1
        if live:
            pieces.append(_Piece(start, end, min((span.view for span in live), key=_rank)))
    return pieces


def _rank(view: ReplicaView) -> tuple[int, int, str, str]:
    state = STATES.index(view.state) if view.state in STATES else len(STATES)
    price = -1 if view.nano_usd_per_hour is None else view.nano_usd_per_hour
    return state, -price, view.model, view.pool


def _by_day(start: int, end: int) -> list[tuple[str, int]]:
    parts: list[tuple[str, int]] = []
    while start < end:
        until = min(end, (start // _DAY_SECONDS + 1) * _DAY_SECONDS)
        parts.append((day_of(start), until - start))
        start = until
    return parts
