"""The fleet simulator compared with a measured fleet: the same requests, presets and costs.

It needs no engine.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from e2e.gpu.control_plane import SECRET, SLO
from e2e.gpu.engines import CURVE_STEP_TOKENS, FLEET_STEP_TOKENS, MODEL_KEY
from e2e.gpu.step_costs import StepCosts, compare_profiles, fit_profile
from e2e.vllm.report import Numbers, VllmReport, require
from fairlead.engine_profile import EngineProfile
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_cli.replay.fleet_simulation import FleetSimulation
from fairlead_cli.replay.report.report import summarize
from fairlead_cli.replay.traffic import PromptBuilder, load_traffic, prefix_chains
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.traces import BUNDLED_TRACE

CURVES_FILE: Final = "curves.json"
TIE: Final = 0.05
"""Two presets whose simulated values differ by less have no order."""
_RUNS: Final = 5


class SimulatedFleet:
    """The part `simulator`. out: has the files of the part `fleet`."""

    def __init__(self, report: VllmReport, out: Path) -> None:
        self._report = report
        self._out = out

    async def run(self) -> None:
        """Compares every preset's first replay, and the built-in profiles if there are curves."""
        await self._report.check("the presets' order, live and simulated", self._compare)
        if (self._out / CURVES_FILE).exists():
            await self._report.check("built-in profiles and the curves", self._compare_profiles)

    async def _compare_profiles(self) -> Numbers:
        curves = json.loads((self._out / CURVES_FILE).read_text())
        return compare_profiles(StepCosts.from_json(curves, CURVE_STEP_TOKENS))

    async def _compare(self) -> Numbers:
        costs = json.loads((self._out / "fleet-costs.json").read_text())
        profile = fit_profile(StepCosts.from_json(costs, FLEET_STEP_TOKENS))
        replays = {
            file.name.removeprefix("replay-").removesuffix("-1.json"): file
            for file in self._out.glob("replay-*-1.json")
        }
        require(len(replays) > 1, f"{self._out} has no replays of several presets")
        found = {
            preset: compare_replay(preset, json.loads(file.read_text()), profile) for preset, file in replays.items()
        }
        numbers: Numbers = dict(sorted(found.items()))
        for name in ("ttft_mean", "ttft_p90"):
            numbers[f"pairs_in_another_order_by_{name}"] = count_disorder(
                [(rows["live"][name], rows["simulated"][name]) for rows in found.values()]
            )
        apart = [
            abs(rows["simulated"][name] / rows["live"][name] - 1)
            for rows in found.values()
            for name in ("ttft_mean", "tpot_mean")
        ]
        numbers["furthest_apart"] = round(max(apart), 3)
        require(not numbers["pairs_in_another_order_by_ttft_mean"], "the order is another one", numbers)
        return numbers


def compare_replay(preset: str, replay: Mapping[str, Any], profile: EngineProfile) -> dict[str, dict[str, float]]:
    """Returns figures of a replay: live, simulated, and simulated with the instances that the
    gateway chose.
    """
    rows: Sequence[Mapping[str, Any]] = replay["rows"]
    traffic = load_traffic(BUNDLED_TRACE, limit=len(rows), rate=replay["rate"])
    chain = prefix_chains(PromptBuilder(Tokenizer()), secret=SECRET.encode(), model_key=MODEL_KEY)
    instances = sorted({row["instance"] for row in rows if row["instance"]})
    simulation = FleetSimulation(profile, instances, preset, SLO, SECRET.encode(), chain)
    live = [_result(row) for row in rows]
    choices = {row["id"]: row["instance"] for row in rows if row["instance"]}
    tpots = [row["tpot_seconds"] for row in rows if row["tpot_seconds"] is not None]
    return {
        "live": _figures(live, tpots, len(instances)),
        "simulated": _simulated_figures(simulation.run_median(traffic.requests, run_count=_RUNS), len(instances)),
        "same_choices": _simulated_figures(simulation.run(traffic.requests, choices=choices), len(instances)),
    }


def count_disorder(pairs: Sequence[tuple[float, float]]) -> int:
    """Returns how many pairs of (live, simulated) values have another order live; ties by
    simulation do not count.
    """
    return sum(
        (live < other_live) != (simulated < other_simulated)
        for number, (live, simulated) in enumerate(pairs)
        for other_live, other_simulated in pairs[number + 1 :]
        if abs(simulated - other_simulated) > TIE * max(simulated, other_simulated)
    )


def _simulated_figures(results: Sequence[ReplayResult], instances: int) -> dict[str, float]:
    tpots = [result.itl_mean_seconds for result in results if result.itl_mean_seconds is not None]
    return _figures(results, tpots, instances)


def _figures(results: Sequence[ReplayResult], tpots: Sequence[float], instances: int) -> dict[str, float]:
    summary = summarize(results, objectives=SLO, instances=instances)
    values = {
        "ttft_mean": summary.ttft_seconds.mean,
        "ttft_p50": summary.ttft_seconds.p50,
        "ttft_p90": summary.ttft_seconds.p90,
        "tpot_mean": fmean(tpots),
        "cached_share": summary.cached_token_share,
    }
    return {name: round(value, 4) for name, value in values.items() if value is not None}


def _result(row: Mapping[str, Any]) -> ReplayResult:
    """Returns the result that a row was made of, without its single gaps."""
    result = ReplayResult(row["id"], 0.0, row["prompt_tokens"])
    return replace(
        result,
        instance=row["instance"],
        ttft_seconds=row["ttft_seconds"],
        cached_tokens=row["cached_tokens"],
        error=row["error"],
    )
