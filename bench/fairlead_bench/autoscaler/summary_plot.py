"""The summary picture of the autoscaler's benchmark: every scenario, on the seed on which presets
were tuned and on seeds on which nothing was chosen.

``python -m fairlead_bench.autoscaler.summary_plot`` draws it from the committed results.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead_bench.autoscaler.benchmark import COMPARED_PRESETS, TARGET

RESULTS = Path("bench/results")
SOURCES = (RESULTS / "autoscaler.json", RESULTS / "autoscaler-judging.json")
PICTURE = Path("docs/images/autoscaler-summary.svg")
FAIRLEAD = "fairlead"
_OURS, _OTHERS = "#0b7a75", "#9aa5b1"
_LEAST_SHARE = 0.6
"""Shares below it are drawn at it."""


@dataclass(frozen=True, slots=True)
class ScenarioRow:
    """A scenario. Shares are of requests within the SLO.

    unseen: Fairlead's on seeds on which nothing was chosen.

    others: share, and cost as a multiple of Fairlead's, of each preset at its best setting.
    """

    name: str
    tuned: float
    unseen: tuple[float, ...]
    others: tuple[tuple[float, float], ...]


def scenario_rows(root: Path = Path()) -> list[ScenarioRow]:
    """Returns the rows of the picture, from the committed tables below the repository's root."""
    tuned, unseen = (json.loads((root / path).read_text(encoding="utf-8"))["table"] for path in SOURCES)
    best = [
        next(name for name in tuned if name.startswith(f"{preset} at ") and name.endswith("(best)"))
        for preset in COMPARED_PRESETS
    ]
    return [
        ScenarioRow(
            scenario,
            ours["attainment"],
            tuple(run["attainment"] for run in unseen[FAIRLEAD][scenario].values()),
            tuple((tuned[one][scenario]["attainment"], tuned[one][scenario]["cost"] / ours["cost"]) for one in best),
        )
        for scenario, ours in tuned[FAIRLEAD].items()
    ]


def figures_digest(rows: Sequence[ScenarioRow]) -> str:
    figures = [[row.name, row.tuned, row.unseen, row.others] for row in rows]
    return hashlib.sha256(json.dumps(figures).encode()).hexdigest()[:16]


def draw(rows: Sequence[ScenarioRow], path: Path) -> None:
    """Draws the picture as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    style: Any = {"svg.hashsalt": "fairlead", "svg.fonttype": "path", "font.size": 10}
    with mpl.rc_context(style):
        figure, (shares, costs) = plt.subplots(1, 2, figsize=(9.6, 5.6), sharey=True, width_ratios=(3, 2))
        for place, row in enumerate(rows):
            grey = {"color": _OTHERS, "ms": 5, "alpha": 0.75, "ls": "", "marker": "|", "mew": 1.6}
            shares.plot([_drawn(share) for share, _ in row.others], [place + 0.2] * len(row.others), **grey)
            shares.plot(
                [_drawn(one) for one in row.unseen], [place - 0.1] * len(row.unseen), "o", mfc="none", color=_OURS
            )
            shares.plot(_drawn(row.tuned), place - 0.1, "o", color=_OURS)
            meeting = [cost for share, cost in row.others if share >= TARGET]
            costs.plot(meeting, [place] * len(meeting), **grey)
        shares.plot([], [], "o", color=_OURS, label="Fairlead, the seed of the comparison")
        shares.plot([], [], "o", mfc="none", color=_OURS, label="Fairlead, twenty unseen seeds")
        shares.plot([], [], "|", color=_OTHERS, mew=1.6, label="HPA and KPA at their best settings")
        shares.legend(loc="lower center", bbox_to_anchor=(0.5, -0.27), frameon=False, fontsize=9)
        shares.axvline(TARGET, color="#17202a", lw=0.8, ls=":")
        shares.set_xlim(_LEAST_SHARE - 0.01, 1.005)
        shares.set_xticks([0.6, 0.7, 0.8, 0.9, 0.99], ["≤ 60 %", "70 %", "80 %", "90 %", "99 %"])
        shares.set_yticks(range(len(rows)), [row.name for row in rows])
        shares.invert_yaxis()
        shares.set_title("Requests within the SLO\n(the goal is 99 %)", loc="left", fontsize=10, weight="bold")
        costs.axvline(1.0, color=_OURS, lw=1.6)
        costs.set_xscale("log", base=2)
        costs.set_xticks([0.5, 1, 2, 4, 8], ["½", "1", "2", "4", "8"])
        costs.set_title(
            "Cost of those that meet it,\nas a multiple of Fairlead's", loc="left", fontsize=10, weight="bold"
        )
        for axes in (shares, costs):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", color="#eef1f5")
            axes.set_axisbelow(True)
        figure.tight_layout()
        description = {"Date": None, "Description": f"figures {figures_digest(rows)}"}
        figure.savefig(path, format="svg", facecolor="white", metadata=description)
        plt.close(figure)


def _drawn(share: float) -> float:
    return max(share, _LEAST_SHARE)


def main() -> None:
    draw(scenario_rows(), PICTURE)


if __name__ == "__main__":
    main()
