"""The summary picture of the autoscaler's benchmark: every scenario, every controller, two kinds of
seeds.

``python -m fairlead_bench.autoscaler.summary_plot`` draws it from the committed results.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairlead_bench.autoscaler.result_rows import TARGET, geometric_mean
from fairlead_bench.autoscaler.unseen_seeds import COMPARED_PRESETS

RESULTS = Path("bench/results")
SOURCES = (RESULTS / "autoscaler.json", RESULTS / "autoscaler-seeds.json")
PICTURE = Path("docs/images/autoscaler-summary.svg")
FAIRLEAD = "fairlead"
LABELS = {
    "hpa-concurrency": "HPA",
    "kpa-concurrency": "Knative KPA",
    "keda-request-rate": "KEDA",
    "apa-concurrency": "AIBrix APA",
    "wva-saturation": "llm-d WVA",
    "dynamo": "Dynamo planner",
}
Table = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Bar:
    """A controller: how many scenarios it keeps, and its cost as a multiple of Fairlead's.

    costs: over the scenarios that both keep; ``None`` for a seed without one.
    """

    label: str
    kept: list[int]
    costs: list[float | None]


def bars(tables: Sequence[Table]) -> list[Bar]:
    """Returns the rows of the picture. The first table is that of the tuned seed."""
    found = [Bar("Fairlead", [_count_met(table[FAIRLEAD]) for table in tables], [1.0] * len(tables))]
    for preset in COMPARED_PRESETS:
        for kind, words in (("(best)", "best setting"), ("(fixed)", "usual setting")):
            name = next(name for name in tables[0] if name.startswith(f"{preset} at ") and name.endswith(kind))
            seen = [table for table in tables if name in table]
            costs = [_cost(table[name], table[FAIRLEAD]) for table in seen]
            found.append(Bar(f"{LABELS[preset]}, {words}", [_count_met(table[name]) for table in seen], costs))
    return found


def _count_met(cells: Mapping[str, Mapping[str, float]]) -> int:
    return sum(cell["attainment"] >= TARGET for cell in cells.values())


def _cost(cells: Mapping[str, Mapping[str, float]], ours: Mapping[str, Mapping[str, float]]) -> float | None:
    both = [name for name in ours if min(cells[name]["attainment"], ours[name]["attainment"]) >= TARGET]
    return geometric_mean([cells[name]["cost"] / ours[name]["cost"] for name in both])


def read_tables() -> list[Table]:
    """Returns the committed tables, that of the tuned seed first."""
    tuned, unseen = (json.loads(path.read_text(encoding="utf-8")) for path in SOURCES)
    return [tuned["table"], *unseen["tables"].values()]


def source_digest() -> str:
    """Returns a digest of the figures, which the picture carries."""
    rows = [[bar.label, bar.kept, bar.costs] for bar in bars(read_tables())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def draw(rows: Sequence[Bar], scenarios: int, path: Path, digest: str) -> None:
    """Draws the picture as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    style: dict[str, Any] = {"svg.hashsalt": "fairlead", "svg.fonttype": "path", "font.size": 10}
    with mpl.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9.6, 5.0), sharey=True, width_ratios=(3, 2))
        for place, bar in enumerate(rows):
            colour = "#c0392b" if place == 0 else "#5c6bc0"
            left.barh(place - 0.19, bar.kept[0], 0.36, color=colour)
            left.text(bar.kept[0] + 0.15, place - 0.19, str(bar.kept[0]), va="center", fontsize=8)
            if unseen := bar.kept[1:]:
                mean = sum(unseen) / len(unseen)
                left.barh(place + 0.19, mean, 0.36, color=colour, alpha=0.45)
                left.text(mean + 0.15, place + 0.19, "/".join(map(str, unseen)), va="center", fontsize=8)
            known = [cost for cost in bar.costs if cost is not None]
            if known:
                right.plot(known, [place] * len(known), "o", color=colour, ms=6, alpha=0.8)
            else:
                right.text(1.0, place, "no scenario kept by both", va="center", fontsize=8)
        left.set_yticks(range(len(rows)), [bar.label for bar in rows])
        left.invert_yaxis()
        left.set_xlim(0, scenarios + 1)
        left.set_title(
            f"Scenarios of {scenarios} with 99 % of requests in the SLO\ndark: tuned seed, light: two unseen seeds",
            fontsize=10,
        )
        right.set_xscale("log", base=2)
        right.set_xticks([1, 2, 4, 8], ["1×", "2×", "4×", "8×"])
        right.set_xlim(0.8, 9)
        right.axvline(1.0, color="#c0392b", lw=0.8)
        right.set_title("Cost, as a multiple of Fairlead's,\nwhere both meet the SLO", fontsize=10)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.tight_layout()
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            path, format="svg", facecolor="white", metadata={"Date": None, "Description": f"figures {digest}"}
        )
        plt.close(figure)


def main() -> None:
    tables = read_tables()
    draw(bars(tables), len(tables[0][FAIRLEAD]), PICTURE, source_digest())


if __name__ == "__main__":
    main()
