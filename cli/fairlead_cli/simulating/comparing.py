"""The runs of a simulation, one preset after the other on the same requests."""

from collections.abc import Callable
from dataclasses import dataclass

from fairlead_cli.simulating.asked import Asked
from fairlead_sim.figures import Figures
from fairlead_sim.traces import at_rate


@dataclass(frozen=True, slots=True)
class Result:
    """What one preset came to; ``capacity`` in requests/s where it was asked for."""

    preset: str
    figures: Figures
    capacity: float | None


def compare(wanted: Asked, say: Callable[[str], None]) -> list[Result]:
    """In the order asked."""
    requests = at_rate(wanted.source.requests, wanted.rate)
    prompts = wanted.trial(wanted.presets[0]).prompts()
    results = []
    for name in wanted.presets:
        trial = wanted.trial(name)
        found = trial.figures(requests, prompts=prompts)
        most = None
        if wanted.capacity:
            say(f"  {name}: searching for its capacity")
            most = trial.capacity(requests, bar=wanted.bar, guess=wanted.rate, prompts=prompts)
        results.append(Result(name, found, most))
    return results
