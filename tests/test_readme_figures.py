"""The committed results that the README shows or names."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


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


def test_the_runs_that_the_readme_names_as_records_hold() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in ("e2e", "soak", "vllm"):
        assert f"(bench/results/{name}.json)" in readme
        report = json.loads((ROOT / f"bench/results/{name}.json").read_text())
        assert report.get("holds", True)
        assert all(part.get("held", True) for part in report["parts"].values())
