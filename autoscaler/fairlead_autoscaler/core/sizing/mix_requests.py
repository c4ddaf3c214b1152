"""Which pools carry a group's load: asked of a solver every few minutes, and followed in between.

Where a request can go to one pool or to another, the cheapest division depends on more than the mean request: on how long prompts
and answers are, all of them, and on what cannot be served somewhere at all. That is a mixed-integer program
(``fairlead_autoscaler.mix``), which takes up to a second. So it is not solved here: a plan carries the question (``Plan.asks``), the
shell has it solved beside its ticks, and a later observation brings the answer (``Observation.mixes``), recorded with all else. It
is asked every ``mix_seconds``, so a mix stays for that long at least; what starts and stops is charged for there.

An answer counts if it is to the last question and not older than ``mix_seconds``, else it is as if it had not come. Until one comes
the mix before stays; ``2·mix_seconds`` after the last one that counted it is given up.

What a replica carries of one shape is the core's own knee, in the core's own unit: its engine-seconds per second at the knee, divided
by the engine-seconds of a request of that shape. Over all shapes together a pool so carries exactly what the core says it does; the
shapes only say which part of the load is dear where, and which a pool cannot serve at all.

In between the mix is the base load: ``split.follow`` keeps the large types as it has them and lets the smallest follow the need.
Where there are no shapes, no load or no answer, nothing of this holds and ``split.divide`` does what it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead_autoscaler.core.performance.capacity import (
    LatencyTargets,
    MeanRequest,
    ReplicaCapacity,
    StepModel,
    find_unreachable_target,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.validation import valid_count
from fairlead_autoscaler.core.types import MixRequest, MixResult, PoolCandidate
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram

NO_REQUEST, REQUESTED, NO_RESULT, NO_SHAPES = "unasked", "asked", "unanswered", "no-shapes"
"""The rules of a mix that there is none of."""


@dataclass(frozen=True, slots=True)
class FollowedMix:
    """The mix that is followed, ``replicas`` by pool (None: none is), since when; when a solver was asked last, whether its answer is
    still awaited, and when one came last."""

    replicas: Mapping[str, int] | None = None
    rule: str = NO_REQUEST
    asked_at: float | None = None
    changed_at: float | None = None
    waiting: bool = False
    told_at: float | None = None


@dataclass(frozen=True, slots=True)
class MixQuestion:
    """What a solver is asked about a group: the shapes that were seen, ``requests_per_second`` to be carried in all, and its pools,
    ``throughput`` still empty; the knee and the steps of each."""

    shapes: ShapeHistogram
    requests_per_second: float
    pools: Sequence[PoolCandidate]
    capacities: Mapping[str, ReplicaCapacity]
    steps: Mapping[str, StepModel]
    request_of_shape: Callable[[float, float], MeanRequest] = field(repr=False)
    targets_of_prompt: Callable[[float], LatencyTargets] = field(repr=False)


def update_mix(
    before: FollowedMix, now: float, question: MixQuestion | None, result: MixResult | None, settings: ScalingSettings
) -> tuple[FollowedMix, MixRequest | None]:
    """The mix to follow ``now``, and what to ask. ``told`` is the answer that came since the last look, if any; ``question`` is None
    where there is nothing to ask."""
    blend = _accept_result(before, now, result, settings)
    if blend.told_at is not None and now - blend.told_at >= 2.0 * settings.mix_seconds:
        blend = FollowedMix(
            rule=NO_RESULT if blend.waiting else NO_REQUEST, asked_at=blend.asked_at, waiting=blend.waiting
        )
    due = blend.asked_at is None or now - blend.asked_at >= settings.mix_seconds
    if question is None or not due:
        return blend, None
    rates, candidates = _rates_and_candidates(question)
    if not candidates:
        return FollowedMix(rule=NO_SHAPES, asked_at=now), None
    if blend.replicas is None:
        blend = replace(blend, rule=NO_RESULT if blend.waiting else REQUESTED)
    return replace(blend, asked_at=now, waiting=True), MixRequest(now, tuple(rates), tuple(candidates))


def _accept_result(before: FollowedMix, now: float, result: MixResult | None, settings: ScalingSettings) -> FollowedMix:
    """``before`` with an answer, if it is to the last question and in time."""
    late = before.asked_at is None or now - before.asked_at > settings.mix_seconds
    if result is None or late or not before.waiting or result.asked_at != before.asked_at:
        return before
    replicas = (
        None if result.replicas is None else {name: valid_count(count) for name, count in result.replicas.items()}
    )
    changed_at = before.changed_at if replicas == before.replicas else now
    return FollowedMix(replicas, result.rule, before.asked_at, changed_at, told_at=now)


def _rates_and_candidates(question: MixQuestion) -> tuple[list[float], list[PoolCandidate]]:
    """Rates of the shapes that came, and what each pool carries of them; no pools where too little came to say."""
    counts = question.shapes.requests
    seen = [index for index, count in enumerate(counts) if count > 0.0]
    total = sum(counts[index] for index in seen)
    if total < 1.0:
        return [], []
    shapes = [question.shapes.shape(index) for index in seen]
    shares = [counts[index] / total for index in seen]
    candidates = [
        PoolCandidate(
            one.name,
            one.cost_per_hour,
            _throughput_by_shape(question, one.name, shapes, shares),
            one.minimum,
            one.maximum,
            one.running,
            one.startup_seconds,
        )
        for one in question.pools
    ]
    return [share * question.requests_per_second for share in shares], candidates


def _throughput_by_shape(
    question: MixQuestion, name: str, shapes: Sequence[tuple[float, float]], shares: Sequence[float]
) -> tuple[float, ...]:
    """Requests per second of each shape alone, such that all that the pool can serve, together, come to its knee."""
    step = question.steps[name]
    works = [step.engine_seconds(question.request_of_shape(*shape)) for shape in shapes]
    able = [
        find_unreachable_target(step, question.request_of_shape(*shape), question.targets_of_prompt(shape[0])) is None
        for shape in shapes
    ]
    served = sum(share for share, can in zip(shares, able, strict=True) if can)
    if served <= 0.0:
        return (0.0,) * len(shapes)
    mean = sum(share * work for share, work, can in zip(shares, works, able, strict=True) if can) / served
    busy = question.capacities[name].requests_per_second * mean
    return tuple(busy / work if can else 0.0 for work, can in zip(works, able, strict=True))
