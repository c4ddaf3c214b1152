"""`fairlead simulate`: what another preset would do with some traffic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead_testing.cli.command_line import run_command_line


def simulate(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fairlead_cli", "simulate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={"COLUMNS": "120"})


def test_equal_arguments_give_equal_figures_for_all_presets(tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    arguments = [
        "agents",
        "--limit",
        "400",
        "--rate",
        "30",
        "--engines",
        "4",
        "--presets",
        "dual-hash",
        "--presets",
        "round-robin",
    ]
    for file in files:
        done = simulate(*arguments, "--out", str(file))
        assert (done.returncode, done.stderr) == (0, "")
    assert "400 requests at 30/s; 4 engines h100-llama8b, first token within 5 s" in done.stdout
    reports = [json.loads(file.read_text()) for file in files]
    assert reports[0] == reports[1]
    presets = reports[0]["presets"]
    assert list(presets) == ["dual-hash", "round-robin"]
    assert presets["dual-hash"]["cached_token_share"] > 1.2 * presets["round-robin"]["cached_token_share"]
    assert presets["dual-hash"]["attainment"] > presets["round-robin"]["attainment"]
    assert {preset["requests"] for preset in presets.values()} == {360}  # the first tenth warms the caches
    assert {preset["capacity"] for preset in presets.values()} == {None}


def test_capacity_option_searches_the_capacity(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    done = simulate(
        *("rag", "--limit", "300", "--engines", "2", "--presets", "dual-hash", "--capacity", "--ttft", "0.5"),
        *("--out", str(file)),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["presets"]["dual-hash"]["capacity"] > 0.5
    assert "carries" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing-of-that-name"], "there is no traffic 'nothing-of-that-name'"),
        (["agents", "--presets", "fastest"], "--presets: there is no preset 'fastest'"),
        (["agents", "--engines", "0"], "--engines must be from 1 to 1024, not 0"),
        (["agents", "--rate", "0"], "--rate must be above 0 requests/s, not 0"),
        (["agents", "--ttft", "-1"], "--ttft must be above 0 s, not -1"),
        (["agents", "--profile", "abacus"], "abacus"),
        (["agents", "--limit", "0"], "the number of requests must be at least 1, not 0"),
    ],
)
def test_invalid_option_is_named_in_the_error(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = run_command_line("simulate", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
