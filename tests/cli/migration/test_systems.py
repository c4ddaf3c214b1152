"""Manifests of other systems as ModelDeployments: valid, with a note for each field left behind."""

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead.manifests.loader import read_object
from fairlead_cli.migration.draft import MigrationOptions
from fairlead_cli.migration.field_reader import WHOLE_OBJECT, Note, Outcome
from fairlead_cli.migration.systems import Migration, migrate, system_of
from fairlead_testing.yaml_documents import load_documents

FOLDER = Path(__file__).parent / "manifests"
"""Manifests of other systems, written after their formats, beyond those of `docs/migrate`."""
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
H100 = MigrationOptions(accelerator="nvidia-h100")


def load(name: str) -> list[dict[str, Any]]:
    return list(load_documents((FOLDER / f"{name}.yaml").read_text(encoding="utf-8")))


def convert(name: str, options: MigrationOptions = H100) -> Migration:
    return migrate([("f.yaml", document) for document in load(name)], options)


def reasons(notes: tuple[Note, ...]) -> dict[str, str]:
    return {note.field: note.reason for note in notes}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("external", [False, True])
def test_output_is_valid(name: str, external: bool) -> None:
    migration = convert(name, MigrationOptions("nvidia-h100", external))
    assert migration.manifests
    for manifest in migration.manifests:
        read_object(manifest)
        is_model = manifest["kind"] == "ModelDeployment"
        assert not external or not is_model or manifest["spec"]["engine"] == {"type": "External"}


def mappings(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mappings(child, (*path, key))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_field_is_never_lost_in_silence(name: str) -> None:
    """A field that is added anywhere is in the output or in a note."""
    documents = load(name)
    checked = 0
    for number, document in enumerate(documents):
        for path in mappings(document):
            changed = copy.deepcopy(documents)
            holder = changed[number]
            for step in path:
                holder = holder[step]
            holder["zzNew"] = "zzValue"
            migration = migrate([("f.yaml", one) for one in changed], H100)
            said = [f"{note.field} {note.reason}" for note in migration.notes]
            covered = json.dumps(migration.manifests) + " ".join(said)
            if "zzNew" not in covered and not is_noted_above(path, migration.notes):
                pytest.fail(f"{path}: neither in the output nor in {said}")
            checked += 1
    assert checked > 5


def is_noted_above(path: tuple[Any, ...], notes: tuple[Note, ...]) -> bool:
    """Returns True if a note says that the whole of a field above was dropped, or a variable."""
    dropped = {re.sub(r"\[\d+\]", "", note.field) for note in notes if note.outcome is Outcome.DROPPED}
    above = [".".join(str(step) for step in path[:end] if isinstance(step, str)) for end in range(1, len(path) + 1)]
    return any(field in dropped for field in above)


def test_kserve_configuration_is_merged_and_both_roles_become_pools() -> None:
    migration = convert("kserve-disaggregated")
    [manifest] = migration.manifests
    spec = manifest["spec"]
    assert spec["model"] == {"uri": "pvc:weights/deepseek", "servedNames": ["deepseek-ai/DeepSeek-V3"]}
    assert spec["engine"]["image"] == "registry.example.com/vllm:1"
    assert spec["engine"]["env"] == [{"name": "LEVEL", "value": "DEBUG"}, {"name": "NCCL_DEBUG", "value": "WARN"}]
    assert spec["engine"]["args"] == ["--enable-expert-parallel"]
    decode, prefill = spec["pools"]
    assert (decode["name"], decode["role"], decode["minReplicas"], decode["maxReplicas"]) == ("decode", "Decode", 2, 6)
    assert decode["parallelism"] == {"data": 16, "nodes": 2}
    assert decode["template"]["metadata"] == {"annotations": {"k8s.v1.cni.cncf.io/networks": "roce"}}
    resources = decode["template"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": 64, "memory": "256Gi"}, "limits": {"rdma/roce_gdr": 1}}
    assert (prefill["role"], prefill["minReplicas"]) == ("Prefill", 3)
    env = prefill["template"]["spec"]["containers"][0]["env"]
    assert env == [{"name": "ONLY_PREFILL", "value": "1"}]
    assert spec["kvCache"] == {"offload": {"type": "Native", "memory": "10Gi"}, "transfer": "NIXL"}
    assert "adapters" not in spec
    assert spec["autoscaling"] == {"mode": "Auto"}
    assert spec["rollout"] == {"maxSurge": 1}
    said = reasons(migration.notes)
    assert "set spec.slo" in said["spec.scaling.wva"]
    assert any("models with Prefill and Decode pools serve no adapters" in note.reason for note in migration.notes)
    assert "spec.worker" in said


def test_configuration_that_is_missing_is_reported() -> None:
    service = load("kserve-disaggregated")[1]
    migration = migrate([("f.yaml", service)], H100)
    assert "large is not among the files" in reasons(migration.notes)["spec.baseRefs[0].name"]


def test_kserve_runtime_gives_image_and_arguments() -> None:
    [manifest] = convert("kserve-runtime", MigrationOptions()).manifests
    spec = manifest["spec"]
    assert spec["model"] == {"uri": "s3://models/mixtral", "servedNames": ["mixtral-8x7b"]}
    assert spec["engine"]["image"] == "vllm/vllm-openai:v0.32.0"
    assert spec["engine"]["args"] == ["--max-model-len=8192"]
    assert spec["engine"]["env"] == [{"name": "LEVEL", "value": "DEBUG"}]
    [pool] = spec["pools"]
    assert (pool["acceleratorClassName"], pool["parallelism"]) == ("nvidia-h100", {"tensor": 2})
    assert pool["template"]["spec"]["nodeSelector"] == {"gpu": "h100"}


def test_aibrix_role_sets_become_pools() -> None:
    migration = convert("aibrix-disaggregated")
    [manifest] = migration.manifests
    spec = manifest["spec"]
    assert spec["model"] == {"uri": "pvc:weights/Qwen3-8B", "servedNames": ["qwen3-8B"]}
    decode, prefill = spec["pools"]
    assert (decode["minReplicas"], decode["maxReplicas"], prefill["minReplicas"]) == (2, 9, 4)
    assert spec["kvCache"] == {"transfer": "Mooncake"}
    assert "adapters" not in spec
    said = reasons(migration.notes)
    assert said[WHOLE_OBJECT] == "models with Prefill and Decode pools serve no adapters"
    assert "routing: Fairlead's gateway" in said["spec.template.spec.roles[0]"]
    assert "2 role sets" in said["spec.template.spec.roles[1].replicas"]


def test_autoscaler_without_its_target_is_reported() -> None:
    documents = [load("kubeai-fixed")[0], load("aibrix-disaggregated")[1]]
    migration = migrate([("f.yaml", document) for document in documents], H100)
    assert "not among the files" in reasons(migration.notes)["spec.scaleTargetRef"]


def test_kubeai_fixed_number_and_adapters() -> None:
    migration = convert("kubeai-fixed", MigrationOptions())
    manifest, adapter, stored = migration.manifests
    [pool] = manifest["spec"]["pools"]
    assert (pool["acceleratorClassName"], pool["minReplicas"], "maxReplicas" in pool) == ("nvidia-h100", 3, False)
    assert manifest["spec"]["adapters"] == {"download": {}}
    assert "autoscaling" not in manifest["spec"]
    assert adapter["metadata"] == {"name": "phi-code"}
    assert adapter["spec"] == {"base": "phi", "source": "hf://a/b", "servedNames": ["phi_code"]}
    assert stored["spec"]["source"] == "s3://bucket/sql"
    assert "adapters.download.credentials" in reasons(migration.notes)["spec.adapters[1].url"]


def test_aibrix_adapters() -> None:
    migration = convert("aibrix-adapters", MigrationOptions())
    model, *adapters = migration.manifests
    assert model["spec"]["adapters"] == {"claimNames": ["weights"], "download": {}}
    assert model["spec"]["model"]["uri"] == "hf://meta-llama/Llama-3.1-8B-Instruct"
    assert [(one["metadata"], one["spec"]) for one in adapters] == [
        (
            {"name": "sql", "labels": {"team": "data"}},
            {"base": "llama-8b", "source": "pvc:weights/llms/lora/sql", "replicas": 1},
        ),
        ({"name": "legal-v2"}, {"base": "llama-8b", "source": "hf://acme/legal", "servedNames": ["legal.v2"]}),
        ({"name": "baked"}, {"base": "llama-8b", "source": "file:///opt/lora/baked"}),
        ({"name": "stored"}, {"base": "llama-8b", "source": "s3://bucket/x"}),
    ]
    said = {(note.place.split()[-1], note.field): note.reason for note in migration.notes}
    assert "by replicas" in said["legal.v2", "spec.replicas"]
    assert "adapters.download.credentials" in said["stored", "spec.artifactURL"]
    assert said["lost", "spec.baseModel"] == "its base is not among the files"
    assert "model.credentials" in said["legal.v2", "spec.credentialsSecretRef"]


@pytest.mark.parametrize("name", ["aibrix-adapters", "kubeai-fixed"])
def test_external_models_get_no_adapters(name: str) -> None:
    migration = convert(name, MigrationOptions(external=True))
    assert [one["kind"] for one in migration.manifests] == ["ModelDeployment"]
    assert any("the external model serves no adapters" in note.reason for note in migration.notes)


def test_llm_d_on_several_nodes() -> None:
    [manifest] = convert("llm-d-multinode", MigrationOptions()).manifests
    [pool] = manifest["spec"]["pools"]
    assert pool["acceleratorClassName"] == "nvidia-h100", "from the node label"
    assert pool["parallelism"] == {"data": 16, "nodes": 2}
    assert [one["name"] for one in pool["template"]["spec"]["containers"]] == ["engine", "sidecar"]
    assert manifest["spec"]["model"]["cache"] == {"claimName": "cache"}


def test_production_stack_roles_are_joined() -> None:
    migration = convert("production-stack-disaggregated")
    llama, tools = migration.manifests
    assert llama["metadata"]["name"] == "llama"
    assert [(pool["role"], pool["minReplicas"]) for pool in llama["spec"]["pools"]] == [("Decode", 1), ("Prefill", 2)]
    assert llama["spec"]["routing"] == {"preset": "round-robin"}
    assert tools["spec"]["engine"]["args"] == ["--enable-auto-tool-choice", "--tool-call-parser=hermes"]
    assert tools["spec"]["model"]["revision"] == "main"
    assert tools["spec"]["adapters"] == {}
    written = json.dumps(migration.manifests) + json.dumps([note.describe() for note in migration.notes])
    assert "hf_plain_text" not in written


def test_litellm_entries_that_are_not_engines_are_reported() -> None:
    migration = convert("litellm-mixed", MigrationOptions())
    [manifest] = migration.manifests
    assert manifest["metadata"]["name"] == "qwen3"
    assert manifest["spec"]["model"]["servedNames"] == ["qwen3", "Qwen3", "chat"]
    assert manifest["spec"]["pools"] == [
        {"name": "main", "endpoints": [{"url": "https://gpu.example.internal:8443"}, {"url": "http://gpu:8000"}]}
    ]
    said = reasons(migration.notes)
    assert "/engines/v1 is not the address of an engine" in said["model_list[2]"]
    assert said["model_list[3]"] == "claude: anthropic is a provider: keep LiteLLM for it"
    assert said["router_settings.model_group_alias"].startswith("gone: ")
    assert said["router_settings.routing_strategy"].startswith("usage-based-routing-v2: ")
    assert said["router_settings.fallbacks"] == "claude is no fallback: it is not carried over itself"
    assert said["litellm_settings.fallbacks"] == "claude is no fallback: it is not carried over itself"
    assert "spec.budget of a ModelTenant" in said["litellm_settings.max_budget"]
    assert said["litellm_settings"].startswith("drop_params: ")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            {"apiVersion": "kubeai.org/v1", "kind": "Model", "spec": {"engine": "OLlama", "url": "ollama://a"}},
            "Fairlead does not run OLlama",
        ),
        (
            {"apiVersion": "kubeai.org/v1", "kind": "Model", "spec": {"engine": "VLLM", "url": "oss://a/b"}},
            "does not load weights from 'oss://a/b'",
        ),
        (
            {
                "apiVersion": "kubeai.org/v1",
                "kind": "Model",
                "metadata": {"name": "m"},
                "spec": {"engine": "VLLM", "url": "hf://a/b", "resourceProfile": "nvidia-gpu-t4:1"},
            },
            "no built-in AcceleratorClass is for nvidia-gpu-t4",
        ),
        (
            {
                "apiVersion": "serving.kserve.io/v1beta1",
                "kind": "InferenceService",
                "metadata": {"name": "m"},
                "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": "s3://a/b"}}},
            },
            "sklearn is not a format of vLLM",
        ),
        ({"modelArtifacts": {"uri": "hf://a/b"}}, "is missing"),
        ({"servingEngineSpec": {"modelSpec": "x"}}, "is not a list of mappings"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_its_field(document: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        migrate([("f.yaml", document)], MigrationOptions())
    assert caught.value.field is not None
    assert caught.value.field.startswith("f.yaml")


def test_only_known_documents_have_a_system() -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {}}
    assert system_of(deployment) is None
    assert system_of("text") is None
    assert system_of({"model_list": []}) is not None
