"""Group inputs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fairlead_autoscaler.core.performance.capacity import (
    LatencyTargets,
    MeanRequest,
    ReplicaCapacity,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing.pool_capacity import (
    latency_targets,
    replica_capacity,
)
from fairlead_autoscaler.core.sizing.schedule_bounds import replica_bounds
from fairlead_autoscaler.core.state import CoreState, GroupMemory
from fairlead_autoscaler.core.types import PoolGroup, PoolSpec
from fairlead_autoscaler.core.workload.mean_request import (
    NO_DECODE_PREFILL,
    DecodePrefillShare,
    decode_prefill_share,
    mean_request,
)

_STARTUP_SECONDS = 120.0
"""Until a start was seen, and where nobody knows."""


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """What a group's replicas are worth now: the mix and the objectives they serve, what decode engines keep of prefill, how many
    times as slow as its profile each pool is, what one replica of each carries; how long its slow starts take and how far ahead to
    look."""

    group: PoolGroup
    mean_request: MeanRequest
    decode_prefill: DecodePrefillShare
    targets: LatencyTargets
    slowdowns: Mapping[str, float]
    capacities: Mapping[str, ReplicaCapacity]
    replica_equivalents: Mapping[str, float]
    startup_seconds: float
    ahead_seconds: float

    @property
    def first_pool(self) -> PoolSpec:
        """The pool whose replicas needs are counted in."""
        return self.group.pools[0]

    @property
    def capacity(self) -> ReplicaCapacity:
        """What one of those carries."""
        return self.capacities[self.first_pool.name]

    def equivalent_of(self, pool: str) -> float:
        """A replica of ``pool``, in those of the first."""
        return self.replica_equivalents[pool]

    def ready_replicas(self, look: Tick) -> float:
        """What is ready, in replicas of the first pool."""
        return sum(look.pools[pool.name].ready * self.equivalent_of(pool.name) for pool in self.group.pools)

    def desired_replicas(self, look: Tick) -> float:
        """What is asked for, ready or not."""
        return sum(look.pools[pool.name].desired * self.equivalent_of(pool.name) for pool in self.group.pools)

    def desired_without_hedges(self, look: Tick, state: CoreState) -> float:
        """What is asked for without what was started beside it."""
        hedged = {
            name: min(pool.hedged, look.pools[name].desired) for name, pool in state.pools.items() if name in look.pools
        }
        return self.desired_replicas(look) - sum(
            hedged[pool.name] * self.equivalent_of(pool.name) for pool in self.group.pools
        )

    def asleep_replicas(self, look: Tick) -> float:
        """What is to sleep beside it."""
        return sum(look.pools[pool.name].asleep_desired * self.equivalent_of(pool.name) for pool in self.group.pools)

    def max_replicas(self, look: Tick) -> float:
        """What there may be."""
        return sum(replica_bounds(pool, look.wall)[1] * self.equivalent_of(pool.name) for pool in self.group.pools)


def group_inputs(state: CoreState, tick: Tick, group: PoolGroup) -> GroupInputs:
    settings = tick.settings
    # Where pools share a number, what is kept is a consequence of how it is divided: by it any division would seem right.
    converted = decode_prefill_share(state.lengths) if tick.model.replicas_most is None else NO_DECODE_PREFILL
    mix = mean_request(state.lengths, group.role, converted)
    objectives = latency_targets(tick.model, group.role, mix.prompt_tokens)
    factors = {pool.name: state.pools[pool.name].speed.slowdown(settings) for pool in group.pools}
    known = state.groups.get(group.role.value)
    share = float(sum(tick.pools[pool.name].desired for pool in group.pools))
    if known is not None and known.need is not None:
        share = known.need
    capacities = {
        pool.name: replica_capacity(pool, mix, factors[pool.name], objectives, share, settings) for pool in group.pools
    }
    worths = _replica_equivalents(known, capacities, group, tick)
    return GroupInputs(
        group, mix, converted, objectives, factors, capacities, worths, *_startup_times(state, group, settings)
    )


def _replica_equivalents(
    known: GroupMemory | None, capacities: Mapping[str, ReplicaCapacity], group: PoolGroup, tick: Tick
) -> Mapping[str, float]:
    """What a replica of each pool is worth in those of the first, on the mean of a window: from one tick's mix to the next the knees
    of unlike pools differ by some percent, which would start and stop the smallest ones again and again."""
    first = capacities[group.pools[0].name].requests_per_second
    before = {} if known is None else known.worths
    kept = math.exp(-tick.seconds / tick.settings.window_seconds)
    found = {}
    for pool in group.pools:
        now = capacities[pool.name].requests_per_second / first
        found[pool.name] = now + (before.get(pool.name, now) - now) * kept
    return found


def _startup_times(state: CoreState, group: PoolGroup, settings: ScalingSettings) -> tuple[float, float]:
    """How long the slower starts of a group take, and how far ahead to look."""
    slow = usual = 0.0
    for pool in group.pools:
        starts = state.pools[pool.name].starts
        slow = max(slow, starts.quantile(0.9, pool.startup_p90_seconds, _STARTUP_SECONDS))
        prior = pool.startup_p50_seconds if settings.ahead_quantile < 0.9 else pool.startup_p90_seconds
        usual = max(usual, starts.quantile(settings.ahead_quantile, prior, _STARTUP_SECONDS))
    return slow, usual + settings.ready_extra_seconds
