"""The requests of a scenario that no start could have served, and shares without them.

A request is unservable if it misses the SLO even in this run: it begins with the start fleet. At
the first tick after each sudden change every pool orders its maximum, and keeps it while starts
last. Only requests that arrive in that time count. The beginning of a run is a sudden change too.

The set belongs to the scenario, not to a controller. So the same requests are left out for every
controller and for the offline optimum. Crashes and slow engines are no such change: a controller
can hold replicas in reserve for them.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, is_within_slo, run_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind, Plant
from fairlead_sim.autoscaling.request_table import ArrivalTrace

_SPARE_SECONDS: Final = 30.0
"""Seconds beyond the longest start in which a queue from before may still delay requests."""


@dataclass(frozen=True, slots=True)
class ServableShare:
    """The share (0..1) of the servable requests within the SLO, and the number of the others."""

    share: float
    unservable: int


def find_unservable(
    scenario: AutoscalingScenario, *, engine_model: EngineModelKind = EngineModelKind.AGGREGATED
) -> frozenset[int]:
    """Returns the indices of the unservable requests. This takes a run of the plant."""
    windows = _rescue_windows(scenario)
    initial = {setup.facts.name: setup.initial for setup in scenario.pools}
    maximum = {setup.facts.name: setup.facts.maximum for setup in scenario.pools}
    steps = [step for _, look, end in windows for step in ((look, maximum), (end, initial))]
    horizon = min(scenario.seconds, windows[-1][2])
    brief = replace(scenario, seconds=horizon, load=_arrivals_before(scenario.load, horizon))
    steps = [(at, counts) for at, counts in steps if at < horizon]
    outcome = run_schedule(brief, steps, Plant(brief, engine_model=engine_model))
    return frozenset(
        request
        for request, arrival in enumerate(brief.load.arrivals)
        if any(change <= arrival < end for change, _, end in windows)
        and not is_within_slo(outcome.request_table, request, outcome.ttft_seconds, outcome.itl_seconds)
    )


def servable_share(outcome: ControllerOutcome, unservable: Collection[int]) -> ServableShare:
    """Returns the share within the SLO of a run without the unservable requests."""
    left_out = frozenset(unservable)
    table, ttft, itl = outcome.request_table, outcome.ttft_seconds, outcome.itl_seconds
    servable = [request for request in range(outcome.requests) if request not in left_out]
    within = sum([is_within_slo(table, request, ttft, itl) for request in servable])
    return ServableShare(within / len(servable) if servable else 1.0, len(left_out))


def _rescue_windows(scenario: AutoscalingScenario) -> list[tuple[float, float, float]]:
    """Returns (change, first tick after it, end of the help) of each sudden change, in order.

    Windows do not overlap: a change within the help for another prolongs that help.
    """
    interval = scenario.model.interval_seconds
    longest = max([setup.startup.min_seconds + setup.startup.spread_seconds for setup in scenario.pools])
    windows: list[tuple[float, float, float]] = []
    for change in sorted({0.0, *scenario.sudden_changes}):
        look = (change // interval + 1) * interval
        end = look + longest + _SPARE_SECONDS
        if windows and change < windows[-1][2]:
            first_change, first_look, _ = windows.pop()
            windows.append((first_change, first_look, end))
        else:
            windows.append((change, look, end))
    return windows


def _arrivals_before(load: ArrivalTrace, seconds: float) -> ArrivalTrace:
    count = sum(arrival < seconds for arrival in load.arrivals)
    return ArrivalTrace(load.arrivals[:count], load.prompts[:count], load.outputs[:count])
