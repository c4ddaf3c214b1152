"""Which accelerators a model's requests are served on, and how many of each: the cheapest mix that carries the shapes seen.

    throughput(profile, prompt, output, objectives)             requests a second of a shape on one engine
    candidates_of(table), grid_of(table)                        an imported table instead (``fairlead_autoscaler.mix.profile_tables``)
    plan_mix(rates, candidates, settings) -> Mix                replicas and shares of each pool, with cost and reason
    solver(settings) -> Solver                                  the same, as the scaling core asks it
    unhurried() -> Solver                                       one for simulated time
    Desk(solver)                                                has it solved in a thread, beside the loop

Nothing here does I/O; solving takes up to ``MixSettings.solve_seconds``.
"""

from fairlead_autoscaler.mix.profile_tables import candidates_of, grid_of
from fairlead_autoscaler.mix.solve import solve_mix
from fairlead_autoscaler.mix.solver_adapter import Solver, create_solver, simulation_solver
from fairlead_autoscaler.mix.solver_queue import SolverQueue
from fairlead_autoscaler.mix.throughput import throughput
from fairlead_autoscaler.mix.types import AcceleratorMix, MixSettings, PoolCandidate

__all__ = [
    "AcceleratorMix",
    "MixSettings",
    "PoolCandidate",
    "Solver",
    "SolverQueue",
    "candidates_of",
    "create_solver",
    "grid_of",
    "simulation_solver",
    "solve_mix",
    "throughput",
]
