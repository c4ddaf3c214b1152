"""A local stack for one measurement: start, use, and an end without leftover processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import Unavailable
from fairlead.fleet.model import SloTargets
from fairlead_cli.local.run_directory import running_stacks
from fairlead_cli.replay.command import find_gateway, replay_once
from fairlead_cli.replay.demo import (
    MeasuredStack,
    MeasuredStackOptions,
    PresetComparison,
    _descendants,
    _kill_survivors,
    _parse_ps,
)
from fairlead_cli.replay.traffic import load_traffic
from fairlead_testing.processes import block_until, descendants, is_alive


def stack_options(tmp_path: Path, *, manifest: str | None = None) -> MeasuredStackOptions:
    file = tmp_path / "model.yaml"
    if manifest is not None:
        file.write_text(manifest)
    else:
        comparison = PresetComparison(
            traffic=load_traffic(None, limit=1, rate=None),
            presets=(),
            profile=builtin_profile("910b4"),
            engines=2,
            objectives=SloTargets(ttft_seconds=5.0, itl_seconds=0.3),
            speed=20.0,
            light_rate=1.0,
            folder=tmp_path,
        )
        file = comparison.write_manifest()
    return MeasuredStackOptions(file, "dual-hash", 20.0, "secret", tmp_path / "up.log", engines=2)


def test_stack_serves_a_replay_and_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAIRLEAD_HASH_SECRET", "secret")
    with MeasuredStack(stack_options(tmp_path)) as stack:
        processes = descendants(stack.addresses.pid) | {stack.addresses.pid}
        model, instances = stack.only_model()
        assert (model.key, model.preset, len(instances)) == ("default/demo", "dual-hash", 2)
        assert stack.addresses.pid not in {running.pid for running in running_stacks()}  # has its own run directory
        file = Path(stack.addresses.fleet_file)
        gateway = find_gateway(url=stack.addresses.url, manage=stack.addresses.manage, fleet_file=file, model=None)
        messages: list[str] = []
        report = replay_once(load_traffic(None, limit=12, rate=8.0), gateway, speed=20.0, on_progress=messages.append)
    policy = report.policies["dual-hash"]
    assert policy.live is not None
    assert policy.simulated is not None
    assert [result.error for result in policy.live.results] == [None] * 12
    assert [result.instance for result in policy.live.results if result.instance is None] == []
    assert [result.prompt_tokens - (result.cached_tokens or 0) > 0 for result in policy.live.results] == [True] * 12
    assert report.objectives.ttft_seconds == pytest.approx(5.0)
    assert report.lags["gateway"] is not None
    assert messages == []
    assert not any("other clients" in doubt for doubt in report.invalid_reasons)
    assert not (tmp_path / "up.run").exists()
    assert len(processes) > 3
    assert not any(is_alive(pid) for pid in processes)


def test_failed_stack_start_shows_last_output_lines(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="kind"), MeasuredStack(stack_options(tmp_path, manifest="kind: Nothing\n")):
        pass


@pytest.mark.nightly
def test_demo_writes_a_report_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fairlead_cli", "demo", "--limit", "12", "--speed", "10", "--out", str(tmp_path)]
    presets = ["round-robin", "dual-hash"]
    done = subprocess.run([*command, "--presets", *presets], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["trace"] == "Mooncake conversation trace"
    assert list(report["policies"]) == presets
    for policy in report["policies"].values():
        assert policy["live"]["requests"] == policy["simulated"]["requests"] == 12
        assert policy["live"]["errors"] == 0
        assert policy["live"]["cached_token_share"] is not None
    assert "traffic: Mooncake conversation trace, 12 requests" in done.stdout


def test_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fairlead_cli", "demo", "--limit", "300", "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        pids: set[int] = set()

        def has_started() -> bool:
            pids.update(descendants(process.pid))
            return len(pids) >= 4

        block_until(has_started, "the demo has started a stack")
        process.send_signal(signal.SIGKILL)
        process.wait()
    block_until(lambda: not any(is_alive(pid) for pid in pids), "everything that the demo started is gone")


def test_process_that_outlives_its_stack_is_killed_and_reported() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        processes = {entry for entry in _descendants(os.getpid()) if entry[0] == process.pid}
        assert _kill_survivors(processes, patience_seconds=0.0) == {process.pid}
        assert process.wait() == -signal.SIGKILL
    assert _kill_survivors(processes, patience_seconds=0.0) == set()


def test_ps_output_is_parsed_without_zombies() -> None:
    lines = ["  1     0 Ss   Thu Jan  1 00:00:01 2026", " 20     1 Z    Thu Jan  1 00:00:02 2026", "garbage"]
    assert _parse_ps(lines) == {1: (0, "Thu Jan  1 00:00:01 2026")}
