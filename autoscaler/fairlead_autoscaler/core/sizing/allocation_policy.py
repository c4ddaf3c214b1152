"""Allocation policy: which allocation a group follows, by a solved mix or by the mean request.

A new mix replaces the old one only if it is cheaper by `mix_switch_share` at current demand. So
nothing starts and stops between mixes of about the same cost.

Without a mix, the kept allocation is left by the ski-rental rule. Once its extra cost over the best
one equals the cost of the starts for that, it is left. A saving that comes and goes with the noise
of demand never adds up to it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.mix_requests import MIX_SECONDS, FollowedMix, MixQuestion, update_mix
from fairlead_autoscaler.core.sizing.pool_allocation import (
    AllocationOptions,
    PoolShare,
    PreviousAllocation,
    allocation_options,
    follow_mix,
    mix_cost,
    transition_targets,
)
from fairlead_autoscaler.core.types import MixRequest, MixResult

SWITCH_STARTS: Final = 1.0
"""An allocation is left once it has cost this multiple of the starts for the best."""
MIX_SWITCH_SHARE: Final = 0.15
"""A mix is followed in place of another if it saves this share."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """The targets of a group's pools, and what to remember of them.

    targets: replicas by pool.
    mix_inputs: the replicas of the followed mix, by pool.
    explanation: the end of a reason; empty for a single pool.
    mix_request: a query for the solver that is due.
    """

    targets: Mapping[str, int]
    followed_mix: FollowedMix
    previous: PreviousAllocation = field(default_factory=PreviousAllocation)
    mix_inputs: Mapping[str, DecisionInput] = field(default_factory=dict)
    explanation: str = ""
    mix_request: MixRequest | None = None


@dataclass(frozen=True, slots=True)
class AllocationPolicy:
    """The choice of the allocation of one group at one tick.

    followed_mix: the mix of the last tick.
    previous: the allocation by the mean request of the last tick.
    """

    pools: Sequence[PoolShare]
    followed_mix: FollowedMix
    previous: PreviousAllocation
    now: float
    settings: ScalingSettings

    def allocate(self, demand: float, question: MixQuestion | None, result: MixResult | None) -> Allocation:
        """Returns the targets for `demand`, in replicas of the first pool.

        question: None: there is nothing to query.
        result: the solver's reply that came since the last tick.
        """
        if len(self.pools) < 2:
            best = allocation_options(demand, self.pools, {}).best
            return Allocation(transition_targets(demand, self.pools, best), FollowedMix())
        mix, request = update_mix(self.followed_mix, self.now, question, result)
        base = self._replicas(mix)
        if base is None:
            previous = self._keep_or_switch(demand)
            targets = transition_targets(demand, self.pools, previous.base)
            explanation = f"; allocated by the mean request (mix: {mix.rule})"
            return Allocation(targets, mix, previous, {}, explanation, request)
        former = self._replicas(self.followed_mix)
        if former is not None and mix.changed_at != self.followed_mix.changed_at:
            cost, new_cost = (mix_cost(demand, self.pools, counts) for counts in (former, base))
            if cost * (1.0 - MIX_SWITCH_SHARE) <= new_cost:
                kept = self.followed_mix
                mix = replace(mix, replicas=kept.replicas, rule=kept.rule, changed_at=kept.changed_at)
                base = former
        age = None if mix.told_at is None else self.now - mix.told_at
        return Allocation(
            follow_mix(demand, self.pools, base),
            mix,
            mix_inputs={name: DecisionInput(float(count), age) for name, count in base.items()},
            explanation=f"; allocated by the mix of shapes ({mix.rule})",
            mix_request=request,
        )

    def _replicas(self, mix: FollowedMix) -> dict[str, int] | None:
        """Returns the replicas of a mix within the pools' bounds; None if it lacks one of them."""
        found = mix.replicas
        if found is None or any(pool.name not in found for pool in self.pools):
            return None
        return {pool.name: min(pool.maximum, max(pool.minimum, found[pool.name])) for pool in self.pools}

    def _keep_or_switch(self, demand: float) -> PreviousAllocation:
        """Returns the allocation by the mean request that is kept, or switched to now."""
        options = allocation_options(demand, self.pools, self.previous.base)
        regret = self._regret(options)
        if options.staying is None or regret > SWITCH_STARTS * options.switch_cost:
            return PreviousAllocation(options.best, 0.0, self.now)
        return PreviousAllocation(options.staying, regret, self.now)

    def _regret(self, options: AllocationOptions) -> float:
        """Returns the extra cost so far of the kept allocation over the best one.

        It decays while a switch would save nothing.
        """
        seconds = 0.0 if self.previous.at is None else self.now - self.previous.at
        keep = math.exp(-seconds / MIX_SECONDS) if options.savings_per_hour <= 0.0 else 1.0
        return self.previous.regret * keep + max(0.0, options.savings_per_hour) * seconds / 3_600.0
