"""A group's need divided among its pools: by the mix that a solver found for the shapes of requests, else by the mean request.

A new mix is followed only where it is cheaper by ``mix_switch_share`` than the one that is followed, both with what the need takes
now: between mixes that cost about the same nothing is started and stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead.decision import Input
from fairlead_autoscaler.scaling.blend import Blend, Question, Solver, turned
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.split import Part, divide, follow, price_on


@dataclass(frozen=True, slots=True)
class Division:
    """``targets`` are replicas by pool; ``blend`` is the mix that was followed, if any, for the next time. ``mix`` (its replicas by
    pool) and ``how`` (the end of a sentence, empty where there is but one pool) are for people."""

    targets: Mapping[str, int]
    blend: Blend
    mix: Mapping[str, Input] = field(default_factory=dict)
    how: str = ""


def divided(
    need: float,
    parts: Sequence[Part],
    before: Blend,
    now: float,
    question: Question | None,
    solver: Solver | None,
    settings: ScalingSettings,
) -> Division:
    """The pools' numbers for a need in replicas of the first of them. ``before`` is the mix that was followed until now; ``question``
    is None where a solver has nothing to go by."""
    if len(parts) < 2:
        return Division(divide(need, parts, settings.switch_share), Blend())
    blend = turned(before, now, question, solver, settings)
    if blend.replicas is None:
        targets = divide(need, parts, settings.switch_share)
        return Division(targets, blend, {}, f"; divided by the mean request (mix: {blend.rule})")
    if before.replicas is not None and blend.changed_at != before.changed_at:
        stays, moves = (price_on(need, parts, one) for one in (before.replicas, blend.replicas))
        if stays * (1.0 - settings.mix_switch_share) <= moves:
            blend = replace(before, asked_at=now)
    base = blend.replicas or {}
    age = None if blend.asked_at is None else now - blend.asked_at
    mix = {name: Input(float(count), age) for name, count in base.items()}
    return Division(follow(need, parts, base), blend, mix, f"; divided by the mix of shapes ({blend.rule})")
