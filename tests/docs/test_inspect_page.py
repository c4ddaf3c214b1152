"""`docs/how-to/inspect-a-cluster.md`: the sample of a broken model is what the command prints, and
the commands have the options that the page says.
"""

import re
from pathlib import Path
from typing import Any

from rich.console import Console

from fairlead.kube.resources import Manifest
from fairlead_cli.app import VERBS, build_app
from fairlead_cli.cluster.pod_http import PodReport, Readiness, parse_metrics
from fairlead_cli.cluster.status.advice import advise
from fairlead_cli.cluster.status.command import render_tree
from fairlead_cli.cluster.status.model_report import ModelFacts, build_report
from fairlead_operator.status.diagnosis import diagnose
from fairlead_operator.status.model_status import PoolState, StatusInputs, model_status

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "inspect-a-cluster.md"
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
CREATED, CHANGED = "2027-01-07T08:00:00Z", "2027-01-15T07:59:19Z"
INSTANCE = '{model="chat/qwen3-8b",instance="u1/8000/0",pool="main"}'
METRICS = f"""fairlead_gateway_engine_running{INSTANCE} 9
fairlead_gateway_engine_waiting{INSTANCE} 1
fairlead_gateway_engine_kv_usage{INSTANCE} 0.71
fairlead_gateway_engine_prefix_queries_total{INSTANCE} 1000
fairlead_gateway_engine_prefix_hits_total{INSTANCE} 880
fairlead_gateway_engine_signals_age_seconds{INSTANCE} 1.5
fairlead_gateway_instances{{model="chat/qwen3-8b",state="Ready"}} 1
"""


def pod(name: str, uid: str, node: str, created: str, *, ready: bool, **status: Any) -> Manifest:
    labels = {"fairlead.io/model": "qwen3-8b", "fairlead.io/pool": "main", "fairlead.io/endpoint": "true"}
    metadata = {"name": name, "namespace": "chat", "uid": uid, "labels": labels, "creationTimestamp": created}
    conditions = [{"type": "Ready", "status": str(ready), "message": ""}]
    return {
        "metadata": metadata,
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }


def broken_model() -> ModelFacts:
    """A model of two replicas whose new image does not exist, with the operator's status of it."""
    container = {
        "name": "engine",
        "image": "vllm:v9",
        "state": {"waiting": {"reason": "ErrImagePull", "message": "manifest unknown"}},
    }
    pods = [
        pod("qwen3-8b-main-58d7-x2kd", "u1", "node-a", CREATED, ready=True),
        pod("qwen3-8b-main-6c9f-p0lm", "u2", "node-b", CHANGED, ready=False, containerStatuses=[container]),
    ]
    model: Manifest = {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen3-8b", "namespace": "chat", "generation": 2, "creationTimestamp": CREATED},
        "spec": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "engine": {"type": "VLLM"},
            "pools": [{"name": "main", "acceleratorClassName": "nvidia-l4", "minReplicas": 2}],
        },
    }
    pools = (PoolState("main", "Serve", desired=2, ready=1, updated=1, existing=2),)
    status = model_status(model, StatusInputs(pools, diagnose(pods, ())), 2, CHANGED)
    gateway = PodReport("gateway", "fairlead", Readiness(True, []), parse_metrics(METRICS))
    return ModelFacts({**model, "status": status}, pods, [], [gateway], NOW)


def test_sample_is_what_the_command_prints() -> None:
    report = build_report(broken_model())
    console = Console(width=400, highlight=False)
    with console.capture() as captured:
        console.print(render_tree(report, advise(report, "kubectl fairlead")), soft_wrap=True)
    printed = "\n".join(line.rstrip() for line in captured.get().strip().splitlines())
    assert f"```text\n{printed}\n```" in PAGE.read_text(encoding="utf-8")


def flags_of(words: str) -> set[str]:
    app = command = build_app()
    for word in words.split():
        command = command[word]
    arguments = command.assemble_argument_collection(default_parameter=app.default_parameter)
    return {name for argument in arguments for name in argument.names}


def test_each_option_is_one_of_the_commands_that_the_page_names() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("\n## Options\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    nouns = ("chat", "check", "explain", "index", "rollout", "status", "support-bundle", "version")
    flags = {words: flags_of(words) for words in VERBS if words.split()[0] in nouns}
    assert len(flags) == 18
    for names, _, commands in rows:
        quoted = re.findall("`([^`]+)`", commands)
        named = {words for words in flags for name in quoted if words == name or words.startswith(f"{name} ")}
        expected = flags.keys() - named if commands.startswith("all") else named
        for flag in re.findall("`([^`]+)`", names):
            assert {words for words in flags if flag in flags[words]} == expected, flag
