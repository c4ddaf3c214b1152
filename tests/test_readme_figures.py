"""The README quotes the committed results, digit for digit."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ROW = re.compile(
    r"^\| (\S+) \| (live|simulated|light load, simulated) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.M
)

TARGETS = (
    "fairlead",
    "sglang-router cache_aware",
    "smg cache_aware",
    "vllm-router cache_aware",
    "litellm",
    "Envoy",
    "nginx",
)


CONTROLLERS = {
    "HPA, concurrency": "hpa-concurrency",
    "KPA, concurrency": "kpa-concurrency-delayed",
    "KEDA, request rate": "keda-request-rate",
    "AIBrix APA, concurrency": "apa-concurrency-fixed",
    "llm-d WVA, saturation": "wva-saturation",
    "Dynamo planner": "dynamo",
}


def figures(run: dict[str, Any]) -> tuple[str, ...]:
    seconds = run["ttft_seconds"]
    shares = (run["within_objective"], run["cached_token_share"])
    return (f"{seconds['mean']:.2f}", f"{seconds['p90']:.2f}", *(f"{share * 100:.1f}" for share in shares))


def test_the_table_of_the_readme_is_the_committed_report() -> None:
    report = json.loads((ROOT / "bench/results/demo.json").read_text())
    quoted = {(preset, run): tuple(rest) for preset, run, *rest in ROW.findall((ROOT / "README.md").read_text())}
    expected = {
        (preset, run): figures(found) for preset, runs in report["policies"].items() for run, found in runs.items()
    }
    light = report["light_load"]["policies"]
    expected |= {(preset, "light load, simulated"): figures(runs["simulated"]) for preset, runs in light.items()}
    assert quoted == expected


def test_the_committed_report_is_of_a_valid_run_that_meets_its_bars() -> None:
    report = json.loads((ROOT / "bench/results/demo.json").read_text())
    assert report["valid"] is True
    assert report["lag_p99_seconds"] <= 0.020
    for run in ("live", "simulated"):
        dual, robin, least = (
            report["policies"][preset][run] for preset in ("dual-hash", "round-robin", "least-request")
        )
        assert dual["cached_token_share"] >= 2.0 * robin["cached_token_share"]
        assert dual["ttft_seconds"]["p90"] <= 0.5 * robin["ttft_seconds"]["p90"]
        assert dual["ttft_seconds"]["p90"] <= 0.7 * least["ttft_seconds"]["p90"]
    for runs in report["policies"].values():
        live, simulated = (runs[run]["ttft_seconds"]["mean"] for run in ("live", "simulated"))
        assert abs(live / simulated - 1) <= 0.10


def test_the_table_of_costs_is_the_committed_run() -> None:
    report = json.loads((ROOT / "bench/results/gateway.json").read_text())
    value = {row["metric"]: row["value"] for row in report["rows"]}
    readme = (ROOT / "README.md").read_text()
    table = readme.partition("| CPU µs per |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(table) == 6
    for line in table:
        name, *quoted = (cell.strip() for cell in line.strip("|").split("|"))
        load = name.removeprefix("chunk, ")
        found = [value.get(f"CPU per {load} | {target}") for target in TARGETS]
        assert quoted == ["–" if one is None else f"{one:.0f}" for one in found]
    missed = [row["metric"] for row in report["rows"] if not row["holds"]]
    assert missed == ["1,000 streams × 20 chunks/s: added delay p99"]
    assert sum(row["goal"] is not None for row in report["rows"]) == 17


def test_what_the_readme_says_of_a_cluster_is_the_committed_run() -> None:
    report = json.loads((ROOT / "bench/results/e2e.json").read_text())
    assert report["full"]
    assert report["holds"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    streams = report["parts"]["under_load"]["streams"]
    assert f"{streams:,} of {streams:,} streams whole" in readme
    assert f"{report['parts']['first_token']['seconds']['apply_to_first_token']} s from `apply`" in readme


def test_the_table_of_the_autoscaler_is_the_committed_run() -> None:
    rows = {row["metric"]: row for row in json.loads((ROOT / "bench/results/autoscaler.json").read_text())["rows"]}
    quoted = (ROOT / "README.md").read_text().partition("| controller | at one fixed setting")[2].partition("\n\n")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in quoted.splitlines()[2:]]
    assert lines[0] == ["Fairlead", f"{rows['fairlead: of 11 scenarios keeps 99 % in']['value']:.0f}", "1", "", ""]
    assert [line[0] for line in lines[1:]] == list(CONTROLLERS)
    for name, *cells in lines[1:]:
        found = []
        for knob, where in (("fixed", "(fixed): cost"), ("best", "best knob: cost")):
            own = {metric: row for metric, row in rows.items() if metric.startswith(f"{CONTROLLERS[name]} at ")}
            kept = next(
                row for metric, row in own.items() if metric.endswith(f"({knob}): of 11 scenarios keeps 99 % in")
            )
            cost = next(row for metric, row in own.items() if where in metric)
            found += [f"{kept['value']:.0f}", "–" if cost["ratio"] is None else f"{1.0 / cost['ratio']:.1f} ×"]
        assert cells == found, name
