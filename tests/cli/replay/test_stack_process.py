"""A local stack for one measurement: start, use, and an end without leftover processes."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput, Unavailable
from fairlead.fleet.model import SloTargets
from fairlead_cli.local.run_directory import running_stacks
from fairlead_cli.replay.command import TooBusy, find_gateway, replay_once
from fairlead_cli.replay.demo import (
    MIN_SPEED,
    MeasuredStack,
    MeasuredStackOptions,
    PresetComparison,
    _descendants,
    _kill_survivors,
    _parse_ps,
)
from fairlead_cli.replay.traffic import PromptBuilder, load_traffic
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.processes import descendants, is_alive


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
        assert (model.key, model.routing.preset, len(instances)) == ("default/demo", "dual-hash", 2)
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
    assert messages == ["simulating the same 12 requests, once and then in several runs"]
    assert not any("other clients" in doubt for doubt in report.invalid_reasons)
    assert list(tmp_path.glob("*.run")) == []
    assert len(processes) > 3
    assert not any(is_alive(pid) for pid in processes)


@dataclass(frozen=True, slots=True)
class FakeMeasurement:
    doubts: list[str]


@pytest.mark.parametrize(
    ("findings", "speeds"),
    [
        ([[]], [3.0]),
        ([["a lag"], TooBusy("the loop is late"), []], [3.0, 1.5, 0.75]),
        ([["a lag"]] * 5, [3.0, 1.5, 0.75, 0.375]),
    ],
)
def test_a_run_in_doubt_is_repeated_with_slower_simulated_time(
    findings: list[list[str] | TooBusy], speeds: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def measured(self: object, preset: str, speed: float, *rest: object, ends_early: float | None) -> FakeMeasurement:
        found = findings[len(tried)]
        tried.append(speed)
        assert (ends_early is None) == (speed / 2 < MIN_SPEED), "the last try is always measured to its end"
        if isinstance(found, TooBusy):
            raise found
        return FakeMeasurement(found)

    monkeypatch.setattr(PresetComparison, "_measure", measured)
    comparison = PresetComparison(
        traffic=load_traffic(None, limit=1, rate=None),
        presets=("dual-hash",),
        profile=builtin_profile("910b4"),
        engines=2,
        objectives=SloTargets(),
        speed=3.0,
        light_rate=1.0,
        folder=tmp_path,
    )
    lines: list[str] = []
    _, speed = comparison._measure_valid("dual-hash", 3.0, PromptBuilder(Tokenizer()), lines.append)
    assert (tried, speed) == (speeds, speeds[-1])
    assert len(lines) == len(speeds) - 1
    assert all("the machine is busy" in line for line in lines)


def test_failed_stack_start_shows_last_output_lines(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="kind"), MeasuredStack(stack_options(tmp_path, manifest="kind: Nothing\n")):
        pass


def test_process_that_outlives_its_stack_is_killed_and_reported() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        processes = {entry for entry in _descendants(os.getpid()) if entry[0] == process.pid}
        assert _kill_survivors(processes, patience_seconds=0.0) == {process.pid}
        assert process.wait() == -signal.SIGKILL
    assert _kill_survivors(processes, patience_seconds=0.0) == set()


def test_ps_output_is_parsed_without_zombies() -> None:
    lines = ["  1     0 Ss   Thu Jan  1 00:00:01 2026", " 20     1 Z    Thu Jan  1 00:00:02 2026", "garbage"]
    assert _parse_ps(lines) == {1: (0, "Thu Jan  1 00:00:01 2026")}


FLEET = """\
models:
  - name: one
    routing: {preset: round-robin}
    instances: [{url: "http://127.0.0.1:9001", profile: 910b4}, {url: "http://127.0.0.1:9002", state: Draining}]
"""
URL = "http://127.0.0.1:1"


def fleet_file(tmp_path: Path, text: str = FLEET) -> Path:
    file = tmp_path / "fleet.yaml"
    file.write_text(text)
    return file


def test_only_model_of_a_fleet_file_is_chosen_with_ready_instances(tmp_path: Path) -> None:
    gateway = find_gateway(url=URL, manage=None, fleet_file=fleet_file(tmp_path), model=None)
    assert gateway.model == "default/one"
    assert [instance.url for instance in gateway.instances] == ["http://127.0.0.1:9001"]
    assert gateway.fleet_model is not None
    assert gateway.fleet_model.routing.preset == "round-robin"


def test_model_is_required_without_a_fleet_file() -> None:
    assert find_gateway(url=URL, manage="http://127.0.0.1:2", fleet_file=None, model="m").instances == ()
    with pytest.raises(BadInput, match="the model to query"):
        find_gateway(url=URL, manage=None, fleet_file=None, model=None)


def test_unknown_model_error_lists_known_models(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="default/one"):
        find_gateway(url=URL, manage=None, fleet_file=fleet_file(tmp_path), model="two")


def test_unreadable_fleet_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        find_gateway(url=URL, manage=None, fleet_file=tmp_path / "none.yaml", model=None)


def test_traffic_name_is_trace_or_generated(tmp_path: Path) -> None:
    generated = load_traffic(None, limit=20, rate=6.5, seed=3)
    assert generated.name == "generated conversations (seed 3)"
    assert generated.requests[-1].arrival == pytest.approx(19 / 6.5)
    file = tmp_path / "hour.jsonl"
    lines = (
        f'{{"timestamp": {1000 * second}, "input_length": 5, "output_length": 2, "hash_ids": [0]}}'
        for second in (0, 0, 2)
    )
    file.write_text("\n".join(lines))
    recorded = load_traffic(file, limit=None, rate=None)
    assert recorded.name == "hour.jsonl"
    assert [request.arrival for request in recorded.requests] == [0.0, 1.0, 2.0]
    assert recorded.rate == pytest.approx(1.0)


@pytest.mark.parametrize(("limit", "rate"), [(0, None), (5, 0.0), (5, -1.0)])
def test_zero_requests_and_zero_rate_are_refused(limit: int, rate: float | None) -> None:
    with pytest.raises(BadInput):
        load_traffic(None, limit=limit, rate=rate)


def test_unreachable_gateway_is_a_one_line_error() -> None:
    done = run_program("replay", "--url", URL, "--model", "m", "--limit", "2")
    assert done.returncode == 2
    assert "nothing answers at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
