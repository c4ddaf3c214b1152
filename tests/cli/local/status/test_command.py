"""`fairlead local status` as a command: what it prints and how it exits."""

import io
import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from msgspec import structs
from rich.console import Console

from fairlead import management_api as api
from fairlead_autoscaler.core import ModelSpec, Observation, PoolSpec, ScalingPlan
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.scaling_policy import EnforcedPlan
from fairlead_cli.formatting import short_instance_name
from fairlead_cli.local.run_directory import RunningStack, make_run_directory, write_stack_file
from fairlead_cli.local.status.command import StackReport, build_report, render_tree, to_plain
from fairlead_cli.management.client import GatewaySnapshot
from fairlead_cli.output import format_document
from fairlead_cli.scaling.autoscaler_client import PoolScaling
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

KEY = "default/tiny"


def management(*states: str, stats: api.ModelStatsOut | None = None, models: int = 1) -> CannedServer:
    choice = api.ChoiceOut(instance="main-0/4000/0", rule="affinity", reason="a home")
    decision = api.DecisionOut(request_id="req-1", model=KEY, prompt_tokens=10.0, choices=[choice])
    (model,) = snapshot(*states).fleet.models
    served = [structs.replace(model, key=f"ns{n}/tiny" if n else KEY) for n in range(models)]
    bodies = {
        "/api/fleet": api.FleetOut(version=1, models=served),
        "/api/stats": api.StatsOut(ready=True, uptime_seconds=5.0, models={KEY: stats or api.ModelStatsOut()}),
        "/api/decisions": api.DecisionsOut(decisions=[decision]),
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
    assert short_instance_name("main-3/40123/0") == "main-3"
    assert short_instance_name("127.0.0.1/9001/0") == "127.0.0.1:9001"
    assert short_instance_name("::1/9001/0") == "[::1]:9001"
    assert short_instance_name("gpu.example/8000/1") == "gpu.example:8000/1"
    assert short_instance_name("0a1b2c3d-pod/8000/1") == "0a1b2c3d-pod/1"
    assert short_instance_name("mine") == "mine"


def test_management_token_from_environment_is_sent() -> None:
    with management("Ready") as gateway:
        status("--manage", gateway.url, FAIRLEAD_MANAGE_TOKEN="secret")
        sent = {name.lower(): value for name, value in gateway.requests[0].headers.items()}
    assert sent["authorization"] == "Bearer secret"


def snapshot(
    *states: str, window: api.SliceOut | None = None, decisions: tuple[api.DecisionOut, ...] = (), ready: bool = True
) -> GatewaySnapshot:
    instances = [
        api.InstanceOut(id=f"main-{n}/400{n}/0", url=f"http://h:400{n}", state=state, in_flight=1, backlog_seconds=0.2)
        for n, state in enumerate(states)
    ]
    model = api.ModelOut(
        key=KEY,
        namespace="default",
        name="tiny",
        preset="dual-hash",
        objectives=api.ObjectivesOut(ttft_seconds=2.0),
        instances=instances,
    )
    numbers = api.ModelStatsOut(in_flight=1, window=window or api.SliceOut(), totals=window or api.SliceOut())
    stats = api.StatsOut(
        ready=ready, notes=[] if ready else ["no engine is ready"], uptime_seconds=60.0, models={KEY: numbers}
    )
    return GatewaySnapshot(api.FleetOut(version=3, models=[model]), stats, api.DecisionsOut(decisions=list(decisions)))


def make_report(gateway_state: GatewaySnapshot, expected_instances: int | None = None) -> StackReport:
    return build_report(
        gateway_state,
        url="http://g",
        manage="http://m",
        expected_instances={} if expected_instances is None else {KEY: expected_instances},
    )


def text(report: StackReport, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render_tree(report))
    return out.getvalue()


BUSY = api.SliceOut(requests=100, requests_per_second=1.6, within_objective=0.99, cached_token_share=0.43)


@pytest.mark.parametrize(
    ("gateway_state", "expected_instances", "problem", "advice"),
    [
        (snapshot("Ready", "Ready", window=BUSY), 2, False, "nothing to do"),
        (snapshot("Ready"), None, False, "nothing to do"),
        (snapshot("Ready", "Starting", window=BUSY), 2, False, "1 engine starting"),
        (snapshot("Starting", "Starting"), 2, True, "2 engines starting; requests wait until one is ready"),
        (snapshot(), 2, True, "no engine is running"),
        (snapshot("Ready", window=BUSY), 2, True, "1 of 2 engines ended and will be started again"),
        (snapshot("Ready", window=api.SliceOut(requests=9, errors=2)), 1, True, "2 of 9 requests failed"),
        (snapshot("Ready", window=api.SliceOut(requests=9, within_objective=0.5)), 1, True, "50 % of requests meet"),
    ],
)
def test_advice_names_the_most_urgent_problem(
    gateway_state: GatewaySnapshot, expected_instances: int | None, problem: bool, advice: str
) -> None:
    report = make_report(gateway_state, expected_instances)
    assert report.has_problem is problem
    assert report.models[0].advice.text.startswith(advice)
    assert f"next: {advice}" in text(report)


def test_advice_on_failures_names_the_command_that_explains_one() -> None:
    window = api.SliceOut(requests=9, errors=2)
    refused = api.DecisionOut(request_id="req-1", model=KEY, outcome=api.OutcomeOut(status=400, error="engine-refused"))
    broken = api.DecisionOut(request_id="req-2", model=KEY, outcome=api.OutcomeOut(status=200, error="timeout"))
    failed = api.DecisionOut(
        request_id="req-3", model=KEY, outcome=api.OutcomeOut(status=502, error="engines_broke_off")
    )
    for decisions, which in (
        ((refused, broken, failed), "req-2"),
        ((refused, failed), "req-3"),
        ((refused,), "ID (an answer's header x-fairlead-decision)"),
    ):
        report = make_report(snapshot("Ready", window=window, decisions=decisions), 1)
        assert report.models[0].advice.text == (
            f"2 of 9 requests failed in the last minute: fairlead explain request {which}"
        )


def test_scaled_pool_shows_its_target_and_may_sleep() -> None:
    scaling = {KEY: [PoolScaling("main", 0, 0, 4, "zero", "silent for longer than idling is worth")]}
    report = build_report(
        snapshot(), url="http://g", manage="http://m", expected_instances={}, scaling_by_model=scaling
    )
    assert not report.has_problem
    assert report.models[0].advice.text == "it has no engine: the next request waits while one starts"
    assert "autoscaler wants 0 of main, of 0 to 4  zero  silent for longer" in text(report)


@pytest.mark.parametrize(
    ("wanted", "unwritten", "advice"),
    [
        (2, None, "the autoscaler is adding engines"),
        (4, None, "raise maxReplicas"),
        (1, None, "the autoscaler considers the present engines enough (`fairlead explain scaling tiny` says why)"),
        (3, "the mode is Advise", "the autoscaler wants 3 of main, which is not applied: the mode is Advise"),
    ],
)
def test_missed_slo_of_a_scaled_pool_has_its_own_advice(wanted: int, unwritten: str | None, advice: str) -> None:
    slow = snapshot("Ready", window=api.SliceOut(requests=9, within_objective=0.5))
    scaling = {KEY: [PoolScaling("main", wanted, 0, 4, "up", "2.1 are needed", unwritten)]}
    report = build_report(slow, url="http://g", manage="http://m", expected_instances={}, scaling_by_model=scaling)
    assert advice in report.models[0].advice.text
    assert ("not done: the mode is Advise" in text(report)) is (unwritten is not None)


def test_sleeping_engines_are_counted_and_no_warning() -> None:
    scaling = {KEY: [PoolScaling("main", 1, 0, 4, "enough", "0.40 are needed", None, 1)]}
    output = text(
        build_report(
            snapshot("Ready", "Sleeping"),
            url="http://g",
            manage="http://m",
            expected_instances={},
            scaling_by_model=scaling,
        )
    )
    assert "tiny  dual-hash  1/1 ready, 1 asleep" in output
    assert "pool main  1/1 ready, 1 asleep" in output
    assert "☾ main-1  Sleeping  http://h:4001" in output
    assert "autoscaler wants 1 and 1 asleep of main, of 0 to 4" in output
    assert "‼" not in output


def test_idle_stack_advice_names_the_chat_command() -> None:
    stats = api.StatsOut(ready=True, models={KEY: api.ModelStatsOut()})
    report = make_report(replace(snapshot("Ready"), stats=stats), 1)
    assert report.models[0].advice.text == "nothing was asked yet: fairlead chat tiny"


def test_gateway_not_ready_is_a_problem_with_reason() -> None:
    report = make_report(snapshot("Ready", ready=False), 1)
    assert report.has_problem
    assert "no engine is ready" in text(report)


def test_tree_shows_pools_instances_and_decisions() -> None:
    choice = api.ChoiceOut(instance="main-0/4000/0", rule="affinity", reason="a home", cost_seconds=0.1)
    decision = api.DecisionOut(
        request_id="req-7",
        model=KEY,
        prompt_tokens=4_096.0,
        choices=[choice],
        outcome=api.OutcomeOut(status=200, ttft_seconds=0.2),
    )
    lines = text(make_report(snapshot("Ready", "Draining", window=BUSY, decisions=(decision,)), 2)).splitlines()
    assert any("tiny  dual-hash  1/2 ready" in line for line in lines)
    assert any("hit rate 43 %" in line for line in lines)
    assert any("√ main-0  Ready  1 in flight" in line for line in lines)
    assert any("‼ main-1  Draining" in line for line in lines)
    assert any("4.1k tokens → main-0  affinity  TTFT 200ms  a home" in line for line in lines)


def test_json_is_complete_with_null_for_unknown() -> None:
    report = json.loads(format_document(to_plain(make_report(snapshot("Ready", window=BUSY), 1)), "json"))
    assert report["problem"] is False
    (model,) = report["models"]
    assert model["key"] == KEY
    assert model["next"] == "nothing to do"
    assert model["last_minute"]["cached_token_share"] == 0.43
    assert model["last_minute"]["share_on_homes"] is None
    assert model["pools"][0]["instances"][0]["id"] == "main-0/4000/0"


def test_report_can_be_limited_to_one_model() -> None:
    gateway_state = snapshot("Ready")
    assert (
        build_report(gateway_state, url=None, manage="m", expected_instances={}, only_key="default/other").models == ()
    )
