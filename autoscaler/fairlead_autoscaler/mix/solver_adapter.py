"""Solver adapter: the solver as the scaling core queries it."""

from collections.abc import Callable
from dataclasses import replace

from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_autoscaler.mix.solve import solve_mix
from fairlead_autoscaler.mix.types import MixSettings

Solver = Callable[[MixRequest], MixResult]
"""A function from a query to its reply. It raises nothing."""

_FOLLOWED_RULES = ("milp", "milp-limit")
"""The core follows only what the program found. Without time or room, its own allocation is as good
as a greedy mix.
"""


_SIMULATION_SOLVE_SECONDS = 120.0


def simulation_solver() -> Solver:
    """Returns a solver for simulated time.

    Why: with a limit on the machine's clock, a busy machine would get other results than an idle
    one.
    """
    return create_solver(replace(MixSettings(), solve_seconds=_SIMULATION_SOLVE_SECONDS))


def create_solver(settings: MixSettings | None = None) -> Solver:
    """Returns a solver with these settings.

    The solver raises nothing. Its result has no mix if the program finds none in time or fails.
    """
    chosen = settings or MixSettings()

    def solve(request: MixRequest) -> MixResult:
        try:
            mix = solve_mix(request.rates, request.candidates, chosen)
        except Exception as error:  # noqa: BLE001 - whatever a solver's library raises
            return MixResult(request.at, None, f"failed: {type(error).__name__}")
        return MixResult(request.at, mix.replicas if mix.rule in _FOLLOWED_RULES else None, mix.rule)

    return solve
