"""Output files of a replay."""

import csv
import json
from pathlib import Path

from rich.console import Console

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_cli.replay.fleet_simulation import FleetSimulation
from fairlead_cli.replay.report.report import (
    CSV_COLUMNS,
    PolicyResult,
    ReplayReport,
    RunSummary,
    print_report,
    write_report,
)
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import at_rate

OBJECTIVES = SloTargets(ttft_seconds=5.0, itl_seconds=0.3)


def report() -> ReplayReport:
    requests = at_rate(conversation_traffic(40, seed=1), 5.0)
    policies = {}
    for name in ("dual-hash", "round-robin"):
        fleet = FleetSimulation(builtin_profile("910b4"), ["a/1/0", "b/2/0"], name, OBJECTIVES, b"secret")
        results = fleet.run(requests)
        run = RunSummary.from_results(results, objectives=OBJECTIVES, instances=2)
        policies[name] = PolicyResult(run, run)
    return ReplayReport("made up", OBJECTIVES, 2.0, 5.0, 40, policies, {"gateway": 0.001}, (), 0.3, 1.0, policies)


def test_report_is_written_as_json_markdown_png_and_csv(tmp_path: Path) -> None:
    files = write_report(report(), tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["report.json", "report.md", "report.png", "requests.csv"]
    assert json.loads(files[0].read_text())["policies"]["dual-hash"]["live"]["requests"] == 40
    assert files[1].read_text().startswith("# Routing presets compared")
    assert files[2].read_bytes().startswith(b"\x89PNG")
    with files[3].open() as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == CSV_COLUMNS
    assert len(lines) == 2 * 2 * 40


def test_report_without_light_load_or_slo_is_written(tmp_path: Path) -> None:
    full = report()
    bare = ReplayReport(
        "made up", SloTargets(), 1.0, 5.0, 40, {"gateway": PolicyResult(full.policies["dual-hash"].live)}
    )
    assert len(write_report(bare, tmp_path)) == 4


def test_table_fits_80_columns(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=(tmp_path / "screen").open("w"))
    with console.file:
        print_report(report(), console, [tmp_path / "report.json"])
    text = console.export_text()
    assert "…" not in text
    assert "dual-hash" in text
