"""One measurement of the grid: a preset behind the router seam, on some traffic, from a seed; and
many of them side by side."""

import gc
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from fairlead.engine_profile import builtin_profile
from fairlead.runtime.compiled_build import compiled_copy_path
from fairlead_bench.measurement_cache import Measured
from fairlead_bench.measurement_cache import MeasurementCache as SharedLab
from fairlead_sim.adapters.external_router import SharingDelays
from fairlead_sim.compiled import package_folders
from fairlead_sim.experiments.trial import SeamKind, Trial
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind, scale_out_and_in
from fairlead_sim.fleet.results import WITHOUT_GUARD, CapacityGoal, attainment_by_window
from fairlead_sim.seams import router
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TraceRequest, at_rate, read_mooncake, spread_ties

FIRST_RATES = {"agents": 45.0, "tenants": 33.0, "rag": 25.5, "flash-crowd": 37.0, "bursty": 35.0, "conversation": 20.0}
"""Rates at which the search for a capacity starts, in requests/s of eight engines."""
SLO_SHARES = {
    "guarded": CapacityGoal(),
    "unguarded": WITHOUT_GUARD,
    "strict": CapacityGoal(seconds=2.0, share=0.99, guard_share=0.0),
}
REQUESTS_AN_ENGINE = 1_500
WINDOW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RoutingCell:
    """Without a ``rate`` its capacity is searched for, by ``bar``. ``sent_seconds`` None: gateways
    share nothing. ``happens`` names a script; ``pooled`` puts one memory under all engines and a
    router that sees every queue before them. Without ``seam`` one router is driven directly, as
    ``fairlead simulate`` does it. ``length`` is of the usual number of requests."""

    preset: str
    traffic: str
    seed: int
    profile: str = "h100-llama8b"
    engines: int = 8
    gateways: int = 1
    sent_seconds: float | None = 0.0
    loads_seconds: float = 0.0
    bar: str = "guarded"
    rate: float | None = None
    happens: str = ""
    pooled: bool = False
    seam: bool = True
    length: float = 1.0


def measure(cell: RoutingCell, trace: Path | None) -> Measured:
    """Returns the capacity in requests/s, or the figures at the cell's rate."""
    requests = _traffic(cell.traffic, cell.seed, int(cell.length * REQUESTS_AN_ENGINE * cell.engines), trace)
    gc.unfreeze()
    gc.collect()  # of the last cell
    gc.freeze()  # a fifth of the time went into looking through all requests again and again
    gc.set_threshold(50_000, 20, 100)
    trial = _trial(cell)
    if cell.rate is None:
        guess = FIRST_RATES[cell.traffic] * cell.engines / 8 * (1.0 if cell.profile == "h100-llama8b" else 0.36)
        return {"capacity": trial.capacity(requests, goal=SLO_SHARES[cell.bar], guess=guess)}
    scaled = at_rate(requests, cell.rate)
    trial = replace(trial, events=_fleet_events(cell, scaled[-1].arrival))
    begun = time.process_time()
    found = trial.metrics(scaled)
    seconds = time.process_time() - begun
    worst = {"worst_window": min(attainment_by_window(trial.run(scaled), WINDOW_SECONDS))} if cell.happens else {}
    return worst | {
        "attainment": found.attainment,
        "ttft_p90": found.ttft_p90 or math.inf,
        "tpot_p99": found.tpot_p99 or math.inf,
        "cached": found.cached_token_share,
        "spread": found.load_spread or 0.0,
        "preempted": found.preempted_share,
        "a_minute": 60.0 * found.requests / seconds,
    }


def _core(info: Mapping[str, Any], name: str, seed: int) -> Any:
    return router(info, preset=name, seed=seed)


def _trial(cell: RoutingCell) -> Trial:
    sharing = None if cell.sent_seconds is None else SharingDelays(cell.sent_seconds, cell.loads_seconds)
    seam = SeamKind(_core, cell.gateways, sharing) if cell.seam and not cell.pooled else None
    return Trial(
        cell.preset, builtin_profile(cell.profile), cell.engines, cell.seed, seam=seam, is_pooled_bound=cell.pooled
    )


def _fleet_events(cell: RoutingCell, end: float) -> tuple[FleetEvent, ...]:
    if cell.happens == "lost":
        return (FleetEvent(0.5 * end, FleetEventKind.LOSE, "sim-3/0/0"),)
    if cell.happens == "6-8-6":
        return scale_out_and_in(6, 8, 0.35 * end, 0.7 * end)
    return ()


@cache
def _traffic(name: str, seed: int, requests: int, trace: Path | None) -> list[TraceRequest]:
    if name == "conversation":
        assert trace is not None
        return [one for one in spread_ties(read_mooncake(trace)) if one.prompt_tokens <= MAX_PROMPT_TOKENS]
    return FAMILIES[name](requests, seed=seed)


class RoutingMeasurements(SharedLab[RoutingCell]):
    """Measures cells. What they depend on is all of the simulator and the router."""

    def __init__(self, keep: Path, trace: Path | None, jobs: int, said: Callable[[str], None]) -> None:
        state = compiled_copy_path(package_folders(), Path()).name
        super().__init__(keep, partial(measure, trace=trace), lambda _: state, jobs=jobs, said=said)
        self.trace = trace

    def name(self, cell: RoutingCell) -> str:
        """Returns the cell's name without the values that all have."""
        return f"{cell.preset}, {cell.traffic}, seed {cell.seed}"

    def capacities(self, cells: Sequence[RoutingCell]) -> list[float]:
        """Returns the capacity of each cell, in their order."""
        found = self(cells)
        return [found[cell]["capacity"] for cell in cells]


def geometric_mean(values: Iterable[float]) -> float:
    """Returns the geometric mean; 0 if a value is 0."""
    every = list(values)
    return math.exp(math.fsum(map(math.log, every)) / len(every)) if all(value > 0.0 for value in every) else 0.0
