"""Solver queue: solves queries about the mix in a thread, so that no tick waits for a solver.

The thread solves one query after the other. A newer query of the same pools replaces one that has
not begun.

Why a thread and no process: the solver's library lets other threads run. A thread that wanted to
run every millisecond waited 5 ms at most, while six problems of 10 × 10 shapes and six types were
solved.
"""

from collections.abc import Collection, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from fairlead_autoscaler.core import MixRequest, MixResult
from fairlead_autoscaler.mix.solver_adapter import Solver


class SolverQueue:
    """The queue of queries about the mix, with their replies. Its methods belong to one thread.

    executor: runs the solver; None: a thread of its own.
    """

    def __init__(self, solver: Solver, executor: Executor | None = None) -> None:
        self._solver = solver
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="mix")
        self._open: dict[str, dict[str, Future[MixResult]]] = {}

    def submit(self, model: str, requests: Mapping[str, MixRequest]) -> None:
        """Queues the queries of the roles of `model`."""
        for role, request in requests.items():
            waiting = self._open.setdefault(model, {})
            if role in waiting:
                waiting[role].cancel()
            waiting[role] = self._executor.submit(self._solver, request)

    def take_results(self, model: str) -> dict[str, MixResult]:
        """Returns the replies, by role, that came since the last call."""
        waiting = self._open.get(model, {})
        done = {role: future.result() for role, future in waiting.items() if future.done()}
        for role in done:
            del waiting[role]
        return done

    def retain(self, models: Collection[str]) -> None:
        """Drops the queries of all other models."""
        for gone in self._open.keys() - set(models):
            for future in self._open.pop(gone).values():
                future.cancel()

    def close(self) -> None:
        """Stops. What is being solved ends, and its reply is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)
