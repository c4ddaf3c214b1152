"""Plots of an autoscaler run: replicas next to what the load needed, and every controller by share
and cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairlead_sim.autoscaling.closed_loop import PlantSample
from fairlead_sim.autoscaling.offline_optimum import OptimumSchedule

_INK, _QUIET, _OURS, _BEST = "#1f2933", "#7b8794", "#d64545", "#3e7cb1"


@dataclass(frozen=True, slots=True)
class ReplicaTimeline:
    """Our core through a scenario, and what the oracle had."""

    scenario: str
    seconds: float
    pools: tuple[str, ...]
    attainment: float
    looks: tuple[PlantSample, ...]
    oracle: OptimumSchedule | None


def draw_timelines(runs: Sequence[ReplicaTimeline], file: Path) -> None:
    """Draws a panel per scenario: ready replicas of the core and of the optimum, and arrivals."""
    across = 3
    down = -(-len(runs) // across)
    figure, axes = plt.subplots(down, across, figsize=(15, 2.6 * down), squeeze=False, layout="constrained")
    for axis, run in zip(axes.flat, runs, strict=False):
        _draw_timeline(axis, run)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    _save(figure, file)


def draw_controllers(cells: Mapping[str, Mapping[str, tuple[float, float]]], ours: str, file: Path) -> None:
    """Draws a panel per scenario: share within the SLO and cost ÷ oracle of each controller.

    Those far from the target are left out.
    """
    across = 4
    down = -(-len(cells) // across)
    figure, axes = plt.subplots(down, across, figsize=(16, 3.0 * down), squeeze=False, layout="constrained")
    for axis, (scenario, points) in zip(axes.flat, cells.items(), strict=False):
        for name, (share, ratio) in points.items():
            colour = _OURS if name == ours else _BEST if name.endswith("(best)") else _QUIET
            axis.plot(max(90.0, 100.0 * share), min(4.0, ratio), "o", color=colour, markersize=7 if name == ours else 5)
        axis.axvline(99.0, color=_INK, linewidth=0.6)
        axis.set_xlim(89.5, 100.2)
        axis.set_ylim(0.5, 4.1)
        axis.set_title(scenario, color=_INK, fontsize=10)
        axis.set_xlabel("% within (90 = 90 or less)", fontsize=8)
        axis.set_ylabel("cost ÷ oracle (4 = 4 or more)", fontsize=8)
    for axis in axes.flat[len(cells) :]:
        axis.set_visible(False)
    figure.suptitle(
        f"{ours} red, presets at their best knob blue, at one fixed knob grey",
        color=_INK,
        fontsize=11,
        x=0.01,
        ha="left",
    )
    _save(figure, file)


def _draw_timeline(axis: Axes, run: ReplicaTimeline) -> None:
    hours = [look.now / 3600.0 for look in run.looks]
    for place, pool in enumerate(run.pools):
        style = "-" if place == 0 else "--"
        axis.step(hours, [look.ready[place] for look in run.looks], style, color=_OURS, linewidth=1.0, where="post")
        now, at, counts = 0, [], []
        for begin, step in () if run.oracle is None else run.oracle.steps:
            now = step.get(pool, now)
            at.append(begin / 3600.0)
            counts.append(now)
        axis.step([*at, run.seconds / 3600.0], [*counts, now], style, color=_QUIET, linewidth=0.8, where="post")
    axis.set_title(f"{run.scenario}: {100 * run.attainment:.2f} %", color=_INK, fontsize=10)
    axis.set_xlabel("hours", fontsize=8)
    axis.set_ylabel("replicas ready", fontsize=8)
    axis.set_ylim(bottom=0)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
    plt.close(figure)
