"""Which pools carry a group's load: asked of a solver every few minutes, and followed in between.

Where a request can go to one pool or to another, the cheapest division depends on more than the mean request: on how long prompts
and answers are, all of them, and on what cannot be served somewhere at all. That is a mixed-integer program
(``fairlead_autoscaler.mix``), which is handed in as a function: nothing here knows a solver. It is asked for every
``mix_seconds``, so a mix stays for that long at least; what starts and stops is charged for there.

What a replica carries of one shape is the core's own knee, in the core's own unit: its engine-seconds per second at the knee, divided
by the engine-seconds of a request of that shape. Over all shapes together a pool so carries exactly what the core says it does; the
shapes only say which part of the load is dear where, and which a pool cannot serve at all.

In between the mix is the base load: ``split.follow`` keeps the large types as it has them and lets the smallest follow the need.
Where there is no solver, no shapes, no load or no answer, nothing of this holds and ``split.divide`` does what it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead_autoscaler.scaling.capacity import Capacity, Mix, Objectives, Step
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.shapes import Histogram

UNASKED = "unasked"
"""The rule of a mix that there is none of."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pool that may take a part of the traffic: one replica costs ``cost_per_hour`` and serves ``throughput`` of each
    shape alone (requests per second; 0 = it cannot). ``running`` replicas are there or starting; a new one takes
    ``startup_seconds``, for which it costs and serves nothing."""

    name: str
    cost_per_hour: float
    throughput: tuple[float, ...]
    minimum: int = 0
    maximum: int = 1_000
    running: int = 0
    startup_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a solver says: replicas by pool, None where it found none that is better than no solver. ``rule`` is its word for how
    it came to that."""

    replicas: Mapping[str, int] | None
    rule: str


Solver = Callable[[Sequence[float], Sequence[Candidate]], Answer]
"""From requests per second of each shape, and pools, to an answer. It takes a second at most, and raises nothing."""


@dataclass(frozen=True, slots=True)
class Blend:
    """The mix that is followed, ``replicas`` by pool (None: none is), since when, and when the solver was asked last."""

    replicas: Mapping[str, int] | None = None
    rule: str = UNASKED
    asked_at: float | None = None
    changed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What a solver is asked about a group: the shapes that were seen, ``requests_per_second`` to be carried in all, and its pools,
    ``throughput`` still empty; the knee and the steps of each."""

    shapes: Histogram
    requests_per_second: float
    pools: Sequence[Candidate]
    capacities: Mapping[str, Capacity]
    steps: Mapping[str, Step]
    as_seen: Callable[[float, float], Mix] = field(repr=False)
    objectives: Callable[[float], Objectives] = field(repr=False)


def turned(
    before: Blend, now: float, question: Question | None, solver: Solver | None, settings: ScalingSettings
) -> Blend:
    """The mix to follow ``now``. ``question`` is None where there is nothing to ask: what is followed stays for as long as it would
    have been without a new answer, and then is given up."""
    if solver is None:
        return before if before == Blend() else Blend()
    due = before.asked_at is None or now - before.asked_at >= settings.mix_seconds
    if question is None:
        old = before.asked_at is not None and now - before.asked_at >= 2.0 * settings.mix_seconds
        return Blend() if old else before
    if not due:
        return before
    rates, candidates = _asked(question)
    if not candidates:
        return Blend(None, "no-shapes", now, before.changed_at)
    answer = solver(rates, candidates)
    replicas = _known(answer, question)
    same = replicas == before.replicas
    return Blend(replicas, answer.rule, now, before.changed_at if same else now)


def _known(answer: Answer, question: Question) -> dict[str, int] | None:
    """The answer's replicas of the pools that were asked about, within their bounds."""
    found = answer.replicas
    if found is None or any(one.name not in found for one in question.pools):
        return None
    return {one.name: min(one.maximum, max(one.minimum, found[one.name])) for one in question.pools}


def _asked(question: Question) -> tuple[list[float], list[Candidate]]:
    """Rates of the shapes that came, and what each pool carries of them; no pools where too little came to say."""
    counts = question.shapes.requests
    seen = [index for index, count in enumerate(counts) if count > 0.0]
    total = sum(counts[index] for index in seen)
    if total < 1.0:
        return [], []
    shapes = [question.shapes.shape(index) for index in seen]
    shares = [counts[index] / total for index in seen]
    candidates = [
        Candidate(
            one.name,
            one.cost_per_hour,
            _carried(question, one.name, shapes, shares),
            one.minimum,
            one.maximum,
            one.running,
            one.startup_seconds,
        )
        for one in question.pools
    ]
    return [share * question.requests_per_second for share in shares], candidates


def _carried(
    question: Question, name: str, shapes: Sequence[tuple[float, float]], shares: Sequence[float]
) -> tuple[float, ...]:
    """Requests per second of each shape alone, such that all that the pool can serve, together, come to its knee."""
    step = question.steps[name]
    works = [step.work(question.as_seen(*shape)) for shape in shapes]
    able = [_serves(step, question.as_seen(*shape), question.objectives(shape[0])) for shape in shapes]
    served = sum(share for share, can in zip(shares, able, strict=True) if can)
    if served <= 0.0:
        return (0.0,) * len(shapes)
    mean = sum(share * work for share, work, can in zip(shares, works, able, strict=True) if can) / served
    busy = question.capacities[name].requests_per_second * mean
    return tuple(busy / work if can else 0.0 for work, can in zip(works, able, strict=True))


def _serves(step: Step, mix: Mix, objectives: Objectives) -> bool:
    """Could a replica with nothing else to do serve such a request within the objectives?"""
    if mix.prompt + mix.output > step.kv_tokens:
        return False
    chunks = max(1.0, mix.computed / step.chunk)
    first = chunks * step.base + step.prompt_seconds(mix)
    gap = step.base + step.token_seconds(mix.context)
    ttft, itl = objectives.ttft_seconds, objectives.itl_seconds
    return (ttft is None or first <= ttft) and (itl is None or mix.output < 2.0 or gap <= itl)
