"""State of the core between two ticks: a value, which a decision replaces by the next one.

As JSON (`encode_state`, `decode_state`) it begins a recorded window, which can be replayed from
there. Its field names are those of recordings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from fairlead.errors import BadInput
from fairlead_autoscaler.core.performance.error_budget import ErrorBudget
from fairlead_autoscaler.core.performance.measured_slowdown import EngineSpeed
from fairlead_autoscaler.core.performance.running_answers import RunningAnswers
from fairlead_autoscaler.core.performance.startup_time import StartupTimes
from fairlead_autoscaler.core.signals.consistency import ConsistencyState
from fairlead_autoscaler.core.signals.tick import TickClock
from fairlead_autoscaler.core.sizing.mix_requests import FollowedMix
from fairlead_autoscaler.core.sizing.pool_allocation import PreviousAllocation
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow
from fairlead_autoscaler.core.workload.arrivals import ArrivalHistory
from fairlead_autoscaler.core.workload.idle_gaps import IdleGaps
from fairlead_autoscaler.core.workload.request_lengths import RequestLengths
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """The memory of a pool.

    seen_at: when it was last observed.
    lowered_at: when it was last lowered.
    hedged: hedged starts among its desired replicas.
    replacing: replacements of ejected replicas among them.
    wakes: wake times, by sleep level.
    rest: replicas that were needed in the time for which a replica stays asleep.
    """

    seen_at: float | None = None
    speed: EngineSpeed = field(default_factory=EngineSpeed)
    starts: StartupTimes = field(default_factory=StartupTimes)
    lowered_at: float | None = None
    hedged: int = 0
    wakes: Mapping[str, StartupTimes] = field(default_factory=dict)
    rest: NeedWindow = field(default_factory=NeedWindow)
    replacing: int = 0
    answers: RunningAnswers = field(default_factory=RunningAnswers)


@dataclass(frozen=True, slots=True)
class GroupMemory:
    """The memory of a group of pools, in replicas of its first pool.

    window: lasting demand, for the stabilization window; recent_needs: demand of the last seconds.
    backlog: the replicas for the backlog.
    shared: demand by which groups share a limit.
    bursts: level of recurring bursts.
    deviation: error of the forecast, as a share of it; past_at: the end of the bins that gave both.
    short_at: when ready replicas last did not carry the load; is_excused: that began without any.
    need, trend: the last known demand, and its slope per second.
    other_needs: demand at other targets, as multiples of it; only shown. As of the last closed bin.
    blend: the mix that is followed; kept: the allocation without a mix.
    worths: one replica of each pool, in those of the first.
    """

    budget: ErrorBudget = field(default_factory=ErrorBudget)
    window: NeedWindow = field(default_factory=NeedWindow)
    recent_needs: tuple[tuple[float, float], ...] = ()
    backlog: NeedWindow = field(default_factory=NeedWindow)
    shared: NeedWindow = field(default_factory=NeedWindow)
    bursts: float = 0.0
    deviation: float | None = None
    past_at: float = 0.0
    short_at: float = 0.0
    is_excused: bool = True
    need: float | None = None
    trend: float = 0.0
    other_needs: Mapping[str, float] = field(default_factory=dict)
    blend: FollowedMix = field(default_factory=FollowedMix)
    kept: PreviousAllocation = field(default_factory=PreviousAllocation)
    worths: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CoreState:
    """The whole state of the core.

    groups: by role; `<role> awake` is the part of a group that must not sleep.
    """

    clock: TickClock = field(default_factory=TickClock)
    trust: ConsistencyState = field(default_factory=ConsistencyState)
    load: ArrivalHistory = field(default_factory=ArrivalHistory)
    lengths: RequestLengths = field(default_factory=RequestLengths)
    silence: IdleGaps = field(default_factory=IdleGaps)
    pools: Mapping[str, PoolMemory] = field(default_factory=dict)
    groups: Mapping[str, GroupMemory] = field(default_factory=dict)
    shapes: ShapeHistogram | None = None


def encode_state(state: CoreState) -> bytes:
    return msgspec.json.encode(state)


def decode_state(data: bytes) -> CoreState:
    """Returns the state that `encode_state` wrote. Raises BadInput for anything else."""
    try:
        return msgspec.convert(msgspec.json.decode(data), CoreState, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BadInput(f"not a state of the scaling core: {error}", field="state") from error
