"""The picture of a result: one panel for each question, one bar for each target, Fairlead's goal as
a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from fairlead_bench.gateway.measurement import CaseRun
from fairlead_bench.gateway.result_rows import Figure, RunTable, cpu, kilobytes_each, under_way
from fairlead_bench.gateway.targets import DIRECT, ENVOY, FAIRLEAD, SGLANG, TARGETS

_INK, _QUIET, _GOAL = "#1f2933", "#7b8794", "#d64545"
_TIMES_AS_LONG = 5


@dataclass(frozen=True, slots=True)
class _Panel:
    """One panel of the picture. ``goals`` are factors of a target's figure, ``limit`` is an
    absolute goal."""

    title: str
    case: str
    figure: Figure
    scale: float = 1.0
    goals: tuple[tuple[str, float], ...] = ()
    limit: float | None = None


_PANELS = (
    _Panel("CPU per 2 KB request (µs)", "request-2k", cpu, goals=((SGLANG, 0.60), (ENVOY, 1.5))),
    _Panel("CPU per 32 KB request (µs)", "request-32k", cpu, goals=((SGLANG, 0.60),)),
    _Panel("CPU per 128 KB request (µs)", "request-128k", cpu, goals=((SGLANG, 0.60),)),
    _Panel("CPU per paced chunk, 200 streams (µs)", "paced-200", cpu, goals=((ENVOY, 1.1), (SGLANG, 1.25))),
    _Panel("Delay p99, 1,000 streams × 20/s (ms)", "paced-1000", under_way("p99"), scale=1e3),
    _Panel("Memory per open stream (KB)", "memory", kilobytes_each, limit=16.0),
)


def draw(runs: Sequence[CaseRun], file: Path, *, title: str) -> None:
    """Panels without a figure are left out."""
    table = RunTable(runs)
    panels = [panel for panel in _PANELS if any(table.valid_runs(panel.case, name) for name in TARGETS)]
    if not panels:
        return
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    most = max(len(table.targets(panel.case)) for panel in panels)
    figure, axes = plt.subplots(
        down, across, figsize=(5.2 * across, down * (1.3 + 0.34 * most)), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, table, panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle(title, color=_INK, fontsize=12, x=0.01, ha="left")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _draw_panel(axis: Axes, table: RunTable, panel: _Panel) -> None:
    """Bars in ascending order; a thin line from the least to the greatest run. A bar out of all
    scale is cut."""
    case, figure, scale = panel.case, panel.figure, panel.scale
    found = [
        (value * scale, name) for name in table.targets(case) if (value := table.median(case, name, figure)) is not None
    ]
    found.sort(reverse=True)
    edge = _axis_limit([value for value, _ in found])
    for place, (value, name) in enumerate(found):
        colour = TARGETS[name].colour if name in TARGETS else "#cbd2d9"
        axis.barh(place, min(value, edge), color=colour, height=0.68)
        runs = [one * scale for run in table.valid_runs(case, name) if (one := figure(run)) is not None]
        if value <= edge:
            axis.plot([min(runs), max(runs)], [place, place], color=_INK, linewidth=1)
        end = (max(value, *runs) if value <= edge else edge, place)
        words = _number(value) + ("" if value <= edge else ", bar cut")
        axis.annotate(words, end, (4, 0), textcoords="offset points", va="center", color=_INK)
    goals = [value * factor * scale for name, factor in panel.goals if (value := table.median(case, name, figure))]
    if panel.limit is not None:
        goals.append(panel.limit)
    if goals:
        axis.axvline(min(goals), color=_GOAL, linewidth=1.2, linestyle=(0, (4, 2)))
        axis.text(min(goals), 0, " goal", transform=axis.get_xaxis_transform(), color=_GOAL, fontsize=9, va="bottom")
    axis.set_yticks(range(len(found)), [_short(name) for _, name in found])
    for label, (_, name) in zip(axis.get_yticklabels(), found, strict=True):
        label.set_fontweight("bold" if name == FAIRLEAD else "normal")
        label.set_color(_QUIET if name == DIRECT else _INK)
    axis.set_title(panel.title, loc="left", fontsize=10, color=_INK)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", colors=_QUIET, length=0)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.14)


def _axis_limit(values: Sequence[float]) -> float:
    """Returns the value at which bars are cut, so that a very long bar does not hide the others."""
    longest, *rest = sorted(values, reverse=True)
    return 1.25 * rest[0] if rest and longest > _TIMES_AS_LONG * rest[0] else longest


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(name: str) -> str:
    return name.replace("sglang-router cache_aware, its own log level", "sglang-router, logging")
