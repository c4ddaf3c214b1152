"""Checked options of a simulation."""

from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead_cli.simulation.arguments import SimulationArguments
from fairlead_gateway.routing import PRESETS
from fairlead_sim.experiments.trial import Trial
from fairlead_sim.fleet.results import CapacityGoal
from fairlead_sim.workload.sources import TrafficSource, load_source

MAX_ENGINES = 1_024
GUARD_FACTOR = 3.0
"""At capacity, 99 of 100 first tokens come within this multiple of the latency target."""


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The simulation to run. ``rate``: requests/s. ``objective``: TTFT target in seconds."""

    source: TrafficSource
    presets: tuple[str, ...]
    profile: EngineProfile
    engines: int
    rate: float
    objective: float
    capacity: bool
    seed: int

    def describe(self) -> str:
        """Returns the options in one line of text."""
        return (
            f"traffic: {self.source.name}, {len(self.source.requests)} requests at {self.rate:.3g}/s; "
            f"{self.engines} engines {self.profile.name}, first token within {self.objective:g} s"
        )

    @property
    def capacity_goal(self) -> CapacityGoal:
        """The goals for first tokens that a rate within capacity meets."""
        return CapacityGoal(seconds=self.objective, guard_seconds=GUARD_FACTOR * self.objective)

    def trial(self, name: str) -> Trial:
        """Returns the trial of one preset."""
        objectives = SloTargets(ttft_seconds=self.objective)
        return Trial(name, self.profile, self.engines, self.seed, objectives=objectives)


def build_options(traffic: str, arguments: SimulationArguments) -> SimulationOptions:
    """Checks the arguments. Raises BadInput with the option."""
    presets, engines, rate, ttft = arguments.presets, arguments.engines, arguments.rate, arguments.ttft
    for name in presets:
        if name not in PRESETS:
            raise BadInput(f"--presets: there is no preset {name!r}", field="--presets", hint=", ".join(PRESETS))
    if not presets:
        raise BadInput("--presets names nothing to compare", field="--presets", hint=", ".join(PRESETS))
    if not 1 <= engines <= MAX_ENGINES:
        raise BadInput(f"--engines must be from 1 to {MAX_ENGINES}, not {engines}", field="--engines")
    if rate is not None and not 0.0 < rate < float("inf"):
        raise BadInput(f"--rate must be above 0 requests/s, not {rate:g}", field="--rate")
    if not 0.0 < ttft < float("inf"):
        raise BadInput(f"--ttft must be above 0 s, not {ttft:g}", field="--ttft")
    profile = builtin_profile(arguments.profile, field="--profile")
    source = load_source(traffic, limit=arguments.limit, seed=arguments.seed)
    return SimulationOptions(
        source=source,
        presets=presets,
        profile=profile,
        engines=engines,
        rate=source.rate if rate is None else rate,
        objective=ttft,
        capacity=arguments.capacity,
        seed=arguments.seed,
    )
