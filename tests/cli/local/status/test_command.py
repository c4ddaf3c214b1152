"""`fairlead local status` as a command: what it prints and how it exits."""

import json
import os
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from fairlead_autoscaler.core import ModelSpec, Observation, PoolSpec, ScalingPlan
from fairlead_autoscaler.enforcer import EnforcedPlan
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, write_stack_file
from fairlead_cli.management import api_types
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

KEY = "default/tiny"


def management(*states: str, stats: api_types.ModelStats | None = None, models: int = 1) -> CannedServer:
    instances = [
        api_types.Instance(f"main-{n}/400{n}/0", "main", "http://h:1", "sim", state) for n, state in enumerate(states)
    ]
    served = [
        api_types.Model(f"ns{n}/tiny" if n else KEY, "default", "tiny", "dual-hash", api_types.Objectives(), instances)
        for n in range(models)
    ]
    decision = api_types.Decision("req-1", KEY, 0.0, 10.0, [api_types.Choice(1, "main-0/4000/0", "affinity", "a home")])
    bodies = {
        "/api/fleet": api_types.Fleet(1, served),
        "/api/stats": api_types.GatewayStats(True, [], 5.0, {KEY: stats or api_types.ModelStats()}),
        "/api/decisions": api_types.DecisionList([decision]),
    }
    return CannedServer({path: CannedResponse([msgspec.json.encode(body)]) for path, body in bodies.items()})


def status(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_program("local", "status", *arguments, **{"KUBECONFIG": "", "HOME": "/nonexistent", **environment})


def test_healthy_stack_exits_0_and_shows_all_levels() -> None:
    with management("Ready") as gateway:
        done = status("--manage", gateway.url)
    assert done.returncode == 0, done.stderr
    assert "tiny  dual-hash  1/1 ready" in done.stdout
    assert "√ main-0  Ready" in done.stdout
    assert "→ main-0  affinity" in done.stdout
    assert re.search(r"^next: nothing was asked yet: \S*fairlead chat tiny$", done.stdout, re.MULTILINE)
    assert "\x1b" not in done.stdout


def test_problem_exits_1() -> None:
    with management("Starting") as gateway:
        done = status("tiny", "--manage", gateway.url, "-o", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["problem"] is True


def test_unknown_model_exits_2_with_a_suggestion() -> None:
    with management("Ready") as gateway:
        done = status("tinny", "--manage", gateway.url)
    assert done.returncode == 2
    assert "tiny" in done.stderr


def test_ambiguous_model_name_exits_2() -> None:
    with management("Ready", models=2) as gateway:
        done = status("tiny", "--manage", gateway.url)
        assert status(KEY, "--manage", gateway.url).returncode == 0
    assert done.returncode == 2
    assert "default/tiny, ns1/tiny" in done.stderr


def test_unreachable_gateway_exits_3(tmp_path: Path) -> None:
    assert status("--manage", "127.0.0.1:1").returncode == 3
    assert status(XDG_RUNTIME_DIR=str(tmp_path)).returncode == 3


@pytest.mark.parametrize(
    "answer",
    [
        CannedResponse([b"<html>"]),
        CannedResponse([b"{}"], 401),
        CannedResponse([b"{}"], 500),
        CannedResponse([b'{"models": 3}']),
    ],
)
def test_foreign_service_at_the_address_exits_3(answer: CannedResponse) -> None:
    with CannedServer({"/api/fleet": answer}) as other:
        assert status("--manage", other.url).returncode == 3


def test_running_stack_is_found_and_missing_engines_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with management("Ready") as gateway:
        write_stack_file(
            make_run_directory(), RunningStack(os.getpid(), "http://127.0.0.1:8000", gateway.url, 1.0, {KEY: 2})
        )
        done = status()
    assert done.returncode == 1
    assert "http://127.0.0.1:8000" in done.stdout
    assert "1 of 2 engines ended and will be started again" in done.stdout


def test_autoscaler_targets_and_its_errors_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    pool = PoolSpec("main", minimum=1, maximum=4)
    record = TickRecord(
        0.0,
        ModelSpec(KEY, None, None, (pool,)),
        Observation(0.0, None, {}),
        ScalingPlan(),
        {"main": EnforcedPlan(2, 1, "up", "1.40 are needed")},
    )
    page = msgspec.json.encode({"models": {KEY: record}})
    with management("Ready") as gateway, CannedServer({"/autoscaling": CannedResponse([page])}) as autoscaler:
        stack = RunningStack(os.getpid(), "http://127.0.0.1:8000", gateway.url, 1.0, autoscaler=autoscaler.url)
        write_stack_file(make_run_directory(), stack)
        assert "autoscaler wants 2 of main, of 1 to 4  up  1.40 are needed" in status().stdout
        (scaling,) = json.loads(status("-o", "json").stdout)["models"][0]["autoscaler"]
        assert (scaling["wanted"], scaling["rule"]) == (2, "up")
        autoscaler.responses.clear()
        assert "the autoscaler's decisions cannot be read" in status().stderr


def test_newest_of_several_stacks_is_shown_and_the_rest_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with management("Ready") as gateway:
        write_stack_file(make_run_directory(), RunningStack(os.getpid(), "http://old", "http://127.0.0.1:9", 1.0))
        write_stack_file(make_run_directory(), RunningStack(os.getpid(), "http://new", gateway.url, 2.0))
        done = status()
        assert status("--manage", gateway.url).stderr == ""
    assert "http://new" in done.stdout
    assert "others run too" in done.stderr
    assert "--manage http://127.0.0.1:9" in done.stderr


def test_engines_of_one_host_have_different_names() -> None:
    assert api_types.short_instance_name("main-3/40123/0") == "main-3"
    assert api_types.short_instance_name("127.0.0.1/9001/0") == "127.0.0.1:9001"
    assert api_types.short_instance_name("::1/9001/0") == "[::1]:9001"
    assert api_types.short_instance_name("gpu.example/8000/1") == "gpu.example:8000/1"
    assert api_types.short_instance_name("0a1b2c3d-pod/8000/1") == "0a1b2c3d-pod/1"
    assert api_types.short_instance_name("mine") == "mine"


def test_management_token_from_environment_is_sent() -> None:
    with management("Ready") as gateway:
        status("--manage", gateway.url, FAIRLEAD_MANAGE_TOKEN="secret")
        sent = {name.lower(): value for name, value in gateway.requests[0].headers.items()}
    assert sent["authorization"] == "Bearer secret"
