"""Lint of pod templates: what the API server would refuse in pods, and what pods share."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from fairlead.errors import FileProblem
from fairlead.limits import Limits
from fairlead.manifests.lint import lint_template
from fairlead.manifests.loader import combine_texts

MODEL: Mapping[str, Any] = {
    "apiVersion": "serving.fairlead.io/v1alpha1",
    "kind": "ModelDeployment",
    "metadata": {"name": "house"},
}
POOL: Mapping[str, Any] = {"name": "main", "acceleratorClassName": "nvidia-h100"}


def lint(*documents: Mapping[str, Any]) -> tuple[list[FileProblem], list[FileProblem]]:
    """Returns the notes and the problems."""
    combined, problems = combine_texts([("m.yaml", yaml.safe_dump_all(documents))], limits=Limits())
    return list(combined.notes), problems


def model(pool: Mapping[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    source = {"model": {"uri": "hf://Qwen/Qwen3-8B"}, "pools": [{**POOL, **(pool or {})}]}
    return {**MODEL, "spec": source | spec}


@pytest.mark.parametrize(
    ("template", "path", "fix"),
    [
        ({"nodeselector": {"a": "b"}}, "nodeselector", "did you mean nodeSelector?"),
        ({"toleration": []}, "toleration", "did you mean tolerations?"),
        ({"tolerations": [{"operator": "Exist"}]}, "tolerations[0].operator", "did you mean Exists?"),
        ({"tolerations": [{"effect": "NoScheduled"}]}, "tolerations[0].effect", "did you mean NoSchedule?"),
        ({"tolerations": {"operator": "Exists"}}, "tolerations", "write each item with - before it"),
        ({"nodeSelector": {"gpu": True}}, "nodeSelector.gpu", "put it in quotes"),
        ({"hostNetwork": "true"}, "hostNetwork", "write one of the two, without quotes"),
        ({"priority": True}, "priority", "write it without quotes"),
        ({"securityContext": {"runAsUsr": 1}}, "securityContext.runAsUsr", "did you mean runAsUser?"),
        ({"containers": [{"name": "vllm"}]}, "containers[0]", "add image, or write `name: engine`"),
        ({"initContainers": [{"name": "engine"}]}, "initContainers[0]", "add image, or write `name: engine`"),
        (
            {"containers": [{"name": "engine", "resources": {"limits": {"memory": "64Gb"}}}]},
            "containers[0].resources.limits.memory",
            "write it like 64Gi or 500m",
        ),
        (
            {"containers": [{"name": "engine", "volumeMount": []}]},
            "containers[0].volumeMount",
            "did you mean volumeMounts?",
        ),
        (
            {"containers": [{"name": "engine", "env": [{"name": "A", "value": 1}]}]},
            "containers[0].env[0].value",
            "put it in quotes",
        ),
        (
            {"affinity": {"nodeAffinity": {"requiredDuringScheduling": {}}}},
            "affinity.nodeAffinity.requiredDuringScheduling",
            "did you mean requiredDuringSchedulingIgnoredDuringExecution?",
        ),
    ],
)
def test_template_that_pods_would_be_refused_for_is_a_problem(template: dict[str, Any], path: str, fix: str) -> None:
    _, (problem,) = lint(model({"template": {"spec": template}}))
    assert (problem.field, problem.fix) == (f"spec.pools[0].template.spec.{path}", fix)


@pytest.mark.parametrize(
    "template",
    [
        {"priorityClassName": "high", "hostUsers": False, "nodeSelector": {"gpu": "true"}},
        {"securityContext": {"runAsUser": None}, "volumes": None},
        {"containers": [{"name": "sidecar", "$patch": "delete"}, {"name": "log", "image": "a:1"}]},
        {"containers": [{"name": "engine", "resources": {"limits": {"memory": "64Gi", "cpu": 4, "x.io/y": "1e3"}}}]},
        {
            "volumes": [
                {"name": "a", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}
            ]
        },
        {"containers": [{"name": "engine", "startupProbe": {"httpGet": {"port": "http"}, "failureThreshold": 9}}]},
    ],
)
def test_template_of_known_fields_has_no_findings(template: dict[str, Any]) -> None:
    assert list(lint_template(template)) == []
    assert lint(model({"template": {"spec": template}})) == ([], [])


@pytest.mark.parametrize("adapters", [None, {}, {"download": {}}])
def test_downloader_of_adapters_needs_no_image_where_there_is_one(adapters: dict[str, Any] | None) -> None:
    template = {"spec": {"initContainers": [{"name": "adapter-downloader", "resources": {"limits": {"cpu": 1}}}]}}
    notes, problems = lint(model({"template": template}, adapters=adapters))
    assert notes == []
    assert [problem.message for problem in problems] == (
        [] if adapters else ['"adapter-downloader" has no image, and Fairlead\'s own is called engine']
    )


def test_field_of_a_newer_kubernetes_is_a_note() -> None:
    (note,), problems = lint(model({"template": {"spec": {"quantumGate": {"a": [1]}}}}))
    assert problems == []
    assert note.message == "note: unknown field of a PodSpec"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--disable-log-requests"], "VLLM 0.32.0 has no flag --disable-log-requests"),
        (["--num-scheduler-steps=10"], "VLLM 0.32.0 has no flag --num-scheduler-steps"),
        (["--num_scheduler_steps", "10"], "VLLM 0.32.0 has no flag --num-scheduler-steps"),
        (["--enable-chunked-prefill=false"], "--enable-chunked-prefill takes no value: --enable-chunked-prefill turns"),
        (["--enable-chunked-prefill", "True"], "--enable-chunked-prefill takes no value"),
        (["--max-model-len=4096", "--no-enable-chunked-prefill", "--compilation-config.mode=3", "-cc.mode=3"], ""),
        (["--max-num-seq=8", "--speculative-config", "{}", "--trust-remote-code"], ""),
    ],
)
def test_flag_that_the_engine_does_not_know_is_a_note(arguments: list[str], problem: str) -> None:
    engine = {"args": arguments}
    notes, _ = lint(model(engine=engine))
    assert [note.message.partition(": ")[2][: len(problem)] for note in notes] == ([problem] if problem else [])
    newest = lint(model(engine=engine | {"image": "vllm/vllm-openai:v0.32.0"}))
    assert len(newest[0]) == len(notes)
    for image in ("vllm/vllm-openai:v0.9.0", "registry.example.com/engine:1"):
        assert lint(model(engine=engine | {"image": image})) == ([], [])


@pytest.mark.parametrize(
    ("accelerator", "engine", "noted"),
    [
        ("amd-mi300x", {}, "built for NVIDIA's GPUs, and amd-mi300x is for amd.com/gpu"),
        ("cpu", {}, "and cpu requests no device"),
        ("google-tpu-v5e", {"type": "SGLang"}, "google-tpu-v5e is for google.com/tpu"),
        ("nvidia-l4", {}, ""),
        ("mig", {}, ""),
        ("amd-mi300x", {"image": "rocm/vllm:1"}, ""),
        ("cpu", {"type": "Sim"}, ""),
    ],
)
def test_image_that_is_not_built_for_the_accelerator_is_a_note(
    accelerator: str, engine: dict[str, str], noted: str
) -> None:
    slice_class = {
        "apiVersion": MODEL["apiVersion"],
        "kind": "AcceleratorClass",
        "metadata": {"name": "mig"},
        "spec": {"resource": "nvidia.com/mig-1g.10gb", "profile": {"preset": "h100-llama8b"}},
    }
    notes, problems = lint(slice_class, model({"acceleratorClassName": accelerator}, engine=engine))
    assert problems == []
    assert [noted in note.message for note in notes] == ([True] if noted else [])


CLAIM: Mapping[str, Any] = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "weights"}}
VOLUME: Mapping[str, Any] = {"name": "w", "persistentVolumeClaim": {"claimName": "weights"}}


@pytest.mark.parametrize(
    ("pool", "spec"),
    [
        ({"minReplicas": 3}, {"model": {"uri": "pvc:weights/qwen"}}),
        ({"maxReplicas": 2}, {"model": {"uri": "hf://Qwen/Qwen3-8B", "cache": {"claimName": "weights"}}}),
        ({"minReplicas": 2}, {"adapters": {"claimNames": ["weights"]}}),
        ({"minReplicas": 2, "template": {"spec": {"volumes": [VOLUME]}}}, {}),
    ],
)
def test_claim_for_one_node_that_several_pods_mount_is_a_note(pool: dict[str, Any], spec: dict[str, Any]) -> None:
    shared = model(pool, **spec)
    for modes, count in ((["ReadWriteOnce"], 1), (["ReadWriteOncePod"], 1), (["ReadWriteOnce", "ReadWriteMany"], 0)):
        notes, problems = lint({**CLAIM, "spec": {"accessModes": modes}}, shared)
        node_notes = [note for note in notes if "is for one node" in note.message]
        assert (len(node_notes), problems) == (count, [])
    once = {**CLAIM, "spec": {"accessModes": ["ReadWriteOnce"]}}
    alone = model({**pool, "minReplicas": 1, "maxReplicas": 1}, **spec)
    elsewhere = {**once, "metadata": {"name": "weights", "namespace": "other"}}
    for documents in ((once, alone), (elsewhere, shared)):
        assert not [note for note in lint(*documents)[0] if "is for one node" in note.message]


def test_items_of_a_list_are_checked() -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": [model({"minReplica": 3}), model()]}
    _, problems = lint(json.loads(json.dumps(listed)))
    assert [problem.fix for problem in problems] == ["did you mean minReplicas?", "remove one or rename it"]
