"""One measurement: a controller through a scenario.

Indicators of an outcome beyond its share and cost: recovery after a step, windows without
metrics, wake-up of a pool. Pure; seconds count from the scenario's start.
"""

import gc
import math
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path

import fairlead_autoscaler
import fairlead_sim
from fairlead.runtime.compiled_build import sources_digest
from fairlead_autoscaler.core import ModelSpec, ScalingCore
from fairlead_autoscaler.mix import simulation_solver
from fairlead_bench.measurement_cache import Measured
from fairlead_sim import autoscalers
from fairlead_sim.autoscalers import PRESETS, Controller, build
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, SimulatedPlant
from fairlead_sim.autoscaling.scenarios import ALL_SCENARIOS
from fairlead_sim.autoscaling.unservable_requests import find_unservable, servable_share

AFTER_SECONDS = 300.0
AGAIN_SHARE = 0.95
AGAIN_SECONDS = 60.0
QUIET_SECONDS = 400.0
_GRAIN = 5.0

FAIRLEAD = "fairlead"
_HINT_SECONDS = 0.5
"""Seconds from a queued request to the tick that it triggers: 0.2 s at most, and the tick."""
KNOBS = 6
MIXED_SCENARIOS = ("smooth-mixed",)
"""Scenarios with several pools of one role: there our core asks a solver, as it does in the
autoscaler."""


def indicators(scenario: AutoscalingScenario, outcome: ControllerOutcome) -> dict[str, float]:
    """Returns the figures of a cell."""
    found = {
        "requests": float(outcome.requests),
        "attainment": outcome.attainment,
        "cost": outcome.cost,
        "changes": outcome.changes_per_hour,
        "turns": outcome.reversals_per_hour,
        "abandoned": float(outcome.abandoned),
        "lost": float(outcome.lost),
    }
    windows = (*scenario.faults.missing, *scenario.faults.zeroed)
    if windows:
        found |= in_windows(outcome, windows)
    if scenario.name.startswith("step"):
        found["again_seconds"] = recovery_seconds(scenario, outcome)
    if scenario.name.startswith("zero"):
        found["wake_seconds"] = wake_seconds(outcome)
    return found


def in_windows(outcome: ControllerOutcome, windows: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Returns the worst share inside a window and the largest number of replicas removed in one.

    Both are over all windows, each with ``AFTER_SECONDS`` behind it. A replica is removed when
    fewer are desired than just before the window.
    """
    shares, away = [], 0
    for begin, end in windows:
        share = outcome.attainment_between(begin, end + AFTER_SECONDS)
        shares.append(1.0 if share is None else share)
        before = [look.desired for look in outcome.samples if look.now < begin][-1]
        for look in outcome.samples:
            if begin <= look.now < end + AFTER_SECONDS:
                away = max(away, *[was - now for was, now in zip(before, look.desired, strict=True)])
    return {"window_attainment": min(shares), "window_away": float(away)}


def rising_steps(scenario: AutoscalingScenario) -> float:
    """Returns the minutes that bring the largest rise of the load."""
    counts: dict[int, int] = {}
    for arrival in scenario.load.arrivals:
        counts[int(arrival / 60.0)] = counts.get(int(arrival / 60.0), 0) + 1
    last = int(scenario.seconds / 60.0)
    return 60.0 * max(range(1, last), key=lambda minute: counts.get(minute, 0) - counts.get(minute - 1, 0))


def recovery_seconds(scenario: AutoscalingScenario, outcome: ControllerOutcome) -> float:
    """Returns the seconds until a minute's requests are again within the SLO to ``AGAIN_SHARE``.

    They count from the first moment at which a replica ordered at the step can be ready.
    The result is 0 if the share never falls below that afterwards.
    """
    first = rising_steps(scenario) + min(setup.startup.min_seconds for setup in scenario.pools)
    at = first
    while at + AGAIN_SECONDS <= scenario.seconds:
        share = outcome.attainment_between(at, at + AGAIN_SECONDS)
        if share is None or share >= AGAIN_SHARE:
            return at - first
        at += _GRAIN
    return math.inf


def wake_seconds(outcome: ControllerOutcome) -> float:
    """Returns by how much the first requests after silence waited longer for their first token than
    a start takes. The maximum counts; infinite where one never had a token. Beyond the start are
    the time until the first replica is ordered and the time after the first is ready. Which of
    several ordered replicas is ready first belongs to the start. Requests that found a ready
    replica do not count."""
    book = outcome.request_table
    readies = sorted([ready for pool in outcome.starts.values() for _, ready in pool])
    orders = [look.now for look in outcome.samples if any(look.desired)]
    longest, last = 0.0, -math.inf
    for arrival, first in zip(book.arrival, book.first, strict=True):
        silent = arrival - last >= QUIET_SECONDS
        last = arrival
        if silent and first < 0.0:
            return math.inf
        if silent:
            ordered, ready = _first(orders, arrival, first), _first(readies, arrival, first)
            start = 0.0 if ordered is None or ready is None else max(0.0, ready - ordered)
            longest = max(longest, first - arrival - start)
    return longest


def _first(moments: Sequence[float], begin: float, end: float) -> float | None:
    at = bisect_left(moments, begin)
    return moments[at] if at < len(moments) and moments[at] <= end else None


@dataclass(frozen=True, slots=True)
class AutoscalerCell:
    """One controller through one scenario. ``knob`` is the value of a preset's first knob, None for
    its fixed one; Fairlead's core has none. ``traces`` is the folder of published traces, empty
    where there is none."""

    scenario: str
    seed: int
    controller: str
    knob: float | None = None
    traces: str = ""


def measure(cell: AutoscalerCell) -> Measured:
    """Returns the indicators of a cell and the processor seconds that it took.

    ``servable`` is the share within the SLO without the unservable requests.
    """
    scenario = scenario_of(cell.scenario, cell.seed, cell.traces)
    unservable = unservable_of(cell.scenario, cell.seed, cell.traces)
    gc.freeze()  # the requests of a day are looked through again and again otherwise
    begun = time.process_time()
    outcome = run_scenario(cell, scenario)
    seconds = time.process_time() - begun
    servable = servable_share(outcome, unservable)
    return {
        **indicators(scenario, outcome),
        "servable": servable.share,
        "unservable": float(servable.unservable),
        "seconds": seconds,
    }


def run_scenario(
    cell: AutoscalerCell, scenario: AutoscalingScenario, plant: SimulatedPlant | None = None
) -> ControllerOutcome:
    """Runs the cell's scenario under its controller.

    Fairlead's core has a solver and wake hints, as in a cluster.

    plant: a new plant of this scenario; None: one with the cell's engines.
    """
    ours = cell.controller == FAIRLEAD
    return run_controller(
        scenario,
        make_controller(cell, scenario),
        plant=plant,
        solver=simulation_solver() if ours else None,
        hint_seconds=_HINT_SECONDS if ours else None,
    )


@lru_cache(maxsize=1)
def scenario_of(name: str, seed: int, traces: str) -> AutoscalingScenario:
    return ALL_SCENARIOS[name](seed, Path(traces) if traces else None)


@lru_cache(maxsize=1)
def unservable_of(name: str, seed: int, traces: str) -> frozenset[int]:
    return find_unservable(scenario_of(name, seed, traces))


def make_controller(cell: AutoscalerCell, scenario: AutoscalingScenario) -> Controller:
    """Returns a new controller."""
    if cell.controller == FAIRLEAD:
        return ScalingCore(scenario.model)
    return preset_at(cell.controller, cell.knob, scenario.model)


def preset_at(name: str, knob: float | None, model: ModelSpec) -> Controller:
    return build(name, model, **({} if knob is None else {PRESETS[name].parameters[0].name: knob}))


def source_digest(cell: AutoscalerCell) -> str:
    """Returns a digest of the sources of the plant and of the controller. A change of one preset
    keeps the measurements of the others."""
    place = Path(fairlead_autoscaler.__path__[0])
    if cell.controller == FAIRLEAD:
        parts = ("core", "mix") if cell.scenario in MIXED_SCENARIOS else ("core",)
        return _digest(tuple([file for part in parts for file in sorted((place / part).rglob("*.py"))]), ())
    rule = cell.controller.partition("-")[0]
    presets = Path(autoscalers.__path__[0])
    files = sorted(presets.glob(f"{rule}*.py")) + [presets / f"{name}.py" for name in ("metrics", "controller")]
    return _digest(tuple(files), tuple([knob.default for knob in PRESETS[cell.controller].parameters[1:]]))


@cache
def _digest(files: tuple[Path, ...], values: tuple[float, ...]) -> str:
    plant = [Path(place) / "autoscaling" for place in fairlead_sim.__path__]
    digest = sha256(f"{sources_digest(plant)} {values}".encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def knob_values(name: str) -> list[float]:
    """Returns at most ``KNOBS`` evenly spread values of the grid, with its ends and its default."""
    knob = PRESETS[name].parameters[0]
    last = len(knob.grid) - 1
    return sorted({knob.grid[round(place * last / (KNOBS - 1))] for place in range(KNOBS)} | {knob.default})
