"""What a simulation is asked: checked values, and the same in words."""

from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_gateway.routing import PRESETS
from fairlead_sim.experiments.trial import Trial
from fairlead_sim.fleet.results import CapacityGoal
from fairlead_sim.workload.sources import TrafficSource, load_source

MAX_ENGINES = 1_024
GUARD_FACTOR = 3.0
"""Of the objective: within so many times it come 99 of 100 first tokens of a fleet that carries its load."""


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """``rate`` in requests/s; ``objective`` in seconds."""

    source: TrafficSource
    presets: tuple[str, ...]
    profile: EngineProfile
    engines: int
    rate: float
    objective: float
    capacity: bool
    seed: int

    def describe(self) -> str:
        """In a line."""
        return (
            f"traffic: {self.source.name}, {len(self.source.requests)} requests at {self.rate:.3g}/s; "
            f"{self.engines} engines {self.profile.name}, first token within {self.objective:g} s"
        )

    @property
    def capacity_bar(self) -> CapacityGoal:
        """What is within capacity."""
        return CapacityGoal(seconds=self.objective, guard_seconds=GUARD_FACTOR * self.objective)

    def trial(self, name: str) -> Trial:
        """Of one preset."""
        objectives = SloTargets(ttft_seconds=self.objective)
        return Trial(name, self.profile, self.engines, self.seed, objectives=objectives)


def build_options(
    traffic: str,
    *,
    presets: tuple[str, ...],
    profile: str,
    engines: int,
    rate: float | None,
    ttft_seconds: float,
    capacity: bool,
    limit: int | None,
    seed: int,
) -> SimulationOptions:
    """Raises BadInput naming the option."""
    for name in presets:
        if name not in PRESETS:
            raise BadInput(f"--presets: there is no preset {name!r}", field="--presets", hint=", ".join(PRESETS))
    if not presets:
        raise BadInput("--presets names nothing to compare", field="--presets", hint=", ".join(PRESETS))
    if not 1 <= engines <= MAX_ENGINES:
        raise BadInput(f"--engines must be from 1 to {MAX_ENGINES}, not {engines}", field="--engines")
    if rate is not None and not 0.0 < rate < float("inf"):
        raise BadInput(f"--rate must be above 0 requests/s, not {rate:g}", field="--rate")
    if not 0.0 < ttft_seconds < float("inf"):
        raise BadInput(f"--ttft must be above 0 s, not {ttft_seconds:g}", field="--ttft")
    known = builtin_profile(profile, field="--profile")
    found = load_source(traffic, limit=limit, seed=seed)
    return SimulationOptions(
        found, presets, known, engines, found.rate if rate is None else rate, ttft_seconds, capacity, seed
    )
