"""A controller runs a plant: an observation every tick, its plan applied at once; and what came of it, as numbers.

What a plan asks of a solver is answered with the next observation, as it is in an autoscaler whose solver takes less than a tick.
Where gateways hint, a request that meets no replica and none ordered has the next look come sooner, as it does in a cluster; at the
seam looks come every so many seconds, whatever happens.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from fairlead_autoscaler.scaling.values import MixAsked, MixTold, Observation, Plan, PoolPlan
from fairlead_sim.scaling.book import Book
from fairlead_sim.scaling.plant import Engines, Plant, Scenario

_HOUR = 3600.0


class Controller(Protocol):
    """What sizes pools: the production core, a preset, an outside tool behind an adapter."""

    def step(self, observation: Observation) -> Plan:
        """What to do now."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """One tick: what each pool had and was asked to have, in the order of the scenario's pools."""

    now: float
    ready: tuple[int, ...]
    desired: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """``attainment`` is the share (0..1) of all requests whose TTFT and mean ITL were within the objectives; who gave up or was
    cut is not. ``cost`` is in the pools' currency, ``replica_hours`` by pool. ``turns_per_hour`` counts changes of direction of a
    pool's desired replicas, ``changes_per_hour`` all changes. ``starts`` are (ordered, ready) by pool."""

    scenario: str
    requests: int
    attainment: float
    cost: float
    replica_hours: Mapping[str, float]
    abandoned: int
    lost: int
    changes_per_hour: float
    turns_per_hour: float
    looks: tuple[Look, ...]
    starts: Mapping[str, tuple[tuple[float, float], ...]]
    book: Book
    ttft_seconds: float
    itl_seconds: float

    def within(self, begin: float, end: float) -> float | None:
        """The share of the requests that arrived in [begin, end); None when none did."""
        places = [at for at, arrival in enumerate(self.book.arrival) if begin <= arrival < end]
        if not places:
            return None
        return sum([inside(self.book, at, self.ttft_seconds, self.itl_seconds) for at in places]) / len(places)


def inside(book: Book, request: int, ttft_seconds: float, itl_seconds: float) -> bool:
    """Whether a request met both objectives."""
    first, end = book.first[request], book.end[request]
    if first < 0.0 or end < 0.0 or first - book.arrival[request] > ttft_seconds:
        return False
    gaps = book.output[request] - 1
    return not gaps or end - first <= itl_seconds * gaps


def foreseen(scenario: Scenario, steps: Sequence[tuple[float, Mapping[str, int]]]) -> Outcome:
    """The whole scenario under a clairvoyant who has so many replicas *ready* from each moment on (from when, replicas by pool). The
    first step may be at 0: those are there from the start."""
    plant = Plant(scenario, foresight=True)
    names = list(plant.pools)
    looks: list[Look] = []
    for at, wanted in steps:
        plant.run(at)
        for name, count in wanted.items():
            plant.scale(name, count)
        ready = tuple([len(plant.pools[name].ready) for name in names])
        looks.append(Look(at, ready, tuple([plant.pools[name].desired for name in names])))
    plant.run(scenario.seconds)
    plant.finish()
    return _outcome(scenario, plant, looks)


def run(
    scenario: Scenario,
    controller: Controller,
    *,
    engines: Engines = Engines.AGGREGATED,
    solver: Callable[[MixAsked], MixTold] | None = None,
    hint_seconds: float | None = None,
) -> Outcome:
    """The whole scenario under one controller. ``engines``: other ones than in closed form. ``solver`` answers what plans ask;
    without one nobody does. ``hint_seconds``: from a request that meets no replica to the look that a gateway's hint brings; None:
    no gateway hints."""
    plant = Plant(scenario, engines=engines)
    names = list(plant.pools)
    looks: list[Look] = []
    now = 0.0
    told: dict[str, MixTold] = {}
    while now < scenario.seconds:
        now = min(scenario.seconds, now + scenario.model.interval_seconds, _hinted(plant, now, hint_seconds))
        plant.run(now)
        plan = controller.step(replace(plant.observe(), mixes=told))
        told = {} if solver is None else {role: solver(asked) for role, asked in plan.asks.items()}
        ready = tuple([len(plant.pools[name].ready) for name in names])
        for name, wanted in plan.pools.items():
            plant.scale(name, wanted.replicas, wanted.asleep)
        looks.append(Look(now, ready, tuple([plant.pools[name].desired for name in names])))
    plant.finish()
    return _outcome(scenario, plant, looks)


def _hinted(plant: Plant, now: float, hint_seconds: float | None) -> float:
    """When a gateway's hint brings the next look; never where there are replicas or some are ordered."""
    if hint_seconds is None or any(pool.desired for pool in plant.pools.values()):
        return math.inf
    arrivals = plant.book.arrival
    at = bisect_left(arrivals, now)
    return arrivals[at] + hint_seconds if at < len(arrivals) else math.inf


def _outcome(scenario: Scenario, plant: Plant, looks: list[Look]) -> Outcome:
    book, model = plant.book, scenario.model
    ttft = model.ttft_seconds or float("inf")
    itl = model.itl_seconds or float("inf")
    requests = len(scenario.load)
    good = sum([inside(book, request, ttft, itl) for request in range(requests)])
    hours = {name: pool.replica_seconds / _HOUR for name, pool in plant.pools.items()}
    first = tuple([setup.initial for setup in scenario.pools])
    series = [first, *[look.desired for look in looks]]
    changes, turns = 0, 0
    for desired in zip(*series, strict=True):
        steps = [after - before for before, after in pairwise(desired) if after != before]
        changes += len(steps)
        turns += sum([(one > 0) != (other > 0) for one, other in pairwise(steps)])
    spent = sum([hours[setup.facts.name] * setup.facts.cost_per_hour for setup in scenario.pools])
    span = scenario.seconds / _HOUR
    return Outcome(
        scenario=scenario.name,
        requests=requests,
        attainment=good / requests if requests else 1.0,
        cost=spent,
        replica_hours=hours,
        abandoned=book.abandoned,
        lost=book.lost,
        changes_per_hour=changes / span,
        turns_per_hour=turns / span,
        looks=tuple(looks),
        starts={name: tuple(pool.starts) for name, pool in plant.pools.items()},
        book=book,
        ttft_seconds=ttft,
        itl_seconds=itl,
    )


class Schedule:
    """A controller that knows when it wants how many: ``steps`` are (from when on, replicas by pool), in the order of time."""

    def __init__(self, steps: Sequence[tuple[float, Mapping[str, int]]]) -> None:
        self._steps = steps
        self._next = 0

    def step(self, observation: Observation) -> Plan:
        """What the schedule says at this moment."""
        wanted: Mapping[str, int] = {}
        while self._next < len(self._steps) and self._steps[self._next][0] <= observation.now:
            wanted = {**wanted, **self._steps[self._next][1]}
            self._next += 1
        return Plan({pool: PoolPlan(count, "schedule", "so it was laid down") for pool, count in wanted.items()})
