"""KServe: templates of its configurations, extra arguments, its own runtime and Knative."""

from typing import Any

import pytest

from fairlead_cli.manifest_conversion import Migration, migrate
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_cli.migration.field_reader import Outcome
from fairlead_testing.yaml_documents import load_documents

CONFIG = """
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceServiceConfig
metadata: {name: common}
spec:
  template:
    containers:
      - name: main
        image: vllm/vllm-openai:v0.32.0
        command: [/bin/sh, -c]
        args:
          - vllm serve /mnt/models --served-model-name "{{ .Spec.Model.Name }}" --block-size 64 $VLLM_ADDITIONAL_ARGS
        env:
          - {name: KV_EVENTS_CONFIG, value: "{{ ChildName .ObjectMeta.Name `-epp` }}"}
          - {name: OWNER, value: "{{ .ObjectMeta.Name }}.{{ .ObjectMeta.Namespace }}"}
          - {name: PEER, value: "{{ ChildName .ObjectMeta.Name `-peer` }}"}
"""
SERVICE = """
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata: {name: qwen, namespace: chat}
spec:
  model: {uri: "hf://a/b", name: a/b}
  baseRefs: [{name: common}]
  template:
    nodeSelector: {gpu: A100}
    containers:
      - name: main
        env: [{name: VLLM_ADDITIONAL_ARGS, value: "WORDS"}]
"""
PREDICTOR = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: llama, annotations: {serving.kserve.io/deploymentMode: MODE}}
spec:
  predictor:
    minReplicas: 0
    model:
      modelFormat: {name: huggingface}
      runtime: kserve-huggingfaceserver
      args: [--model_name=llama, --enable_prefix_caching]
      storageUri: hf://a/b
      resources: {limits: {nvidia.com/gpu: "1"}}
"""


def convert(text: str, *, external: bool = False) -> Migration:
    documents: list[dict[str, Any]] = list(load_documents(text))
    return migrate([("f.yaml", document) for document in documents], MigrationOptions("nvidia-a100", external))


def said(migration: Migration) -> str:
    return "\n".join(note.describe() for note in migration.notes)


def test_templates_are_filled_in_or_noted() -> None:
    migration = convert(f"{CONFIG}---{SERVICE.replace('WORDS', '--max-model-len 8192')}")
    [manifest] = migration.manifests
    engine = manifest["spec"]["engine"]
    assert engine["env"] == [{"name": "OWNER", "value": "qwen.chat"}]
    assert engine["args"] == ["--block-size", "64", "--max-model-len", "8192"]
    assert manifest["spec"]["model"]["servedNames"] == ["a/b"]
    notes = said(migration)
    assert "KV_EVENTS_CONFIG: Fairlead sets --kv-events-config itself" in notes
    assert "PEER: KServe fills it in" in notes


def test_extra_arguments_are_carried_over_or_noted() -> None:
    words = "--kv-events-config x --api-key k --enable-lora --max-loras 3 --revision v2 --served-model-name other -tp 2"
    migration = convert(f"{CONFIG}---{SERVICE.replace('WORDS', words)}")
    [manifest] = migration.manifests
    spec = manifest["spec"]
    assert spec["engine"]["args"] == ["--block-size", "64"]
    assert (spec["adapters"], spec["model"]["revision"]) == ({"slots": 3}, "v2")
    assert spec["pools"][0]["parallelism"] == {"tensor": 2}
    notes = said(migration)
    for flag in ("--kv-events-config", "--api-key", "--served-model-name"):
        assert f"not carried over: {flag}: " in notes


def test_templates_of_a_service_without_configurations_are_filled_in() -> None:
    migration = convert(SERVICE.replace("WORDS", "--tokenizer '{{ .ObjectMeta.Name }}'").replace("{name: common}", ""))
    [manifest] = migration.manifests
    assert manifest["spec"]["engine"]["args"] == ["--tokenizer", "qwen"]
    assert "KServe fills it in" not in said(migration)


SPREAD = """
apiVersion: serving.kserve.io/v1alpha1
kind: LLMInferenceService
metadata: {name: spread}
spec:
  model: {uri: "pvc://models/a", name: a}
  parallelism: PARALLELISM
  template: {containers: [{name: main, image: "vllm/vllm-openai:v0.32.0", resources: {limits: {nvidia.com/gpu: "1"}}}]}
"""
WORKER = "  worker: {containers: [{name: main}]}"


@pytest.mark.parametrize(
    ("parallelism", "nodes"),
    [
        ("{tensor: 2, data: 1, dataLocal: 1}", 2),
        ("{tensor: 4}", 4),
        ("{tensor: 2, pipeline: 2}", 4),
        ("{data: 4, dataLocal: 1}", 4),
    ],
)
def test_workers_are_as_many_nodes_as_the_devices_of_a_pod_need(parallelism: str, nodes: int) -> None:
    migration = convert(SPREAD.replace("PARALLELISM", parallelism) + WORKER)
    assert migration.manifests[0]["spec"]["pools"][0]["parallelism"]["nodes"] == nodes
    assert "requested" not in said(migration)


def test_more_devices_than_the_pod_requested_are_noted() -> None:
    migration = convert(SPREAD.replace("PARALLELISM", "{tensor: 2, data: 1, dataLocal: 1}"))
    assert migration.manifests[0]["spec"]["pools"][0]["parallelism"] == {"tensor": 2}
    assert "a pod requested 1 device; with Fairlead an instance gets 2, one for each rank" in said(migration)


def test_key_in_extra_arguments_is_noted_for_an_external_model() -> None:
    migration = convert(SERVICE.replace("WORDS", "--api-key k"), external=True)
    assert "refuse requests without --api-key" in said(migration)


def test_missing_image_is_noted() -> None:
    assert "it names no image: the chart's runs, engines.images.vllm" in said(convert(SERVICE))


def test_runtime_of_kserve_and_flags_are_noted_once() -> None:
    notes = said(convert(PREDICTOR))
    assert "kserve-huggingfaceserver is KServe's own: vLLM itself runs in its place" in notes
    assert notes.count("--enable-prefix-caching") == 1


@pytest.mark.parametrize(("mode", "warned"), [("Serverless", True), ("Knative", True), ("Standard", False)])
def test_external_predictor_names_what_to_do_first(mode: str, warned: bool) -> None:
    migration = convert(PREDICTOR.replace("MODE", mode), external=True)
    assert {note.outcome for note in migration.notes} == {Outcome.REQUIRED}
    assert "before you apply the output: its OpenAI paths begin with /openai/v1" in said(migration)
    assert ("removes busy pods: set minReplicas" in said(migration)) == warned


@pytest.mark.parametrize(
    ("uri", "source"),
    [("hf://a/b", "hf://a/b"), ("pvc://disk/lora", "pvc:disk/lora"), ("s3://bucket/lora", "s3://bucket/lora")],
)
def test_adapters_become_objects(uri: str, source: str) -> None:
    lora = f"lora: {{maxRank: 32, adapters: [{{name: sql, uri: '{uri}'}}]}}"
    migration = convert(SERVICE.replace("WORDS", "").replace("name: a/b", f"name: a/b, {lora}"))
    model, adapter = migration.manifests
    assert (model["spec"]["adapters"]["slots"], model["spec"]["adapters"]["maxRank"]) == (1, 32)
    assert model["spec"]["adapters"].get("claimNames", []) == (["disk"] if source.startswith("pvc") else [])
    assert adapter["spec"] == {"base": model["metadata"]["name"], "source": source, "servedNames": ["sql"]}


def test_devices_that_kserve_claims_by_annotations_are_noted() -> None:
    text = SERVICE.replace("WORDS", "").replace("    nodeSelector: {gpu: A100}\n", "")
    claimed = text.replace("namespace: chat", "annotations: {serving.kserve.io/exp-dra-device-count: '2'}")
    reason = "the pods had serving.kserve.io/exp-dra-device-count, and pods of nvidia-a100 request nvidia.com/gpu"
    assert f"before you apply the output: {reason}" in said(convert(claimed))


def test_flags_of_one_role_are_those_of_its_pool() -> None:
    """A prefill pool batches few requests, and a decode pool many."""

    def role(text: str) -> dict[str, Any]:
        variable = {"name": "VLLM_ADDITIONAL_ARGS", "value": text}
        container = {"name": "main", "image": "vllm/vllm-openai:v0.32.0", "env": [variable]}
        return {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H200"}, "containers": [container]}

    decode = "--max-num-seqs 128 --dtype bfloat16 --enforce-eager"
    prefill = "--dtype bfloat16 --max-num-seqs 16 --max-num-batched-tokens=32768"
    spec = {
        "model": {"uri": "hf://a/b", "name": "a/b"},
        "template": role(decode),
        "prefill": {"template": role(prefill)},
    }
    service = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": "split"},
        "spec": spec,
    }
    migration = migrate([("f.yaml", service)], MigrationOptions())
    fields = migration.manifests[0]["spec"]
    assert fields["engine"]["args"] == ["--dtype", "bfloat16"]
    assert [pool["args"] for pool in fields["pools"]] == [
        ["--max-num-seqs", "128", "--enforce-eager"],
        ["--max-num-seqs", "16", "--max-num-batched-tokens=32768"],
    ]
    assert not [note for note in migration.notes if "--max-num-seqs" in note.reason]
