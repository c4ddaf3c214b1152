"""`docs/benchmarks.md`: figures that are typed in are those of the results."""

import json
import re
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


BUSY = "decision alone, 32 KB, 1M-block index, 64 busy engines"
MISSED_BY_THE_GATEWAY = [
    "CPU per 2 KB request ÷ sglang-router cache_aware",
    "CPU per 2 KB request ÷ Envoy",
    "1,000 streams × 20 chunks/s: share of a core",
    "1,000 streams × 20 chunks/s: added delay p99",
    "memory, idle",
    "decision alone, 2 KB, 1M-block index",
    f"{BUSY}: p99",
    f"{BUSY}: p99, crowded",
    f"{BUSY}: hash, match and pick: p99",
    f"{BUSY}: p99 of what is slow each time",
    "CPU per 220 KB request at 100/s ÷ sglang-router cache_aware",
]


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_no_table_is_empty() -> None:
    assert re.findall(r"<!-- Table: (.+)\. -->\n(?!\|)", PAGE) == []


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


def test_judging_seeds_of_the_simulator() -> None:
    table = results("autoscaler-judging")["table"]["fairlead"]
    shares = {name: [run["servable"] for run in runs.values()] for name, runs in table.items()}
    text, nine = " ".join(PAGE.split()), [share for name in list(shares)[:9] for share in shares[name]]
    below = [share for share in nine if share < 0.988]
    assert f"Of {len(nine)} runs of the first nine scenarios, {len(below)} keep less than 98.8%" in text
    assert f"could have served, the least {min(nine):.2%}. " in text
    assert f"`long-prompts` has {sum(share < 0.988 for share in shares['long-prompts'])} of them." in text
    on_off = shares["on-off"]
    assert f"`on-off`, {sum(share < 0.988 for share in on_off)} are below 98.8%, the least at {min(on_off):.2%}" in text


def share_cells(runs: list[Any]) -> tuple[str, str]:
    """Returns mean and least servable share as the page shows them; bold below 99 %."""
    shares = [run["share"] * run["requests"] / max(run["requests"] - run["unservable"], 1) for run in runs]
    texts = [(f"{share:.2%}", round(share, 4) < 0.99) for share in (fmean(shares), min(shares))]
    mean, least = (f"**{text}**" if is_missed else text for text, is_missed in texts)
    return mean, least


def test_missed_goals_and_delays_of_the_gateway() -> None:
    found = results("gateway")["rows"]
    text = " ".join(PAGE.split())
    goals = [row for row in found if row["goal"] is not None]
    rows = {row["metric"]: row for row in (*found, *goals)}
    missed = [row for row in goals if not row["holds"]]
    assert f"misses {len(missed)} of its {len(goals)} goals" in text
    assert [row["metric"] for row in missed] == MISSED_BY_THE_GATEWAY
    assert len(goals) == 26
    assert f"2 KB take {rows['CPU per 2 KB request ÷ Envoy']['ratio']:.2f} × Envoy" in text
    assert f"adds {rows['1,000 streams × 20 chunks/s: added delay p99']['value'] * 1000:.1f} ms at p99" in text
    delay = "1,000 streams × 20 chunks/s: delay p99 | "
    direct = rows[f"{delay}direct"]["value"]
    router, envoy = (rows[delay + name]["value"] - direct for name in ("sglang-router cache_aware", "Envoy"))
    assert f"sglang-router added {router * 1000:.1f} ms there, and Envoy {envoy * 1000:.1f} ms" in text


def test_number_of_compared_products() -> None:
    targets = {row["metric"].partition(" | ")[2] for row in results("gateway")["rows"]} - {"", "direct", "fairlead"}
    status = (ROOT / "docs" / "status.md").read_text(encoding="utf-8")
    assert len({target.split()[0] for target in targets}) == 5
    assert "compared with five products" in status


def test_every_file_names_what_the_page_says_it_names() -> None:
    for path in (ROOT / "bench" / "results").glob("*.json"):
        report = results(path.stem)
        expected = {"machine", "versions", "seed"} if "rows" in report else {"machine"}
        assert path.stem == "demo" or expected <= set(report), path.name
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
        "decision.json",
        "fitted.json",
        "gateway-instructions.json",
        "large-bodies.json",
    }
    assert {path.name for path in (ROOT / "bench" / "results").glob("*.json")} - minor <= listed
