"""One measurement: a controller through a scenario."""

import gc
import time
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path

import fairlead_autoscaler
import fairlead_sim
from fairlead.runtime.compiled_build import sources_digest
from fairlead_autoscaler.core import ModelSpec, ScalingCore
from fairlead_autoscaler.mix import simulation_solver
from fairlead_bench.autoscaler.indicators import indicators
from fairlead_bench.measurement_cache import Measured
from fairlead_sim import autoscalers
from fairlead_sim.autoscalers import PRESETS, Controller, build
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, SimulatedPlant, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, EngineModelKind
from fairlead_sim.autoscaling.scenarios import ALL_SCENARIOS
from fairlead_sim.autoscaling.unservable_requests import find_unservable, servable_share

FAIRLEAD = "fairlead"
_HINT_SECONDS = 0.5
"""Seconds from a queued request to the tick that it triggers: 0.2 s at most, and the tick."""
KNOBS = 6
MIXED_SCENARIOS = ("smooth-mixed",)
"""Scenarios with several pools of one role: there our core asks a solver, as it does in the
autoscaler."""


@dataclass(frozen=True, slots=True)
class AutoscalerCell:
    """One controller through one scenario. ``knob`` is the value of a preset's first knob, None for
    its fixed one; Fairlead's core has none. ``traces`` is the folder of published traces, empty
    where there is none. ``preempting`` selects engines that preempt, token by token."""

    scenario: str
    seed: int
    controller: str
    knob: float | None = None
    traces: str = ""
    preempting: bool = False


def measure(cell: AutoscalerCell) -> Measured:
    """Returns the indicators of a cell and the processor seconds that it took.

    ``servable`` is the share within the SLO without the unservable requests.
    """
    scenario = scenario_of(cell.scenario, cell.seed, cell.traces)
    unservable = unservable_of(cell.scenario, cell.seed, cell.traces, cell.preempting)
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
        engine_model=_engine_model(cell.preempting),
        plant=plant,
        solver=simulation_solver() if ours else None,
        hint_seconds=_HINT_SECONDS if ours else None,
    )


@lru_cache(maxsize=1)
def scenario_of(name: str, seed: int, traces: str) -> AutoscalingScenario:
    """Returns the scenario. The last one is kept: the next cell is often of the same."""
    return ALL_SCENARIOS[name](seed, Path(traces) if traces else None)


@lru_cache(maxsize=1)
def unservable_of(name: str, seed: int, traces: str, preempting: bool) -> frozenset[int]:
    """Returns the requests of a scenario that no start could have served."""
    return find_unservable(scenario_of(name, seed, traces), engine_model=_engine_model(preempting))


def _engine_model(preempting: bool) -> EngineModelKind:
    return EngineModelKind.PREEMPTING if preempting else EngineModelKind.AGGREGATED


def make_controller(cell: AutoscalerCell, scenario: AutoscalingScenario) -> Controller:
    """Returns a new controller."""
    if cell.controller == FAIRLEAD:
        return ScalingCore(scenario.model)
    return preset_at(cell.controller, cell.knob, scenario.model)


def preset_at(name: str, knob: float | None, model: ModelSpec) -> Controller:
    """Returns a new controller of a preset; without a knob, at its default."""
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
