"""The mixed-integer program as the scaling core asks it."""

from collections.abc import Callable
from dataclasses import replace

from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_autoscaler.mix.solve import solve_mix
from fairlead_autoscaler.mix.types import MixSettings

Solver = Callable[[MixRequest], MixResult]
"""From a question to its answer. It raises nothing."""

_FOLLOWED_RULES = ("milp", "milp-limit")
"""Only what the program found is followed: where there is no time, or no room, the core's own rule is as good as a greedy mix."""


_SIMULATION_SOLVE_SECONDS = 120.0


def simulation_solver() -> Solver:
    """A solver for simulated time. By the wall's clock a busy machine would be answered otherwise than a calm one, and a day in the
    simulator would be another day."""
    return create_solver(replace(MixSettings(), solve_seconds=_SIMULATION_SOLVE_SECONDS))


def create_solver(settings: MixSettings | None = None) -> Solver:
    """A solver with these settings. It raises nothing: a library that fails costs the mix, never a decision."""
    chosen = settings or MixSettings()

    def answer(asked: MixRequest) -> MixResult:
        try:
            mix = solve_mix(asked.rates, asked.candidates, chosen)
        except Exception as error:  # noqa: BLE001 - whatever a solver's library raises
            return MixResult(asked.at, None, f"failed: {type(error).__name__}")
        return MixResult(asked.at, mix.replicas if mix.rule in _FOLLOWED_RULES else None, mix.rule)

    return answer
