"""`docs/benchmarks.md`: figures that are typed in are those of the results."""

import json
import re
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
HELD_OUT_ROWS = {
    "noisy hour": "noisy-hour",
    "failures": "failures",
    "slow engine": "slow-engine",
    "drift": "drift",
    "long prompts": "long-prompts",
    "mix move": "mix-move",
    "missing-metrics, the window and five minutes after it": "missing-metrics",
    "inconsistent-metrics, the window and five minutes after it": "inconsistent-metrics",
    "step warm": "step-warm",
    "on/off": "on-off",
}


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_held_out_seeds_are_those_of_the_record() -> None:
    tables = [table["fairlead"] for table in results("autoscaler-held-out")["tables"].values()]
    assert len(tables) == 8
    quoted = PAGE.partition("| scenario | mean | least |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [cells(line)[0] for line in quoted] == list(HELD_OUT_ROWS)
    for line in quoted:
        name, *shares = cells(line)
        figure = "window_attainment" if "window" in name else "attainment"
        found = [table[HELD_OUT_ROWS[name]][figure] for table in tables]
        assert [share.strip("*") for share in shares] == [f"{fmean(found):.2%}", f"{min(found):.2%}"], name
        assert [share.startswith("**") for share in shares] == [fmean(found) < 0.99, min(found) < 0.99], name


def test_predicted_missed_share_of_fixed_fleets() -> None:
    found = {row["metric"]: row["value"] for row in results("autoscaler-missed-share")["rows"]}
    table = PAGE.partition("<!-- Table: predicted missed share. -->")[2].partition("<!-- End of the table. -->")[0]
    shown = [cells(line) for line in table.strip().splitlines()[2:]]
    assert [plant for plant, *_ in shown] == ["aggregated", "token-level", "outside", "fleet simulator"]
    for plant, fleets, *within, error in shown:
        count = found[f"{plant}: fleets judged"]
        kinds = [(kind, factor) for factor in (2, 3) for kind in ("derived", "corrected")]
        metric = "fleets whose missed share, {}, is within a factor of {}"
        assert int(fleets) == count
        assert [int(one) for one in within] == [
            round(found[f"{plant}: {metric.format(kind, factor)}"] * count) for kind, factor in kinds
        ]
        metric = f"{plant}: error of the rate at which the measured share is predicted, median"
        assert error == f"{found[metric]:.1%}"


def test_outside_plant_figures() -> None:
    table = PAGE.partition("<!-- Table: outside plant. -->")[2].partition("<!-- End of the table. -->")[0]
    shown = {row[0]: row[1:] for row in map(cells, table.strip().splitlines()[2:])}
    tuning, judging = (results(name)["runs"] for name in ("autoscaler-outside", "autoscaler-outside-judging"))
    assert list(shown) == list(dict.fromkeys(run["family"] for run in tuning))
    ratios = []
    for family, (mean, least, cost, seeds, judged_mean, judged_least) in shown.items():
        runs, judged = ([run for run in part if run["family"] == family] for part in (tuning, judging))
        ratios.append(geometric_mean([run["replica_hours"] / run["optimum"]["replica_hours"] for run in runs]))
        assert cost == f"{ratios[-1]:.2f} ×"
        assert (mean, least) == share_cells(runs), family
        assert seeds == (str(len(judged)) if judged else "–")
        assert (judged_mean, judged_least) == (share_cells(judged) if judged else ("–", "–")), family
    assert f"The geometric mean of the costs is {geometric_mean(ratios):.2f} ×" in PAGE


def test_shares_on_generated_traffic() -> None:
    found = results("autoscaler-generated")["table"]["fairlead"]
    noisy, long = ([run["attainment"] for run in found[name].values()] for name in ("noisy-hour", "long-prompts"))
    text = " ".join(PAGE.split())
    assert f"the noisy hour keeps {min(noisy):.2%} to {max(noisy):.2%}" in text
    assert f"the long prompts {min(long):.2%} to {max(long):.2%}" in text


def share_cells(runs: list[Any]) -> tuple[str, str]:
    """Returns mean and least servable share as the page shows them; bold below 99 %."""
    shares = [run["share"] * run["requests"] / max(run["requests"] - run["unservable"], 1) for run in runs]
    texts = [(f"{share:.2%}", round(share, 4) < 0.99) for share in (fmean(shares), min(shares))]
    mean, least = (f"**{text}**" if is_missed else text for text, is_missed in texts)
    return mean, least


def test_missed_goal_and_delays_of_the_gateway() -> None:
    rows = {row["metric"]: row for row in results("gateway")["rows"]}
    goals = [row for row in rows.values() if row["goal"] is not None]
    missed = [row for row in goals if not row["holds"]]
    assert len(missed) == 1
    assert f"misses one of its {len(goals)} goals" in PAGE
    assert f"adds {missed[0]['value'] * 1000:.1f} ms at p99" in PAGE
    delay = "1,000 streams × 20 chunks/s: delay p99 | "
    direct = rows[f"{delay}direct"]["value"]
    router, envoy = (rows[delay + name]["value"] - direct for name in ("sglang-router cache_aware", "Envoy"))
    assert f"sglang-router added {router * 1000:.1f} ms and Envoy {envoy * 1000:.0f} ms" in PAGE


def test_number_of_compared_products() -> None:
    measured = {row["metric"].partition(" | ")[2] for row in results("gateway")["rows"]} - {"", "direct", "fairlead"}
    status = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    assert len(measured) == 6
    assert "compared with six products" in status


def test_every_file_names_what_the_page_says_it_names() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        report = results(path.stem)
        expected = {"machine", "versions", "seed"} if "rows" in report else {"machine"}
        assert path.stem in ("demo", "coverage") or expected <= set(report), path.name
        assert all("holds" in row for row in report.get("rows", ()) if row.get("goal") is not None), path.name


def test_every_results_file_is_listed() -> None:
    listed = set(re.findall(r"`(?:bench/results/)?([\w-]+\.json)`", PAGE)) | {
        "demo.json",
        "gateway.json",
        "autoscaler.json",
        "routing.json",
    }
    minor = {
        "agreement.json",
        "asleep.json",
        "coverage.json",
        "decision.json",
        "fitted.json",
        "gateway-instructions.json",
        "large-bodies.json",
    }
    assert {path.name for path in (ROOT / "bench" / "results").glob("*.json")} - minor <= listed
