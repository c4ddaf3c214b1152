"""From figures to rows: the goals' first, then what both subjects showed, side by side."""

from collections.abc import Callable, Iterator, Mapping

from operatorbench.measure import LOST, Crowd, Figures
from operatorbench.subject import FAIRLEAD, NAIVE
from table import Row, comparing, goals, measuring

BASE_MS, WRITE_MS = 1.0, 0.6
_BUDGET = f"{BASE_MS:g} ms + {WRITE_MS:g} ms × writes"


def rows(found: Mapping[str, Figures]) -> list[Row]:
    """Of what was measured; a goal without its figure does not hold."""
    ours, naive = found.get(FAIRLEAD, Figures()), found.get(NAIVE, Figures())
    return [*_bar(ours), *_beside(ours, naive)]


def _bar(ours: Figures) -> Iterator[Row]:
    wanted = goals("operator")

    def row(metric: str, unit: str, value: float | None) -> Row:
        return measuring(metric, unit, value, wanted[metric])

    yield row("models of 1,000 with their objects and a status", "", _of(ours.created, lambda one: one.done))
    yield row("create → children, alone: p50", "s", ours.alone)
    for metric, crowd in (("created", ours.created), ("changed", ours.changed)):
        name = f"CPU per model {metric} ÷ ({_BUDGET})"
        budget = _of(crowd, lambda one: BASE_MS + WRITE_MS * one.writes_each)
        yield comparing(name, "ms", _of(crowd, lambda one: one.cpu_ms), _BUDGET, budget, wanted[name])
    yield row("writes in a minute of steady state", "", ours.rest_writes)
    yield row("writes of a restarted operator", "", ours.restart_writes)
    yield row("memory with 1,000 models, at most", "MB", ours.memory)


def _beside(ours: Figures, naive: Figures) -> Iterator[Row]:
    pairs: list[tuple[str, str, Callable[[Figures], float | None]]] = [
        ("create → children, alone: p50", "ms", lambda one: None if one.alone is None else 1e3 * one.alone),
        ("models created: seconds for all", "s", lambda one: _of(one.created, lambda crowd: crowd.seconds)),
        ("models changed: seconds for all", "s", lambda one: _of(one.changed, lambda crowd: crowd.seconds)),
        ("CPU per model created", "ms", lambda one: _of(one.created, lambda crowd: crowd.cpu_ms)),
        ("CPU per model changed", "ms", lambda one: _of(one.changed, lambda crowd: crowd.cpu_ms)),
        ("writes per model created", "", lambda one: _of(one.created, lambda crowd: crowd.writes_each)),
        ("writes per model changed", "", lambda one: _of(one.changed, lambda crowd: crowd.writes_each)),
        ("reads per model created", "", lambda one: _of(one.created, lambda crowd: crowd.reads / crowd.models)),
        ("CPU in a minute of steady state", "s", lambda one: one.rest_cpu_seconds),
        (f"of {LOST} deleted Deployments, made again", "", lambda one: one.made_again),
        ("memory before the models", "MB", lambda one: one.memory_idle),
        ("memory with 1,000 models, at most", "MB", lambda one: one.memory),
    ]
    for metric, unit, figure in pairs:
        yield comparing(f"{metric} | beside {NAIVE}", unit, figure(ours), NAIVE, figure(naive), None)


def _of(crowd: Crowd | None, figure: Callable[[Crowd], float]) -> float | None:
    return None if crowd is None else figure(crowd)
