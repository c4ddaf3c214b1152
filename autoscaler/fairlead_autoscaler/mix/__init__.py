"""Accelerator mix: the cheapest replicas of several pools that carry the shapes of requests. No
I/O.

- `throughput`: requests per second of a shape on one engine.
- `profile_tables`: imported tables of throughputs instead.
- `solve`: the mix for given rates, by `milp` or else `greedy`.
- `solver_adapter`: the solver as the scaling core queries it, and one for simulated time.
- `solver_queue`: solves queries in a thread, between the ticks.

Solving takes up to `MixSettings.solve_seconds`.
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
