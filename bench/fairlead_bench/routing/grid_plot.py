"""The grid as a picture and as a table: how much comes in time under each preset, by traffic,
gateways and how late they hear."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from fairlead_bench.results import ResultRow
from fairlead_bench.routing.preset_grid import GATEWAYS, STALE_SECONDS, metric

_INK, _QUIET = "#1f2933", "#7b8794"


class GridTable:
    """The grid's shares, out of the rows. Traffic and presets in the rows' order."""

    def __init__(self, rows: Sequence[ResultRow], families: Sequence[str], presets: Sequence[str]) -> None:
        self.families = families
        self._share = {row.metric: row.value for row in rows if row.value is not None}
        self.presets = sorted(presets, key=lambda preset: -self.mean(preset))

    def share(self, preset: str, family: str, gateways: int, stale: str) -> float:
        """Returns the share within the SLO, 0 to 1."""
        return self._share[metric(family, gateways, stale, preset)]

    def mean(
        self, preset: str, gateways: Sequence[int] = GATEWAYS, stale: Sequence[str] = tuple(STALE_SECONDS)
    ) -> float:
        """Returns the mean over all families and these cells."""
        found = [
            self.share(preset, family, number, late)
            for family in self.families
            for number in gateways
            for late in stale
        ]
        return sum(found) / len(found)

    def worst(self, preset: str) -> float:
        """Returns the smallest share of all cells."""
        return min(
            self.share(preset, family, number, late)
            for family in self.families
            for number in GATEWAYS
            for late in STALE_SECONDS
        )

    def table(self) -> str:
        """Returns the Markdown table: means over the families by gateways and delay, in per cent.

        Each preset's worst cell follows.
        """
        places = [(number, late) for number in GATEWAYS for late in STALE_SECONDS]
        lines = ["| | " + " | ".join(f"{number}, {late}" for number, late in places) + " | worst cell |"]
        lines.append("|---" * (len(places) + 2) + "|")
        for preset in self.presets:
            means = [self.mean(preset, [number], [late]) for number, late in places]
            cells = [f"{100 * share:.1f}" for share in (*means, self.worst(preset))]
            lines.append(f"| {preset} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"


def draw(grid: GridTable, file: Path, *, title: str) -> None:
    """Draws a panel per traffic: presets down, gateways and delay across."""
    places = [(number, late) for number in GATEWAYS for late in STALE_SECONDS]
    figure, axes = plt.subplots(
        1, len(grid.families), figsize=(3.3 * len(grid.families) + 1.2, 0.36 * len(grid.presets) + 2.0), sharey=True
    )
    for axis, family in zip(axes, grid.families, strict=True):
        shares = [[grid.share(preset, family, *place) for place in places] for preset in grid.presets]
        axis.imshow(shares, cmap="YlGnBu", vmin=0.0, vmax=1.0, aspect="auto")
        for down, ones in enumerate(shares):
            for across, share in enumerate(ones):
                text = f"{100 * share:.0f}"
                axis.text(across, down, text, ha="center", va="center", fontsize=7, color="w" if share > 0.6 else _INK)
        axis.set_title(family, fontsize=10, color=_INK)
        axis.set_xticks(range(len(places)), [late for _, late in places], rotation=90, fontsize=8, color=_QUIET)
        axis.set_yticks(range(len(grid.presets)), grid.presets, fontsize=9, color=_INK)
        for edge in range(len(STALE_SECONDS), len(places), len(STALE_SECONDS)):
            axis.axvline(edge - 0.5, color="w", linewidth=2)
        for group, number in enumerate(GATEWAYS):
            middle = (group + 0.5) / len(GATEWAYS)
            axis.text(
                middle,
                -0.17,
                f"{number} gateway" + "s" * (number > 1),
                transform=axis.transAxes,
                ha="center",
                fontsize=8,
                color=_INK,
            )
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    figure.suptitle(title, color=_INK, fontsize=12, x=0.01, ha="left")
    figure.tight_layout(rect=(0, 0.02, 1, 0.98))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
