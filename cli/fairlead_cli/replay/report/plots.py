"""report.png: four panels. Colour is the policy; filled forms are live, outlines and dashed lines
simulated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead_cli.replay.report.report import PolicyResult, ReplayReport, RunSummary
from fairlead_cli.replay.report.summary import computed_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POLICY_COLOURS = ("#0b6e4f", "#c8553d", "#4a6fa5", "#8f6bb3", "#b08900", "#5c5c5c")
TEXT_COLOUR = "#222222"
GRID_COLOUR = "#d9d9d9"


def draw_plots(report: ReplayReport, file: Path) -> None:
    """Writes the picture.

    Why: matplotlib is imported here, because nothing else needs it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "text.color": TEXT_COLOUR,
    }
    colours = {
        name: POLICY_COLOURS[index % len(POLICY_COLOURS)]
        for index, name in enumerate({**report.policies, **report.light})
    }
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.4), dpi=130)
        _draw_first_tokens(axes[0][0], report, colours)
        _draw_p90(axes[0][1], report, colours)
        _draw_cached(axes[1][0], report, colours)
        _draw_spread(axes[1][1], report, colours)
        subtitle = f"{report.trace} · {report.requests} requests at {report.rate:g}/s · seconds are simulated"
        figure.suptitle("Routing presets compared", x=0.052, y=0.985, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.052, 0.935, subtitle, color="#555555")
        if report.invalid_reasons:
            figure.text(
                0.98, 0.965, "NOT VALID: " + report.invalid_reasons[0], color="#b00020", ha="right", fontweight="bold"
            )
        figure.subplots_adjust(left=0.06, right=0.985, top=0.875, bottom=0.07, hspace=0.36, wspace=0.2)
        figure.savefig(file)
        pyplot.close(figure)


def _draw_first_tokens(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws, for each policy, the share of requests with a first token within x seconds."""
    max_seconds = 0.0
    for name, policy in report.policies.items():
        for side, run in _runs(policy):
            times = sorted(result.ttft_seconds for result in run.results if result.ttft_seconds is not None)
            if not times:
                continue
            shares = [100.0 * (index + 1) / len(run.results) for index in range(len(times))]
            line_style: Any = {"linewidth": 2.2} if side == "live" else {"linewidth": 1.2, "linestyle": (0, (3, 2))}
            axes.plot(times, shares, color=colours[name], label=f"{name}, {side}", **line_style)
            max_seconds = max(max_seconds, times[int(0.99 * (len(times) - 1))])
    limit = report.objectives.ttft_seconds
    if limit is not None:
        axes.axvline(limit, color="#999999", linewidth=1, linestyle=":")
        axes.text(limit, 3, " latency target", color="#777777", fontsize=9)
    axes.set(xlim=(0, max(max_seconds, limit or 0.0, 0.001) * 1.02), ylim=(0, 101), xlabel="seconds to the first token")
    axes.set_title("Requests answered within so many seconds (%)")
    axes.grid(color=GRID_COLOUR, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_p90(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws p90 TTFT under the trace's load and under a light load."""
    groups = [(f"at {report.rate:g} requests/s", report.policies)]
    if report.light:
        groups.append((f"at {report.light_rate:g} requests/s\nsimulated only", report.light))
    values = {
        (title, name, side): run.summary.ttft_seconds.p90
        for title, policies in groups
        for name, policy in policies.items()
        for side, run in _runs(policy)
    }
    _draw_bars(axes, groups, values, colours, lambda value: f"{value:.2f}")
    _draw_legend(axes, report, colours)
    axes.set_ylabel("seconds")
    axes.set_title("p90 time to the first token: under load, and almost idle")


def _draw_cached(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws the share of prompt tokens found in a cache."""
    groups = [(f"at {report.rate:g} requests/s", report.policies)]
    if report.light:
        groups.append((f"at {report.light_rate:g} requests/s\nsimulated only", report.light))
    values = {
        (title, name, side): None if share is None else 100.0 * share
        for title, policies in groups
        for name, policy in policies.items()
        for side, run in _runs(policy)
        for share in (run.summary.cached_token_share,)
    }
    _draw_bars(axes, groups, values, colours, lambda value: f"{value:.1f}")
    if report.ideal_reuse is not None:
        ideal = 100.0 * report.ideal_reuse
        axes.axhline(ideal, color="#999999", linewidth=1, linestyle=":")
        middle = sum(axes.get_xlim()) / 2
        axes.text(middle, ideal, "one unlimited cache", color="#777777", fontsize=9, ha="center", va="bottom")
        axes.set_ylim(0, max(axes.get_ylim()[1], ideal * 1.15))
    axes.set_title("Prompt tokens that were already cached (%)")


def _draw_spread(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws the prompt tokens that each instance computed, relative to the mean."""
    max_deviation = 0.25
    for row, (name, policy) in enumerate(report.policies.items()):
        for side, run in _runs(policy):
            computed = computed_tokens(run.results).values()
            if not computed or run.summary.load_cov is None:
                continue
            mean = sum(computed) / len(computed)
            shares = [value / mean for value in computed]
            max_deviation = max(max_deviation, *(abs(share - 1.0) for share in shares))
            y = row + (-0.15 if side == "live" else 0.15)
            filled = colours[name] if side == "live" else "white"
            axes.plot(shares, [y] * len(shares), "o", color=colours[name], markerfacecolor=filled, markersize=7)
            axes.annotate(
                f"{side} σ/µ {run.summary.load_cov:.3f}",
                (1.0, y),
                xycoords=("axes fraction", "data"),
                color="#777777",
                fontsize=9,
                ha="right",
                va="center",
            )
    axes.axvline(1.0, color="#999999", linewidth=1, linestyle=":")
    count = len(report.policies)
    axes.set(yticks=range(count), yticklabels=list(report.policies), ylim=(count - 0.5, -0.5))
    axes.set_xlim(max(0.0, 1.0 - max_deviation * 1.1), 1.0 + max_deviation * 1.8)
    axes.set_xlabel("prompt tokens computed ÷ mean over the instances; a dot is an instance")
    axes.set_title("How evenly the work was spread")
    axes.tick_params(axis="y", length=0)


def _draw_bars(
    axes: "Axes",
    groups: list[tuple[str, Mapping[str, PolicyResult]]],
    values: Mapping[tuple[str, str, str], float | None],
    colours: Mapping[str, str],
    format_value: Any,
) -> None:
    """Draws bars by group and policy, with values on top."""
    position = 0.0
    centres = []
    for title, policies in groups:
        group_start = position
        for name, policy in policies.items():
            for side, _ in _runs(policy):
                value = values[title, name, side]
                filled = colours[name] if side == "live" else "white"
                axes.bar(position, value or 0.0, 0.85, color=filled, edgecolor=colours[name], linewidth=1.4)
                label = "–" if value is None else format_value(value)
                axes.text(position, value or 0.0, label, ha="center", va="bottom", fontsize=9)
                position += 1.0
            position += 0.35
        centres.append(((group_start + position - 1.35) / 2, title))
        position += 0.9
    axes.set_xticks([centre for centre, _ in centres], [title for _, title in centres])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.8, max(position - 1.5, 0.8))
    axes.margins(y=0.12)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)


def _draw_legend(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    for name in {**report.policies, **report.light}:
        axes.bar(0, 0, color=colours[name], label=name)
    axes.bar(0, 0, color="white", edgecolor="#777777", label="outline: simulated")
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def _runs(policy: PolicyResult) -> list[tuple[str, RunSummary]]:
    runs = (("live", policy.live), ("simulated", policy.simulated))
    return [(name, side) for name, side in runs if side is not None]
