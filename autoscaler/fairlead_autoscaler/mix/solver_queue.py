"""Solver queue: solves queries about the mix in a thread, so that no tick waits for a solver.

The thread solves one query after the other. Namespaces take turns: one may have any number of
models, whose problems take as long as allowed. A newer query of the same pools takes the place of
one that has not begun.

Why a thread and no process: the solver's library lets other threads run. A thread that wanted to
run every millisecond waited 5 ms at most, while six problems of 10 × 10 shapes and six types were
solved.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
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


class SolverQueue:
    """The queue of queries about the mix, with their replies.

    executor: runs the solver; None: a thread of its own.
    """

    def __init__(self, solver: Solver, executor: Executor | None = None) -> None:
        self._solver = solver
        self._executor = executor or ThreadPoolExecutor(1, thread_name_prefix="mix")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, OrderedDict[tuple[str, str], MixRequest]] = OrderedDict()
        """By namespace, whose turn is next first; then by model and role."""
        self._results: dict[str, dict[str, MixResult]] = {}

    def submit(self, model: str, requests: Mapping[str, MixRequest]) -> None:
        """Queues the queries of the roles of `model`."""
        for role, request in requests.items():
            with self._lock:
                waiting = self._waiting.setdefault(_namespace_of(model), OrderedDict())
                is_new = (model, role) not in waiting
                waiting[model, role] = request
            if is_new:
                self._executor.submit(self._solve_next)

    def take_results(self, model: str) -> dict[str, MixResult]:
        with self._lock:
            return self._results.pop(model, {})

    def retain(self, models: Collection[str]) -> None:
        """Drops the queries and replies of all other models."""
        known = set(models)
        with self._lock:
            for namespace, waiting in list(self._waiting.items()):
                for key in [key for key in waiting if key[0] not in known]:
                    del waiting[key]
                if not waiting:
                    del self._waiting[namespace]
            for gone in self._results.keys() - known:
                del self._results[gone]

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _solve_next(self) -> None:
        """Solves one query of the namespace whose turn it is; none if all were dropped."""
        with self._lock:
            if not self._waiting:
                return
            namespace, waiting = next(iter(self._waiting.items()))
            (model, role), request = waiting.popitem(last=False)
            self._waiting.move_to_end(namespace)
            if not waiting:
                del self._waiting[namespace]
        result = self._solver(request)
        with self._lock:
            self._results.setdefault(model, {})[role] = result


def _namespace_of(model: str) -> str:
    return model.partition("/")[0]
