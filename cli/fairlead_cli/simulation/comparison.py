"""The runs of a simulation: one preset after the other on the same requests."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_cli.simulation.options import SimulationOptions
from fairlead_sim.fleet.results import RunMetrics
from fairlead_sim.workload.traces import at_rate


@dataclass(frozen=True, slots=True)
class PresetResult:
    """Figures of one preset; ``capacity`` in requests/s, or None when it was not searched for."""

    preset: str
    figures: RunMetrics
    capacity: float | None


def compare_presets(options: SimulationOptions, on_progress: Callable[[str], None]) -> list[PresetResult]:
    """Returns one result for each preset, in the order of the options."""
    requests = at_rate(options.source.requests, options.rate)
    prompts = options.trial(options.presets[0]).prompt_cache()
    results = []
    for name in options.presets:
        trial = options.trial(name)
        figures = trial.metrics(requests, prompts=prompts)
        capacity = None
        if options.capacity:
            on_progress(f"  {name}: searching for its capacity")
            capacity = trial.capacity(requests, goal=options.capacity_goal, guess=options.rate, prompts=prompts)
        results.append(PresetResult(name, figures, capacity))
    return results
