"""A group's need divided among its pools: by the mix that a solver found for the shapes of requests, else by the mean request.

A new mix is followed only where it is cheaper by ``mix_switch_share`` than the one that is followed, both with what the need takes
now: between mixes that cost about the same nothing is started and stopped.

A division by the mean request is left as one leaves a rented pair of skis: once staying has cost as much more than the best
division as starting that one's replicas would. A saving that comes and goes with the noise of the need never adds up to it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead.decision import Input
from fairlead_autoscaler.scaling.blend import Blend, Question, turned
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.split import Choice, Kept, Part, choice, divide, follow, price_on
from fairlead_autoscaler.scaling.values import MixAsked, MixTold


@dataclass(frozen=True, slots=True)
class Division:
    """``targets`` are replicas by pool. For the next time: ``blend`` is the mix that was followed, if any, ``kept`` the division
    without one; ``asks`` is what a solver is to be asked. ``mix`` (its replicas by pool) and ``how`` (the end of a sentence, empty
    where there is but one pool) are for people."""

    targets: Mapping[str, int]
    blend: Blend
    kept: Kept = field(default_factory=Kept)
    mix: Mapping[str, Input] = field(default_factory=dict)
    how: str = ""
    asks: MixAsked | None = None


def divided(
    need: float,
    parts: Sequence[Part],
    before: Blend,
    kept: Kept,
    now: float,
    question: Question | None,
    told: MixTold | None,
    settings: ScalingSettings,
) -> Division:
    """The pools' numbers for a need in replicas of the first of them. ``before`` is the mix that was followed until now, ``kept`` the
    division without one; ``question``
    is None where a solver has nothing to go by; ``told`` is the answer that came since the last look, if any."""
    if len(parts) < 2:
        return Division(divide(need, parts, choice(need, parts, {}).best), Blend())
    blend, asks = turned(before, now, question, told, settings)
    base = _of(blend, parts)
    if base is None:
        kept, counts = _kept(need, parts, kept, now, settings)
        how = f"; divided by the mean request (mix: {blend.rule})"
        return Division(divide(need, parts, counts), blend, kept, {}, how, asks)
    former = _of(before, parts)
    if former is not None and blend.changed_at != before.changed_at:
        stays, moves = (price_on(need, parts, one) for one in (former, base))
        if stays * (1.0 - settings.mix_switch_share) <= moves:
            blend = replace(blend, replicas=before.replicas, rule=before.rule, changed_at=before.changed_at)
            base = former
    age = None if blend.told_at is None else now - blend.told_at
    mix = {name: Input(float(count), age) for name, count in base.items()}
    return Division(
        follow(need, parts, base), blend, Kept(), mix, f"; divided by the mix of shapes ({blend.rule})", asks
    )


def _of(blend: Blend, parts: Sequence[Part]) -> dict[str, int] | None:
    """The mix that is followed, of these pools and within their bounds; None where it does not name them all."""
    found = blend.replicas
    if found is None or any(part.name not in found for part in parts):
        return None
    return {part.name: min(part.maximum, max(part.minimum, found[part.name])) for part in parts}


def _kept(
    need: float, parts: Sequence[Part], before: Kept, now: float, settings: ScalingSettings
) -> tuple[Kept, Mapping[str, int]]:
    """The division that is kept or taken anew, and its replicas by pool."""
    ways = choice(need, parts, before.base)
    regret = _regret(before, ways, now, settings)
    if ways.stays is None or regret > settings.switch_starts * ways.price:
        return Kept(ways.best, 0.0, now), ways.best
    return Kept(ways.stays, regret, now), ways.stays


def _regret(before: Kept, ways: Choice, now: float, settings: ScalingSettings) -> float:
    """What staying has cost more than the best division; it fades while there is nothing to regret."""
    seconds = 0.0 if before.at is None else now - before.at
    fades = math.exp(-seconds / settings.mix_seconds) if ways.saves <= 0.0 else 1.0
    return before.regret * fades + max(0.0, ways.saves) * seconds / 3_600.0
