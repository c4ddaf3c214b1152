"""The README's picture of routing: four presets on the same requests, in three figures each.

``python -m fairlead_bench.routing.demo_summary_plot`` draws it from the committed report of the
demo. The figures are those of the live run; the report has the simulator's too.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPORT = Path("bench/results/demo.json")
PICTURE = Path("docs/images/routing-results.svg")
PRESETS = {
    "dual-hash": "Fairlead's default\n(dual-hash)",
    "llm-d": "llm-d's scorer\n(prefixes and load)",
    "least-request": "fewest requests\nin flight",
    "round-robin": "round robin",
}
_FIRST_COLOUR, _OTHER_COLOUR = "#0b7a75", "#b5bec8"


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of each preset, in the order of ``PRESETS``.

    bound: the best that is possible; None if that is not known.
    """

    title: str
    better: str
    values: tuple[float, ...]
    labels: tuple[str, ...]
    bound: float | None = None


def panels(report: dict[str, Any]) -> list[Panel]:
    """Returns the figures of a report."""
    runs = [report["policies"][preset]["live"] for preset in PRESETS]
    first = tuple(run["ttft_seconds"]["p90"] for run in runs)
    cached = tuple(100.0 * run["cached_token_share"] for run in runs)
    within = tuple(100.0 * run["within_objective"] for run in runs)
    return [
        Panel("Wait for the first token\n(90th percentile)", "shorter is better", first, _labels(first, "{:.1f} s")),
        Panel(
            "Prompt tokens that\nwere cached",
            f"more is better; dotted: one unlimited cache, {100.0 * report['ideal_cached_share']:.0f} %",
            cached,
            _labels(cached, "{:.0f} %"),
            100.0 * report["ideal_cached_share"],
        ),
        Panel("Requests within\nthe latency target", "more is better", within, _labels(within, "{:.0f} %")),
    ]


def _labels(values: tuple[float, ...], form: str) -> tuple[str, ...]:
    return tuple(form.format(value) for value in values)


def figures_digest(found: list[Panel]) -> str:
    return hashlib.sha256(json.dumps([panel.labels for panel in found]).encode()).hexdigest()[:16]


def draw(found: list[Panel], path: Path) -> None:
    """Draws the picture as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    style: Any = {"svg.hashsalt": "fairlead", "svg.fonttype": "path", "font.size": 11}
    with mpl.rc_context(style):
        figure, columns = plt.subplots(1, len(found), figsize=(9.6, 3.7), sharey=True)
        places = range(len(PRESETS))
        for axes, panel in zip(columns, found, strict=True):
            colours = [_FIRST_COLOUR if place == 0 else _OTHER_COLOUR for place in places]
            axes.barh(places, panel.values, 0.62, color=colours)
            for place, (value, label) in enumerate(zip(panel.values, panel.labels, strict=True)):
                weight = "bold" if place == 0 else "normal"
                axes.text(value + max(panel.values) * 0.03, place, label, va="center", weight=weight)
            if panel.bound is not None:
                axes.axvline(panel.bound, color="#566270", linewidth=1, linestyle=":")
            axes.set_title(panel.title, fontsize=11, weight="bold", loc="left")
            axes.set_xlabel(panel.better, fontsize=9.5, color="#566270", loc="left")
            axes.set_xlim(0, max(panel.values) * 1.28)
            axes.set_xticks([])
            axes.spines[["top", "right", "bottom"]].set_visible(False)
            axes.tick_params(length=0)
        columns[0].set_yticks(list(places), list(PRESETS.values()))
        columns[0].invert_yaxis()
        figure.tight_layout(w_pad=2.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        description = {"Date": None, "Description": f"figures {figures_digest(found)}"}
        figure.savefig(path, format="svg", facecolor="white", metadata=description)
        plt.close(figure)


def main() -> None:
    draw(panels(json.loads(REPORT.read_text(encoding="utf-8"))), PICTURE)


if __name__ == "__main__":
    main()
