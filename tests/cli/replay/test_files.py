"""What a replay leaves in its folder can be read by others."""

import csv
import json
from pathlib import Path

from rich.console import Console

from fairlead.fleet import Objectives
from fairlead.profile import preset
from fairlead_cli.replaying.files import COLUMNS, write
from fairlead_cli.replaying.report import Policy, Report, Side
from fairlead_cli.replaying.simulated import Simulation
from fairlead_cli.replaying.tables import show
from fairlead_sim.traces import at_rate
from fairlead_sim.traffic import conversation

OBJECTIVES = Objectives(ttft_seconds=5.0, itl_seconds=0.3)


def report() -> Report:
    requests = at_rate(conversation(40, seed=1), 5.0)
    policies = {}
    for name in ("dual-hash", "round-robin"):
        fleet = Simulation(preset("910b4"), ["a/1/0", "b/2/0"], name, OBJECTIVES, b"secret")
        outcomes = fleet.run(requests)
        run = Side.of(outcomes, objectives=OBJECTIVES, instances=2)
        policies[name] = Policy(run, run)
    return Report("made up", OBJECTIVES, 2.0, 5.0, 40, policies, {"gateway": 0.001}, (), 0.3, 1.0, policies)


def test_a_report_is_written_as_json_text_picture_and_lines(tmp_path: Path) -> None:
    files = write(report(), tmp_path / "new" / "folder")
    assert [file.name for file in files] == ["report.json", "report.md", "report.png", "requests.csv"]
    assert json.loads(files[0].read_text())["policies"]["dual-hash"]["live"]["requests"] == 40
    assert files[1].read_text().startswith("# What the routing buys")
    assert files[2].read_bytes().startswith(b"\x89PNG")
    with files[3].open() as stream:
        lines = list(csv.DictReader(stream))
    assert tuple(lines[0]) == COLUMNS
    assert len(lines) == 2 * 2 * 40


def test_a_report_without_light_load_or_objective_is_written_too(tmp_path: Path) -> None:
    full = report()
    bare = Report("made up", Objectives(), 1.0, 5.0, 40, {"gateway": Policy(full.policies["dual-hash"].live)})
    assert len(write(bare, tmp_path)) == 4


def test_the_table_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    console = Console(width=80, record=True, file=(tmp_path / "screen").open("w"))
    with console.file:
        show(report(), console, [tmp_path / "report.json"])
    text = console.export_text()
    assert "…" not in text
    assert "dual-hash" in text
