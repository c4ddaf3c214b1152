"""From figures to rows: the goals' first, then what both subjects showed, side by side."""

from collections.abc import Callable, Iterator, Mapping

from fairlead_bench.operator.measurement import DELETED_CHILDREN, BatchFigures, OperatorFigures
from fairlead_bench.operator.subject_process import BASELINE, FAIRLEAD
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row

BASE_MS, WRITE_MS = 1.0, 0.6
_BUDGET = f"{BASE_MS:g} ms + {WRITE_MS:g} ms × writes"


def rows(found: Mapping[str, OperatorFigures]) -> list[ResultRow]:
    """Returns the rows of measured figures; a goal without its figure does not hold."""
    ours, naive = found.get(FAIRLEAD, OperatorFigures()), found.get(BASELINE, OperatorFigures())
    return [*_goal_rows(ours), *_baseline_rows(ours, naive)]


def _goal_rows(ours: OperatorFigures) -> Iterator[ResultRow]:
    wanted = load_goals("operator")

    def row(metric: str, unit: str, value: float | None) -> ResultRow:
        return value_row(metric, unit, value, wanted[metric])

    yield row("models of 1,000 with their objects and a status", "", _batch_rows(ours.created, lambda one: one.done))
    yield row("create → children, alone: p50", "s", ours.alone)
    for metric, crowd in (("created", ours.created), ("changed", ours.changed)):
        name = f"CPU per model {metric} ÷ ({_BUDGET})"
        budget = _batch_rows(crowd, lambda one: BASE_MS + WRITE_MS * one.writes_each)
        yield ratio_row(name, "ms", _batch_rows(crowd, lambda one: one.cpu_ms), _BUDGET, budget, wanted[name])
    yield row("writes in a minute of steady state", "", ours.rest_writes)
    yield row("writes of a restarted operator", "", ours.restart_writes)
    yield row("memory with 1,000 models, at most", "MB", ours.memory)


def _baseline_rows(ours: OperatorFigures, naive: OperatorFigures) -> Iterator[ResultRow]:
    pairs: list[tuple[str, str, Callable[[OperatorFigures], float | None]]] = [
        ("create → children, alone: p50", "ms", lambda one: None if one.alone is None else 1e3 * one.alone),
        ("models created: seconds for all", "s", lambda one: _batch_rows(one.created, lambda crowd: crowd.seconds)),
        ("models changed: seconds for all", "s", lambda one: _batch_rows(one.changed, lambda crowd: crowd.seconds)),
        ("CPU per model created", "ms", lambda one: _batch_rows(one.created, lambda crowd: crowd.cpu_ms)),
        ("CPU per model changed", "ms", lambda one: _batch_rows(one.changed, lambda crowd: crowd.cpu_ms)),
        ("writes per model created", "", lambda one: _batch_rows(one.created, lambda crowd: crowd.writes_each)),
        ("writes per model changed", "", lambda one: _batch_rows(one.changed, lambda crowd: crowd.writes_each)),
        ("reads per model created", "", lambda one: _batch_rows(one.created, lambda crowd: crowd.reads / crowd.models)),
        ("CPU in a minute of steady state", "s", lambda one: one.rest_cpu_seconds),
        (f"of {DELETED_CHILDREN} deleted Deployments, made again", "", lambda one: one.made_again),
        ("memory before the models", "MB", lambda one: one.memory_idle),
        ("memory with 1,000 models, at most", "MB", lambda one: one.memory),
    ]
    for metric, unit, figure in pairs:
        yield ratio_row(f"{metric} | beside {BASELINE}", unit, figure(ours), BASELINE, figure(naive), None)


def _batch_rows(crowd: BatchFigures | None, figure: Callable[[BatchFigures], float]) -> float | None:
    return None if crowd is None else figure(crowd)
