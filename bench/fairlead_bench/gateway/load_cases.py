"""Load cases and the plan of their repetitions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairlead_bench.gateway.request_bodies import SIZES

_FOREVER = 10_000_000
"""A limit of tokens that lets streams outlive their measurement."""


@dataclass(frozen=True, slots=True)
class LoadCase:
    """One kind of load.

    unit: the CPU is divided by it.
    mode: of the load generator.
    """

    name: str
    title: str
    mode: str
    unit: str
    size: str
    connections: int
    events: int = 0  # of a stream; 0 = plain answers
    interval_seconds: float = 0.0
    rate: float = 0.0
    spread_seconds: float = 0.0
    warmup_seconds: float = 0.5
    near: bool = False  # compared by a goal: longer, more often
    direct: bool = False  # also without anything in between
    fresh: bool = False  # on a target that has done nothing yet
    crowded: bool = False  # with a noisy neighbour (`native_programs.memory_load`)

    @property
    def size_bytes(self) -> int:
        """Bytes of a request's body."""
        return SIZES[self.size]

    @property
    def checked_events(self) -> int:
        """Events that every answer must hold; 0 where streams are not read to their end."""
        return 0 if self.events == _FOREVER else self.events


def _crowded(case: LoadCase) -> LoadCase:
    return replace(case, name=f"{case.name}-crowded", title=f"{case.title}, crowded", crowded=True)


def _paced(streams: int, *, seconds_between: float, **more: bool) -> LoadCase:
    return LoadCase(
        f"paced-{streams}",
        f"{streams:,} streams × {1 / seconds_between:g} chunks/s",
        "hold",
        "chunk",
        "2k",
        streams,
        events=_FOREVER,
        interval_seconds=seconds_between,
        spread_seconds=1.0,
        near=True,
        direct=True,
        **more,
    )


_REQUESTS = (
    LoadCase("request-2k", "2 KB request", "closed", "request", "2k", 64, near=True),
    LoadCase("request-32k", "32 KB request", "closed", "request", "32k", 32, near=True),
    LoadCase("request-128k", "128 KB request", "closed", "request", "128k", 16, near=True),
)
DECISION_SIZES = ("2k", "32k")
"""Sizes of which the decision alone is measured."""
WITH_KV_EVENTS = ", followed"
"""Behind a size: by a gateway whose engines tell what they hold."""
CASES: Mapping[str, LoadCase] = {
    case.name: case
    for case in (
        *_REQUESTS,
        *map(_crowded, _REQUESTS),
        _paced(200, seconds_between=0.05),
        _crowded(_paced(200, seconds_between=0.05)),
        _paced(1000, seconds_between=0.05),
        LoadCase("bulk", "chunk of streams without pauses", "closed", "chunk", "2k", 32, events=128),
        LoadCase(
            "abort",
            "client that leaves in the middle of its stream",
            "abort",
            "abort",
            "2k",
            32,
            events=_FOREVER,
            interval_seconds=0.02,
        ),
        LoadCase(
            "open-220k",
            "220 KB streamed request, 100/s",
            "open",
            "request",
            "220k",
            64,
            events=4,
            rate=100.0,
            near=True,
            direct=True,
        ),
        LoadCase("alone-2k", "2 KB request, one at a time", "closed", "request", "2k", 1, direct=True),
        LoadCase("rate-2k", "2 KB request, 300/s", "open", "request", "2k", 64, rate=300.0, direct=True),
        LoadCase(
            "memory",
            "1,000 open streams",
            "hold",
            "chunk",
            "2k",
            1000,
            events=_FOREVER,
            interval_seconds=1.0,
            spread_seconds=1.0,
            fresh=True,
        ),
    )
}


@dataclass(frozen=True, slots=True)
class MeasurementPlan:
    """Length and number of the runs. Near cases of near targets get all rounds, the rest
    ``other_rounds``."""

    cases: tuple[str, ...]
    targets: tuple[str, ...] | None
    rounds: int
    seconds: float
    other_rounds: int
    other_seconds: float

    def rounds_of(self, case: LoadCase, *, near_target: bool) -> int:
        """Returns the number of rounds of a case on a target."""
        if case.fresh:
            return 1
        return self.rounds if case.near and near_target else min(self.rounds, self.other_rounds)

    def seconds_of(self, case: LoadCase) -> float:
        """Returns the length of each of these rounds."""
        return self.seconds if case.near else self.other_seconds


QUICK = MeasurementPlan(
    ("request-2k", "request-2k-crowded", "request-32k", "paced-200", "abort"),
    ("fairlead", "sglang-router cache_aware", "Envoy"),
    rounds=2,
    seconds=3.0,
    other_rounds=1,
    other_seconds=2.0,
)
FULL = MeasurementPlan(tuple(CASES), None, rounds=5, seconds=12.0, other_rounds=2, other_seconds=6.0)
