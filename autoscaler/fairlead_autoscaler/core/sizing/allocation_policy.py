"""A group's need divided among its pools: by the mix that a solver found for the shapes of requests, else by the mean request.

A new mix is followed only where it is cheaper by ``mix_switch_share`` than the one that is followed, both with what the need takes
now: between mixes that cost about the same nothing is started and stopped.

A division by the mean request is left as one leaves a rented pair of skis: once staying has cost as much more than the best
division as starting that one's replicas would. A saving that comes and goes with the noise of the need never adds up to it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.mix_requests import FollowedMix, MixQuestion, update_mix
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


@dataclass(frozen=True, slots=True)
class Allocation:
    """``targets`` are replicas by pool. For the next time: ``blend`` is the mix that was followed, if any, ``kept`` the division
    without one; ``asks`` is what a solver is to be asked. ``mix`` (its replicas by pool) and ``how`` (the end of a sentence, empty
    where there is but one pool) are for people."""

    targets: Mapping[str, int]
    followed_mix: FollowedMix
    previous: PreviousAllocation = field(default_factory=PreviousAllocation)
    mix_inputs: Mapping[str, DecisionInput] = field(default_factory=dict)
    explanation: str = ""
    mix_request: MixRequest | None = None


def allocate(
    need: float,
    parts: Sequence[PoolShare],
    before: FollowedMix,
    kept: PreviousAllocation,
    now: float,
    question: MixQuestion | None,
    result: MixResult | None,
    settings: ScalingSettings,
) -> Allocation:
    """The pools' numbers for a need in replicas of the first of them. ``before`` is the mix that was followed until now, ``kept`` the
    division without one; ``question``
    is None where a solver has nothing to go by; ``told`` is the answer that came since the last look, if any."""
    if len(parts) < 2:
        return Allocation(transition_targets(need, parts, allocation_options(need, parts, {}).best), FollowedMix())
    blend, asks = update_mix(before, now, question, result, settings)
    base = _followed_replicas(blend, parts)
    if base is None:
        kept, counts = _keep_or_switch(need, parts, kept, now, settings)
        how = f"; divided by the mean request (mix: {blend.rule})"
        return Allocation(transition_targets(need, parts, counts), blend, kept, {}, how, asks)
    former = _followed_replicas(before, parts)
    if former is not None and blend.changed_at != before.changed_at:
        stays, moves = (mix_cost(need, parts, one) for one in (former, base))
        if stays * (1.0 - settings.mix_switch_share) <= moves:
            blend = replace(blend, replicas=before.replicas, rule=before.rule, changed_at=before.changed_at)
            base = former
    age = None if blend.told_at is None else now - blend.told_at
    mix = {name: DecisionInput(float(count), age) for name, count in base.items()}
    return Allocation(
        follow_mix(need, parts, base),
        blend,
        PreviousAllocation(),
        mix,
        f"; divided by the mix of shapes ({blend.rule})",
        asks,
    )


def _followed_replicas(blend: FollowedMix, parts: Sequence[PoolShare]) -> dict[str, int] | None:
    """The mix that is followed, of these pools and within their bounds; None where it does not name them all."""
    found = blend.replicas
    if found is None or any(part.name not in found for part in parts):
        return None
    return {part.name: min(part.maximum, max(part.minimum, found[part.name])) for part in parts}


def _keep_or_switch(
    need: float, parts: Sequence[PoolShare], before: PreviousAllocation, now: float, settings: ScalingSettings
) -> tuple[PreviousAllocation, Mapping[str, int]]:
    """The division that is kept or taken anew, and its replicas by pool."""
    ways = allocation_options(need, parts, before.base)
    regret = _update_regret(before, ways, now, settings)
    if ways.staying is None or regret > settings.switch_starts * ways.switch_cost:
        return PreviousAllocation(ways.best, 0.0, now), ways.best
    return PreviousAllocation(ways.staying, regret, now), ways.staying


def _update_regret(before: PreviousAllocation, ways: AllocationOptions, now: float, settings: ScalingSettings) -> float:
    """What staying has cost more than the best division; it fades while there is nothing to regret."""
    seconds = 0.0 if before.at is None else now - before.at
    fades = math.exp(-seconds / settings.mix_seconds) if ways.savings_per_hour <= 0.0 else 1.0
    return before.regret * fades + max(0.0, ways.savings_per_hour) * seconds / 3_600.0
