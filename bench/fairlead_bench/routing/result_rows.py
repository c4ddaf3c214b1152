"""The rows of the bar, each a ratio to the dualmap preset on the same requests unless it says
otherwise."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row
from fairlead_bench.routing.measurement import RoutingCell, RoutingMeasurements, geometric_mean
from fairlead_sim.workload.generators import FAMILIES

DEFAULT, DUALMAP = "dual-hash", "dualmap"
PUBLISHED = ("prefix-cache", "llm-d", "cache-aware", "min-ttft", "preble", DUALMAP)
REFERENCE_STUDY = {
    "agents": (21.2, 37.0),
    "tenants": (22.5, 34.7),
    "rag": (24.4, 28.1),
    "flash-crowd": (25.0, 38.9),
    "bursty": (19.4, 29.4),
}
"""Capacity of round robin and of DualMap in the study that the families follow, requests/s."""


class RoutingRows:
    """All of them, over ``seeds``. Without a trace, the rows of the recorded conversations are left
    out."""

    def __init__(self, lab: RoutingMeasurements, seeds: Sequence[int]) -> None:
        self._lab = lab
        self._seeds = seeds
        self._goals = load_goals("routing")
        self._shared = ("agents", "tenants", *(("conversation",) if lab.trace is not None else ()))

    def rows(self) -> Iterator[ResultRow]:
        """Returns all rows in the order of goals.yaml."""
        yield from self._family_rows()
        if self._lab.trace is not None:
            yield from self._conversation_rows()
        yield from self._gateway_rows()
        yield from self._at_rates()
        yield from self._strict_slo_rows()
        yield from self._large_fleet_rows()
        yield from self._reference_rows()

    # --- ratios ---------------------------------------------------------------------------------------------------------

    def _capacity(self, cell: RoutingCell) -> float:
        """Returns the geometric mean over the seeds."""
        return geometric_mean(self._lab.capacities([replace(cell, seed=seed) for seed in self._seeds]))

    def _prepare(self, cells: Sequence[RoutingCell]) -> None:
        """Measures cells in parallel before they are needed."""
        self._lab([replace(cell, seed=seed) for cell in cells for seed in self._seeds])

    def _ratio(self, metric: str, value: float, versus: str, base: float) -> ResultRow:
        return ratio_row(metric, "/s", value, versus, base, self._goals.get(metric))

    def _mean(self, metric: str, ratios: Sequence[float]) -> ResultRow:
        return value_row(metric, "ratio", geometric_mean(ratios), self._goals.get(metric))

    def _family_rows(self) -> Iterator[ResultRow]:
        presets = (DEFAULT, "round-robin", *PUBLISHED)
        self._prepare([RoutingCell(name, family, 0) for family in FAMILIES for name in presets])
        ratios, best = [], []
        for family in FAMILIES:
            mine, theirs = (
                self._capacity(RoutingCell(DEFAULT, family, 0)),
                self._capacity(RoutingCell(DUALMAP, family, 0)),
            )
            others = {name: self._capacity(RoutingCell(name, family, 0)) for name in PUBLISHED}
            winner = max(others, key=others.__getitem__)
            ratios.append(mine / theirs if theirs else 0.0)
            best.append(mine / others[winner] if others[winner] else 0.0)
            yield self._ratio(f"capacity, {family}: default ÷ dualmap", mine, DUALMAP, theirs)
            for name, value in others.items():
                yield self._ratio(f"capacity, {family}: default ÷ {name}, for comparison", mine, name, value)
        yield self._mean("capacity, five families: default ÷ dualmap", ratios)
        yield self._mean("capacity, five families: default ÷ dualmap, to excel", ratios)
        yield self._mean("capacity, five families: default ÷ best published of each", best)

    def _conversation_rows(self) -> Iterator[ResultRow]:
        here = RoutingCell(DEFAULT, "conversation", 0)
        there = replace(here, profile="910b4", bar="unguarded")
        names = (DEFAULT, DUALMAP, "round-robin")
        self._prepare([replace(cell, preset=name) for cell in (here, there) for name in names])
        mine, theirs = self._capacity(here), self._capacity(replace(here, preset=DUALMAP))
        yield self._ratio("capacity, conversation: default ÷ dualmap", mine, DUALMAP, theirs)
        mine, theirs = self._capacity(there), self._capacity(replace(there, preset=DUALMAP))
        yield self._ratio("capacity, conversation, 910b4, unguarded: default ÷ dualmap", mine, DUALMAP, theirs)
        plain = self._capacity(replace(there, preset="round-robin"))
        for bound in ("at least", "at most"):
            metric = f"capacity, conversation, 910b4, unguarded: dualmap ÷ round-robin, {bound}"
            yield self._ratio(metric, theirs, "round-robin", plain)

    # --- several gateways -----------------------------------------------------------------------------------------------

    def _gateway_rows(self) -> Iterator[ResultRow]:
        one = [RoutingCell(DEFAULT, traffic, 0) for traffic in self._shared]
        late = {
            "three gateways, 50 ms / 0.2 s ÷ one": (0.05, 0.2),
            "three gateways, 0.5 s / 1 s ÷ one": (0.5, 1.0),
        }
        apart = [replace(cell, gateways=3, sent_seconds=None) for cell in one]
        stale = [replace(cell, sent_seconds=5.0, loads_seconds=5.0) for cell in one]
        three = {
            metric: [replace(cell, gateways=3, sent_seconds=sent, loads_seconds=loads) for cell in one]
            for metric, (sent, loads) in late.items()
        }
        three["three gateways, 5 s / 5 s ÷ one, for comparison"] = [replace(cell, gateways=3) for cell in stale]
        dualmap = [replace(cell, preset=DUALMAP) for cell in apart]
        self._prepare([*one, *apart, *stale, *dualmap, *[cell for cells in three.values() for cell in cells]])
        for metric, cells in three.items():
            yield self._mean(metric, self._over(cells, one))
        yield self._mean("three gateways, nothing shared: default ÷ dualmap", self._over(apart, dualmap))
        yield self._mean("views 5 s old ÷ fresh", self._over(stale, one))

    def _over(self, cells: Sequence[RoutingCell], bases: Sequence[RoutingCell]) -> list[float]:
        return [self._capacity(cell) / self._capacity(base) for cell, base in zip(cells, bases, strict=True)]

    # --- at a rate ------------------------------------------------------------------------------------------------------

    def _at_rates(self) -> Iterator[ResultRow]:
        """Yields rows at shares of DualMap's capacity."""
        calm = {name: self._at_load(name, 0.9) for name in (DEFAULT, DUALMAP)}
        for what, metric in (
            ("ttft_p90", "p90 TTFT at 90 % of dualmap's capacity: default ÷ dualmap"),
            ("tpot_p99", "p99 TPOT at 90 % of dualmap's capacity: default ÷ dualmap"),
        ):
            pairs = zip(calm[DEFAULT], calm[DUALMAP], strict=True)
            yield self._mean(metric, [mine[what] / theirs[what] for mine, theirs in pairs])
        lost = self._at_load(DEFAULT, 0.85, happens="lost")
        metric = "one of eight lost at 85 % of dualmap's capacity: worst attainment of 30 s"
        yield value_row(metric, "share", min(one["worst_window"] for one in lost), self._goals.get(metric))
        scaled = self._at_load(DEFAULT, 0.85, engines=6, happens="6-8-6")
        metric = "6 → 8 → 6 at 85 % of six engines' capacity: attainment"
        yield value_row(metric, "share", min(one["attainment"] for one in scaled), self._goals.get(metric))
        alone = self._lab([RoutingCell(DEFAULT, family, self._seeds[0], rate=30.0, seam=False) for family in FAMILIES])
        metric = "simulated requests a minute of one core, one router"
        yield value_row(
            metric, "", geometric_mean([one["a_minute"] for one in alone.values()]), self._goals.get(metric)
        )

    def _at_load(self, name: str, share: float, *, engines: int = 8, happens: str = "") -> list[dict[str, float]]:
        bases = [RoutingCell(DUALMAP, family, seed, engines=engines) for family in FAMILIES for seed in self._seeds]
        rates = self._lab.capacities(bases)
        cells = [
            replace(base, preset=name, rate=share * rate, happens=happens)
            for base, rate in zip(bases, rates, strict=True)
        ]
        found = self._lab(cells)
        return [dict(found[cell]) for cell in cells]

    def _strict_slo_rows(self) -> Iterator[ResultRow]:
        pairs = {
            family: [RoutingCell(name, family, 0, bar="strict") for name in (DEFAULT, DUALMAP)] for family in FAMILIES
        }
        self._prepare([cell for pair in pairs.values() for cell in pair])
        for family, (mine, theirs) in pairs.items():
            metric = f"capacity at 99 % within 2 s, {family}: default ÷ dualmap"
            yield self._ratio(metric, self._capacity(mine), DUALMAP, self._capacity(theirs))

    def _large_fleet_rows(self) -> Iterator[ResultRow]:
        seed = self._seeds[0]
        pair = [RoutingCell(name, "agents", seed, engines=64) for name in (DEFAULT, DUALMAP)]
        mine, theirs = self._lab.capacities(pair)
        yield self._ratio("capacity, 64 engines, agents: default ÷ dualmap", mine, DUALMAP, theirs)
        pooled = [RoutingCell("round-robin", family, 0, pooled=True) for family in FAMILIES]
        self._prepare(pooled)
        for cell in pooled:
            mine = self._capacity(RoutingCell(DEFAULT, cell.traffic, 0))
            yield self._ratio(f"capacity, {cell.traffic}: default ÷ one pool", mine, "pool", self._capacity(cell))

    def _reference_rows(self) -> Iterator[ResultRow]:
        for family, published in REFERENCE_STUDY.items():
            ours = [self._capacity(RoutingCell(name, family, 0)) for name in ("round-robin", DUALMAP)]
            for name, mine, theirs in zip(("round-robin", DUALMAP), ours, published, strict=True):
                yield self._ratio(f"calibration, {family}, {name}: ours ÷ the study's", mine, "study", theirs)
            metric = f"calibration, {family}: dualmap ÷ round-robin, ours ÷ the study's"
            value, base = ours[1] / ours[0], published[1] / published[0]
            yield ratio_row(metric, "ratio", value, "study", base, self._goals.get(metric))
