"""A model's report: pods in their pools, signals at their pods, and no number for an unknown."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from rich.console import Console

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.pod_http import PodReport, Readiness, parse_metrics
from fairlead_cli.cluster.status.advice import advise
from fairlead_cli.cluster.status.command import render_table, render_tree, to_plain
from fairlead_cli.cluster.status.model_report import ModelFacts, build_report, signals_by_instance
from fairlead_cli.console import stdout_console
from fairlead_cli.output import format_document

NOW = 1_800_000_000.0
Build = Mapping[str, Callable[..., Any]]
ONE = '{model="chat/tiny",instance="u1/8000/0",pool="main"}'
PAGE = f"""# HELP fairlead_gateway_engine_running Requests in the batch.
fairlead_gateway_engine_running{ONE} 9
fairlead_gateway_engine_waiting{ONE} 1
fairlead_gateway_engine_kv_usage{ONE} 0.71
fairlead_gateway_engine_prefix_queries_total{ONE} 1000
fairlead_gateway_engine_prefix_hits_total{ONE} 880
fairlead_gateway_engine_signals_age_seconds{ONE} 1.5
fairlead_gateway_instance_in_flight{{model="chat/tiny",instance="u1/8000/0"}} 4
fairlead_gateway_instances{{model="chat/tiny",state="Ready"}} 1
fairlead_gateway_ttft_seconds_bucket{{model="chat/tiny",le="0.1"}} 3
"""


def pod(name: str, uid: str, *, ready: bool = True, **more: Any) -> Manifest:
    labels = {"fairlead.io/model": "tiny", "fairlead.io/pool": "main", "fairlead.io/endpoint": "true"}
    conditions = [{"type": "Ready", "status": str(ready), "message": ""}]
    metadata = {
        "name": name,
        "namespace": "chat",
        "uid": uid,
        "labels": labels,
        "creationTimestamp": "2027-01-15T07:00:00Z",
    }
    return {"metadata": metadata, "spec": {}, "status": {"phase": "Running", "conditions": conditions, **more}}


def shown(facts: ModelFacts) -> str:
    console = Console(width=400, highlight=False)
    with console.capture() as captured:
        console.print(render_tree(build_report(facts), advise(build_report(facts))), soft_wrap=True)
    return captured.get()


def pod_report(page: str, name: str = "g") -> PodReport:
    return PodReport(name, "fairlead", Readiness(True, []), parse_metrics(page))


def test_tree_has_pools_pods_signals_conditions_events_and_advice(builders: Build) -> None:
    broken = {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "x/y:z not found"}}}
    event = {
        "type": "Warning",
        "reason": "ImagePullFailed",
        "note": "Pod b waits",
        "eventTime": "2027-01-15T07:59:19.000000Z",
        "regarding": {"kind": "ModelDeployment", "name": "tiny"},
        "series": {"count": 3, "lastObservedTime": "2027-01-15T07:59:19.000000Z"},
    }
    stalled = ("True", "ImagePullFailed", "pod b: x/y:z not found")
    model = builders["model"](ready=False, Ready=("False", "ImagePullFailed", "pod b"), Stalled=stalled)
    pods = [pod("a", "u1"), pod("b", "u2", ready=False, containerStatuses=[broken])]
    text = shown(ModelFacts(model, pods, [event], [pod_report(PAGE)], NOW))
    assert text.splitlines()[0] == "× chat/tiny  0/1 ready  VLLM  hf://a/b  60m"
    assert "Stalled True  ImagePullFailed" in text
    assert "pool main  Serve  nvidia-l4  0/1 ready" in text
    assert "√ a  Ready  9 running, 1 waiting  KV 71 %  prefix hits 88 %" in text
    assert "× b  Starting  ImagePullBackOff: x/y:z not found" in text
    assert "what engines say: from 1 gateway, which routes to 1 instance" in text
    assert "41s  ImagePullFailed  Pod b waits  (3 times)" in text
    assert text.splitlines()[-1].startswith("next: check engine.image")


def test_failed_startup_probes_are_shown_until_the_pod_is_ready(builders: Build) -> None:
    event = {
        "type": "Warning",
        "reason": "Unhealthy",
        "note": "Startup probe failed: dial tcp: connection refused",
        "eventTime": "2027-01-15T07:59:19.000000Z",
        "regarding": {"kind": "Pod", "name": "a"},
    }
    for ready, count in ((True, 0), (False, 1)):
        facts = ModelFacts(builders["model"](), [pod("a", "u1", ready=ready)], [event], [pod_report(PAGE)], NOW)
        assert shown(facts).count("Startup probe failed") == count


def test_unknown_values_are_dashes_or_reasons_never_zeros(builders: Build) -> None:
    model = builders["model"]()
    silent = 'fairlead_gateway_engine_signals_age_seconds{model="chat/tiny",instance="u1/8000/0",pool="main"} 95\n'
    text = shown(ModelFacts(model, [pod("a", "u1")], MissingValue("no"), [pod_report(silent)], NOW))
    assert "a  Ready  – running, – waiting  KV –  prefix hits –  (1m35s old)" in text
    text = shown(ModelFacts(model, MissingValue("you may not list pods"), [], MissingValue("refused"), NOW))
    assert "pods: not to be had: you may not list pods" in text
    assert "what engines say: not to be had: refused" in text
    plain = to_plain(
        build_report(ModelFacts({**model, "status": {}}, [], [], [], NOW)),
        advise(build_report(ModelFacts(model, [], [], [], NOW))),
    )
    pool = json.loads(format_document(plain, "json"))["pools"][0]
    assert (pool["ready"], pool["desired"], pool["instances"]) == (None, None, [])


def test_sign_shows_serving_and_problems(builders: Build) -> None:
    starting = builders["model"](ready=False, Ready=("False", "Starting", ""))
    for model, sign in ((builders["model"](), "√"), (starting, "‼"), (builders["model"](ready=False), "×")):
        assert shown(ModelFacts(model, [], [], [pod_report(PAGE)], NOW)).startswith(f"{sign} chat/tiny")


def test_freshest_engine_signals_count_and_in_flight_adds_up() -> None:
    older = PAGE.replace("} 1.5\n", "} 30\n").replace("} 9\n", "} 1\n")
    (found,) = signals_by_instance([parse_metrics(older), parse_metrics(PAGE)], "chat/tiny").values()
    assert (found.running, found.age_seconds, found.in_flight) == (9.0, 1.5, 8.0)
    assert signals_by_instance([parse_metrics(PAGE)], "chat/other") == {}


def test_adopted_engines_are_listed_in_their_pool(builders: Build) -> None:
    model = builders["model"]()
    model["spec"]["pools"] = [{"name": "main", "endpoints": [{"url": "http://10.0.0.1:8000"}]}]
    page = PAGE.replace("u1/8000/0", "10.0.0.1/8000/0")
    (pool,) = build_report(ModelFacts(model, [], [], [pod_report(page)], NOW)).pools
    assert [(one.name, one.state) for one in pool.instances] == [("10.0.0.1/8000/0", "Routed")]


def test_model_table_has_kubectl_columns(builders: Build) -> None:
    lines = render_table([builders["model"](), builders["model"]("a-longer-name", ready=False)], NOW).splitlines()
    assert lines[0].split() == ["NAMESPACE", "NAME", "CLIENT-NAME", "ENGINE", "READY", "SLO-MET", "REASON", "AGE"]
    assert lines[2].split() == ["chat", "a-longer-name", "a-longer-name", "VLLM", "0/1", "NoInstance", "60m"]


def test_text_of_a_cluster_controls_no_terminal(builders: Build, capsys: pytest.CaptureFixture[str]) -> None:
    escape = "\x1b]0;title\x07\x1b[2J\x9b31m"
    broken = {"name": "engine", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": f"crash{escape}"}}}
    pods = (pod("p", "u1", ready=False, containerStatuses=[broken]),)
    condition = {"type": "Ready", "status": "False", "reason": "EngineCrashing", "message": f"why{escape}"}
    model = builders["model"]()
    model["status"] = {"conditions": [condition]}
    report = build_report(ModelFacts(model, pods, (), MissingValue(f"no{escape}"), NOW))
    stdout_console().print(render_tree(report, advise(report)))
    seen = capsys.readouterr().out
    assert "why\N{REPLACEMENT CHARACTER}]0;title" in seen
    assert "crash\N{REPLACEMENT CHARACTER}]0;title" in seen
    assert not set(seen) & {"\x1b", "\x07", "\x9b"}
