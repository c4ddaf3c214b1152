"""What the core remembers between two looks. It is a value: a decision gives the next one and changes nothing.

``encode`` and ``decode`` carry it through JSON, so that a recorded window can be replayed from the state it began with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.core.performance.engine_speed import EngineSpeed
from fairlead_autoscaler.core.performance.error_budget import ErrorBudget
from fairlead_autoscaler.core.performance.startup_time import StartupTimes
from fairlead_autoscaler.core.signals.consistency import ConsistencyState
from fairlead_autoscaler.core.sizing.mix_requests import FollowedMix
from fairlead_autoscaler.core.sizing.pool_allocation import PreviousAllocation
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow
from fairlead_autoscaler.core.workload.arrivals import ArrivalHistory
from fairlead_autoscaler.core.workload.idle_gaps import IdleGaps
from fairlead_autoscaler.core.workload.request_lengths import RequestLengths
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """Of a pool: when it was there last, how fast its engines are, how long they take to start, when it was lowered last, how many
    were started beside what is needed, how long waking takes by the level of sleep, and the numbers of replicas that were needed
    lately."""

    seen_at: float | None = None
    speed: EngineSpeed = field(default_factory=EngineSpeed)
    starts: StartupTimes = field(default_factory=StartupTimes)
    lowered_at: float | None = None
    hedged: int = 0
    wakes: Mapping[str, StartupTimes] = field(default_factory=dict)
    rest: NeedWindow = field(default_factory=NeedWindow)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """Of the pools that serve the same: the margin, the windows of needs, of what the backlog adds and of the needs that groups share
    by (in replicas of the group's first pool), the level to which bursts come back, the share by which load rises above its level,
    when these were looked at, when there was less than what arrived took, the last need that was seen and how fast it rose then, per
    second; the mix of its pools that is followed, and what a replica of each is worth in those of the first."""

    budget: ErrorBudget = field(default_factory=ErrorBudget)
    window: NeedWindow = field(default_factory=NeedWindow)
    backlog: NeedWindow = field(default_factory=NeedWindow)
    shared: NeedWindow = field(default_factory=NeedWindow)
    bursts: float = 0.0
    swing: float | None = None
    past_at: float = 0.0
    short_at: float = 0.0
    need: float | None = None
    trend: float = 0.0
    blend: FollowedMix = field(default_factory=FollowedMix)
    kept: PreviousAllocation = field(default_factory=PreviousAllocation)
    worths: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TickClock:
    """``now``: seconds since the first look, which only go on. ``told``: what the last observation said it was. ``calm_at``: until
    then nothing is lowered, because it began, or a gap lies behind."""

    told: float | None = None
    now: float = 0.0
    calm_at: float = 0.0
    blind_since: float | None = None
    open_seconds: float = 0.0
    open_requests: float = 0.0
    open_prompt: float = 0.0


@dataclass(frozen=True, slots=True)
class CoreState:
    """All of it."""

    clock: TickClock = field(default_factory=TickClock)
    trust: ConsistencyState = field(default_factory=ConsistencyState)
    load: ArrivalHistory = field(default_factory=ArrivalHistory)
    lengths: RequestLengths = field(default_factory=RequestLengths)
    silence: IdleGaps = field(default_factory=IdleGaps)
    pools: Mapping[str, PoolMemory] = field(default_factory=dict)
    groups: Mapping[str, GroupMemory] = field(default_factory=dict)
    shapes: ShapeHistogram | None = None


def encode_state(state: CoreState) -> bytes:
    """``state`` as JSON."""
    return msgspec.json.encode(_plain(state))


def decode_state(data: bytes) -> CoreState:
    """What ``encode`` wrote. Raises BadInput for anything else."""
    try:
        return msgspec.convert(msgspec.json.decode(data), CoreState, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"this is no state of the scaling core: {error}", field="state") from error


def _plain(state: CoreState) -> Any:
    return msgspec.to_builtins(state)
