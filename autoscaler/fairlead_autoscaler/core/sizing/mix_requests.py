"""Mix requests: queries to a solver for the cheapest accelerator mix, and the mix that is followed.

If several pools can serve a request, the cheapest allocation depends on the lengths of all prompts
and outputs. Some pools cannot serve some lengths. That is a mixed-integer program
(`fairlead_autoscaler.mix`), which takes up to a second, so the core does not solve it. A plan
carries the query (`ScalingPlan.asks`), and the shell solves it between its ticks. A later
observation brings the reply (`Observation.mixes`), which is recorded like all other signals.

A query is made every `mix_seconds`. The solver spreads the cost of starts over
`MixSettings.hold_seconds`. Only the reply to the last query counts, and only within `mix_seconds`.
Until it comes, the previous mix stays. `2·mix_seconds` after the last reply it is dropped.

The throughput of a replica for one shape follows from the capacity that the core computed. It is
the engine-seconds per second at that capacity, over the engine-seconds of a request of that shape.
So over all shapes a pool carries its capacity. The shapes only say which load is expensive on which
pool.

Between replies the mix is the base load: `pool_allocation.follow_mix` keeps the larger types and
lets the smallest follow demand. Without shapes, load or reply the core allocates by the mean
request.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.performance.replica_capacity import ReplicaCapacity, find_unreachable_target
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_autoscaler.core.signals.validation import valid_count
from fairlead_autoscaler.core.types import MixRequest, MixResult, PoolCandidate
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram

MIX_SECONDS: Final = 300.0
"""Seconds between two queries about the mix."""

NO_REQUEST, REQUESTED, NO_RESULT, NO_SHAPES = "unasked", "asked", "unanswered", "no-shapes"
"""The rules of a group that follows no mix."""


@dataclass(frozen=True, slots=True)
class FollowedMix:
    """The mix that a group follows, and its last query.

    replicas: by pool; None: no mix is followed.
    rule: the solver's name for how it found the mix.
    asked_at: the time of the last query.
    changed_at: since when these replicas are followed.
    waiting: the last query has no reply yet.
    told_at: the time of the last reply.
    """

    replicas: Mapping[str, int] | None = None
    rule: str = NO_REQUEST
    asked_at: float | None = None
    changed_at: float | None = None
    waiting: bool = False
    told_at: float | None = None


@dataclass(frozen=True, slots=True)
class MixQuestion:
    """The description of a group in a query about its mix.

    requests_per_second: the load that all pools carry together.
    pools: with empty throughputs.
    """

    shapes: ShapeHistogram
    requests_per_second: float
    pools: Sequence[PoolCandidate]
    capacities: Mapping[str, ReplicaCapacity]
    steps: Mapping[str, StepModel]
    request_of_shape: Callable[[float, float], MeanRequest] = field(repr=False)
    targets_of_prompt: Callable[[float], LatencyTargets] = field(repr=False)


def update_mix(
    before: FollowedMix,
    now: float,
    question: MixQuestion | None,
    result: MixResult | None,
) -> tuple[FollowedMix, MixRequest | None]:
    """Returns the mix to follow at `now`, and the query that is due.

    question: None: there is nothing to query.
    result: the reply that came since the last tick.
    """
    mix = _accept_result(before, now, result)
    if mix.told_at is not None and now - mix.told_at >= 2.0 * MIX_SECONDS:
        mix = FollowedMix(rule=NO_RESULT if mix.waiting else NO_REQUEST, asked_at=mix.asked_at, waiting=mix.waiting)
    is_due = mix.asked_at is None or now - mix.asked_at >= MIX_SECONDS
    if question is None or not is_due:
        return mix, None
    rates, candidates = _rates_and_candidates(question)
    if not candidates:
        return FollowedMix(rule=NO_SHAPES, asked_at=now), None
    if mix.replicas is None:
        mix = replace(mix, rule=NO_RESULT if mix.waiting else REQUESTED)
    return replace(mix, asked_at=now, waiting=True), MixRequest(now, tuple(rates), tuple(candidates))


def _accept_result(before: FollowedMix, now: float, result: MixResult | None) -> FollowedMix:
    """Returns `before`, or the mix of `result` if it replies to the last query in time."""
    is_late = before.asked_at is None or now - before.asked_at > MIX_SECONDS
    if result is None or is_late or not before.waiting or result.asked_at != before.asked_at:
        return before
    replicas = None
    if result.replicas is not None:
        replicas = {name: valid_count(count) for name, count in result.replicas.items()}
    changed_at = before.changed_at if replicas == before.replicas else now
    return FollowedMix(replicas, result.rule, before.asked_at, changed_at, told_at=now)


def _rates_and_candidates(question: MixQuestion) -> tuple[list[float], list[PoolCandidate]]:
    """Returns the rates of the shapes that occurred, and the pools with their throughputs.

    There are no pools if less than one request is known.
    """
    counts = question.shapes.requests
    indices = [index for index, count in enumerate(counts) if count > 0.0]
    total = float_sum([counts[index] for index in indices])
    if total < 1.0:
        return [], []
    shapes = [question.shapes.shape(index) for index in indices]
    shares = [counts[index] / total for index in indices]
    candidates = [
        replace(pool, throughput=_throughput_by_shape(question, pool.name, shapes, shares)) for pool in question.pools
    ]
    return [share * question.requests_per_second for share in shares], candidates


def _throughput_by_shape(
    question: MixQuestion, pool: str, shapes: Sequence[tuple[float, float]], shares: Sequence[float]
) -> tuple[float, ...]:
    """Returns the requests per second of each shape alone on a replica of `pool`, 0 if it cannot
    serve the shape.

    Together, in their shares, the shapes that it can serve use the whole capacity of the replica.
    """
    step = question.steps[pool]
    work = [step.engine_seconds(question.request_of_shape(*shape)) for shape in shapes]
    servable = [
        find_unreachable_target(step, question.request_of_shape(*shape), question.targets_of_prompt(shape[0])) is None
        for shape in shapes
    ]
    served = float_sum([share for share, can in zip(shares, servable, strict=True) if can])
    if served <= 0.0:
        return (0.0,) * len(shapes)
    mean = (
        float_sum([share * seconds for share, seconds, can in zip(shares, work, servable, strict=True) if can]) / served
    )
    busy = question.capacities[pool].requests_per_second * mean
    return tuple(busy / seconds if can else 0.0 for seconds, can in zip(work, servable, strict=True))
