"""Sixteen engines with separate prefill and decode: a shift from long prompts to long answers.

The simulator's engines are those of `large_profile` in both roles, under the production core.
The core may have 16 replicas in all: an engine that one role releases starts for the other and is
ready ten seconds later. Decode engines compute the prompts that the gateway leaves to them. The
baselines are fixed divisions, and engines that only do what their role says.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import ScalingCore
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, ScheduleController, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import (
    PATIENCE_SECONDS,
    WARM_START,
    large_profile,
    reference_model,
    reference_pool,
)
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.routing.prefill_placement import PrefillPolicy

TTFT_SECONDS, ITL_SECONDS = 2.0, 0.1
LONG, SHORT_PROMPTS = (8_000, 100), (1_000, 800)
ENGINES = 16
STARTUP_SECONDS = WARM_START.min_seconds
OPTIMUM_SHARE = {LONG: 14, SHORT_PROMPTS: 6}
"""Engines that prefill in the division that carries most of each kind, where each does what its
role says."""
SATURATED = {LONG: 17.2, SHORT_PROMPTS: 57.0}
"""Requests per second that it carries, about."""

TrafficPart = tuple[tuple[int, int], float, float]
"""A shape (prompt and answer tokens), its requests per second, and for how many seconds."""


def shift_scenario(
    parts: Sequence[TrafficPart],
    prefill: int,
    seed: int,
    *,
    patience: float = PATIENCE_SECONDS,
    computing: PrefillPolicy = PrefillPolicy.SLACK,
) -> AutoscalingScenario:
    """Returns Poisson arrivals, one kind after the other, with time to finish the rest."""
    draw = random.Random(seed)
    arrivals: list[float] = []
    prompts: list[int] = []
    outputs: list[int] = []
    begin = 0.0
    for (prompt, output), rate, seconds in parts:
        at = begin
        while (at := at + draw.expovariate(rate)) < begin + seconds:
            arrivals.append(at)
            prompts.append(prompt)
            outputs.append(output)
        begin += seconds
    pools = [
        reference_pool(large_profile(), count, role=role, name=role.value.lower(), startup=WARM_START)
        for role, count in ((Role.PREFILL, prefill), (Role.DECODE, ENGINES - prefill))
    ]
    facts = replace(reference_model(pools, TTFT_SECONDS, ITL_SECONDS, patience=patience), replicas_most=ENGINES)
    return AutoscalingScenario(
        "flip", seed, begin, facts, tuple(pools), ArrivalTrace(arrivals, prompts, outputs), prefill_policy=computing
    )


def balanced_controller(made: AutoscalingScenario) -> ControllerOutcome:
    """Returns the production core."""
    return run_controller(made, ScalingCore(made.model))


def fixed_controller(made: AutoscalingScenario) -> ControllerOutcome:
    """Returns a controller that keeps the first division."""
    return run_controller(made, ScheduleController([]))


def run_shift(
    load: float,
    requests: int,
    prefill: int,
    seed: int,
    *,
    patience: float = PATIENCE_SECONDS,
    computing: PrefillPolicy = PrefillPolicy.SLACK,
) -> tuple[AutoscalingScenario, float]:
    """Returns equally many requests of both kinds, and the time at which the second kind begins.

    They arrive at ``load`` times the rate that the best division of each carries.
    """
    long, chatty = ((shape, load * SATURATED[shape], requests / (load * SATURATED[shape])) for shape in OPTIMUM_SHARE)
    return shift_scenario([long, chatty], prefill, seed, patience=patience, computing=computing), long[2]


def throughput(outcome: ControllerOutcome, begin: float = 0.0) -> float:
    """Returns the requests per second of those that arrived from ``begin`` on."""
    ends = [
        end - begin
        for arrival, end in zip(outcome.request_table.arrival, outcome.request_table.end, strict=True)
        if arrival >= begin
    ]
    return len(ends) / max(ends)


def settling_seconds(outcome: ControllerOutcome, begin: float, best: int, within: int = 1) -> float | None:
    """Returns the seconds from ``begin`` until the ready engines are near a division.

    The division has ``best`` of 16 for prefill. The engines must stay that near for two
    minutes; None if they never do. Where fewer than 16 are desired, the ratios are compared.
    """
    looks = [
        (look.now, abs(ENGINES * look.ready[0] / sum(look.ready) - best) <= within)
        for look in outcome.samples
        if look.now >= begin
    ]
    for at, _ in looks:
        if all(near for now, near in looks if at <= now <= at + 120.0):
            return at - begin
    return None


def saturated_throughput(
    prefill: int,
    shape: tuple[int, int],
    seed: int,
    *,
    begin: float = 100.0,
    end: float = 400.0,
    computing: PrefillPolicy = PrefillPolicy.APART,
) -> float:
    """Requests per second that a division finishes between ``begin`` and ``end`` seconds, when more
    arrive all the time than it can."""
    made = shift_scenario([(shape, 1.3 * SATURATED[shape], end)], prefill, seed, patience=1e9, computing=computing)
    ends = run_controller(made, ScheduleController([])).request_table.end
    return sum([begin < at <= end for at in ends]) / (end - begin)
