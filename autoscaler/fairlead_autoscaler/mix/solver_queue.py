"""Where questions about the mix wait for their answers: solved beside the loop, so that no tick waits for a solver.

One thread solves one question after the other. The solver's library lets others run meanwhile (measured: a thread that wants to
run every millisecond waited 5 ms at most while six problems of 10 × 10 shapes and six types were solved), so a thread is enough and
no process is needed. A newer question of the same pools takes the place of one that was not begun.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_autoscaler.mix.solver_adapter import Solver


class SolverQueue:
    """``executor`` runs the solver; without one a thread of its own does. Call it from one thread."""

    def __init__(self, solver: Solver, executor: Executor | None = None) -> None:
        self._solver = solver
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="mix")
        self._open: dict[str, dict[str, Future[MixResult]]] = {}

    def submit(self, model: str, asks: Mapping[str, MixRequest]) -> None:
        """Have these solved; they are of the roles of ``model``."""
        for role, asked in asks.items():
            waiting = self._open.setdefault(model, {})
            if role in waiting:
                waiting[role].cancel()
            waiting[role] = self._executor.submit(self._solver, asked)

    def take_results(self, model: str) -> dict[str, MixResult]:
        """The answers, by role, that came since this was asked last."""
        waiting = self._open.get(model, {})
        done = {role: future.result() for role, future in waiting.items() if future.done()}
        for role in done:
            del waiting[role]
        return done

    def retain(self, models: Collection[str]) -> None:
        """Forget what others asked."""
        for gone in self._open.keys() - set(models):
            for future in self._open.pop(gone).values():
                future.cancel()

    def close(self) -> None:
        """Take no more; what is being solved comes to its end unheard."""
        self._executor.shutdown(wait=False, cancel_futures=True)
