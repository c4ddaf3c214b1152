"""Accelerator mix: the cheapest replicas of several pools that carry the shapes of requests. No
I/O.

- `solve`: throughputs of a shape, and the mix for given rates, by `milp` or else `greedy`.
- `solver_queue`: the solver as the scaling core queries it, in a thread between the ticks.

Solving takes up to `MixSettings.solve_seconds`.
"""

from fairlead_autoscaler.mix.solve import solve_mix, throughput
from fairlead_autoscaler.mix.solver_queue import Solver, SolverQueue, create_solver, simulation_solver
from fairlead_autoscaler.mix.types import AcceleratorMix, MixSettings, PoolCandidate

__all__ = [
    "AcceleratorMix",
    "MixSettings",
    "PoolCandidate",
    "Solver",
    "SolverQueue",
    "create_solver",
    "simulation_solver",
    "solve_mix",
    "throughput",
]
