"""AIBrix Deployments: pod labels, caches of weights, accelerators and images, with their notes."""

from pathlib import Path
from typing import Any

import pytest

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.spec.engine import EngineType
from fairlead.errors import BadInput
from fairlead.manifests.known_flags import checked_version
from fairlead_cli.manifest_conversion import Migration, migrate
from fairlead_cli.migration.assembly import OLDEST_VLLM
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_cli.migration.field_reader import Outcome
from fairlead_testing.yaml_documents import load_document

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: prod, labels: {model.aibrix.ai/name: llama}}
spec:
  replicas: 2
  selector: {matchLabels: {app: NAME, model.aibrix.ai/name: llama}}
  template:
    metadata:
      labels: {app: NAME, model.aibrix.ai/name: llama, model.aibrix.ai/engine: vllm, cost-center: "42"}
      annotations:
        prometheus.io/scrape: "true"
        model.aibrix.ai/config: '{"profiles": {"default": {"routingStrategy": "prefix-cache"}}}'
    spec:
      affinity:
        nodeAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            nodeSelectorTerms:
              - matchExpressions: [{key: nvidia.com/gpu.product, operator: In, values: [PRODUCT]}]
      containers:
        - name: vllm
          image: vllm/vllm-openai:v0.32.0
          command: [vllm, serve, a/b, --served-model-name, llama]
          env: [{name: HF_HOME, value: /models/hf}]
          resources: {limits: {nvidia.com/gpu: "1"}}
          volumeMounts: [{name: models, mountPath: /models}]
      volumes: [{name: models, persistentVolumeClaim: {claimName: cache}}]
"""


def deployment(name: str = "llama", product: str = "NVIDIA-A100-SXM4-80GB") -> dict[str, Any]:
    loaded: dict[str, Any] = load_document(DEPLOYMENT.replace("NAME", name).replace("PRODUCT", product))
    return loaded


def convert(*documents: dict[str, Any], accelerator: str | None = None, external: bool = False) -> Migration:
    return migrate([("f.yaml", document) for document in documents], MigrationOptions(accelerator, external))


def said(migration: Migration) -> str:
    return "\n".join(note.describe() for note in migration.notes)


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    pod: dict[str, Any] = document["spec"]["template"]["spec"]
    return pod


def test_labels_of_pods_are_carried_over_or_noted() -> None:
    migration = convert(deployment())
    [manifest] = migration.manifests
    metadata = manifest["spec"]["pools"][0]["template"]["metadata"]
    assert metadata == {"labels": {"cost-center": "42"}, "annotations": {"prometheus.io/scrape": "true"}}
    notes = said(migration)
    assert (
        "labels: not carried over: model.aibrix.ai/name, model.aibrix.ai/engine: the other system reads them" in notes
    )
    assert "labels: not carried over: app: the selector of the old workload has it" in notes
    assert "annotations: not carried over: model.aibrix.ai/config: set spec.routing.preset" in notes
    assert "spec.selector: not carried over" in notes


def test_cache_of_weights_on_a_claim_stays() -> None:
    migration = convert(deployment())
    [manifest] = migration.manifests
    assert {"name": "HF_HOME", "value": "/models/hf"} in manifest["spec"]["engine"]["env"]
    engine = manifest["spec"]["pools"][0]["template"]["spec"]["containers"][0]
    assert engine["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert "HF_HOME: kept with its volume" in said(migration)


def test_cache_of_weights_stays_beside_weights_of_the_same_claim() -> None:
    document = deployment()
    pod_of(document)["containers"][0]["command"][2] = "/models/llama"
    [manifest] = convert(document).manifests
    assert manifest["spec"]["model"]["uri"] == "pvc:cache/llama"
    assert manifest["spec"]["pools"][0]["template"]["spec"]["volumes"][0]["name"] == "models"


@pytest.mark.parametrize("place", ["/home/user/hf", "/modelshop", "/dev/shm/hf"])
def test_cache_of_weights_outside_volumes_is_dropped(place: str) -> None:
    document = deployment()
    container = pod_of(document)["containers"][0]
    container["env"][0]["value"] = place
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    migration = convert(document)
    assert "env" not in migration.manifests[0]["spec"]["engine"]
    assert "HF_HOME: Fairlead sets this variable itself; spec.model.cache" in said(migration)


def test_accelerator_comes_from_node_affinity() -> None:
    [manifest] = convert(deployment()).manifests
    assert manifest["spec"]["pools"][0]["acceleratorClassName"] == "nvidia-a100"


@pytest.mark.parametrize(
    ("product", "name"),
    [("NVIDIA-H200", "nvidia-h200"), ("NVIDIA-B200", "nvidia-b200"), ("MI300X", "amd-mi300x")],
)
def test_products_name_their_built_in_accelerator(product: str, name: str) -> None:
    document = deployment(product=product)
    resource = builtin_accelerators()[name].spec.resource
    pod_of(document)["containers"][0]["resources"] = {"limits": {resource: "1"}}
    migration = convert(document)
    assert migration.manifests[0]["spec"]["pools"][0]["acceleratorClassName"] == name
    assert f"acceleratorClassName is {name}, because of {product}" in said(migration)


def test_an_accelerator_of_a_larger_module_is_not_taken_for_it() -> None:
    with pytest.raises(BadInput, match="no built-in AcceleratorClass is for NVIDIA-GB200"):
        convert(deployment(product="NVIDIA-GB200"))


def test_unknown_accelerator_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no built-in AcceleratorClass is for NVIDIA-L40S") as caught:
        convert(deployment(product="NVIDIA-L40S"))
    assert caught.value.hint is not None
    assert "npu-910b4, nvidia-a100, nvidia-b200, nvidia-h100, nvidia-h200, nvidia-l4" in caught.value.hint
    assert "Describe your GPU" in caught.value.hint


@pytest.mark.parametrize(
    ("image", "outcome", "text"),
    [
        ("vllm/vllm-openai:v0.32.0", None, ""),
        ("example.com:5000/vllm-openai:v0.11.0-cu129", Outcome.CHANGED, "holds 0.11.0; the flags"),
        ("aibrix/vllm-openai:v0.6.2-distributed", Outcome.REQUIRED, "vLLM 0.6.2 refuses --allowed-media-domains"),
        ("vllm/vllm-openai:latest", Outcome.CHANGED, "does not name the version of its engine"),
        ("lmcache/vllm-openai:v0.3.9", Outcome.CHANGED, "does not name the version of its engine"),
        ("llm-d/llm-d-cuda:v0.9.0", Outcome.CHANGED, "does not name the version of its engine"),
    ],
)
def test_version_of_the_engine_is_noted(image: str, outcome: Outcome | None, text: str) -> None:
    document = deployment()
    pod_of(document)["containers"][0]["image"] = image
    notes = [note for note in convert(document).notes if "flags that Fairlead adds" in note.reason]
    assert [note.outcome for note in notes] == ([outcome] if outcome else [])
    assert all(text in note.reason for note in notes)


def test_versions_are_those_of_the_chart() -> None:
    values = load_document((Path(__file__).parents[3] / "charts" / "fairlead" / "values.yaml").read_text())
    images = values["engines"]["images"]
    assert images["vllm"].endswith(f":v{checked_version(EngineType.VLLM)}")
    assert images["sglang"].partition(":")[2].startswith(f"v{checked_version(EngineType.SGLANG)}")
    assert OLDEST_VLLM == "0.11.0", "0.10.2 has no --allowed-media-domains"


def test_root_pods_are_noted() -> None:
    document = deployment()
    pod_of(document)["initContainers"] = [{"name": "download", "image": "example.com/download"}]
    pod_of(document)["volumes"] = [{"name": "models", "hostPath": {"path": "/data/models"}}]
    notes = said(convert(document))
    assert "initContainers: changed: pods run as user 65532" in notes
    assert "volumes[0]: changed: hostPath: user 65532 must be able to read it" in notes


def test_external_deployments_of_one_name_are_pools_of_one_model() -> None:
    migration = convert(deployment("slow", "NVIDIA-L20"), deployment("fast"), external=True)
    [manifest] = migration.manifests
    assert manifest["metadata"]["name"] == "llama-external"
    slow, fast = manifest["spec"]["pools"]
    assert slow == {
        "name": "slow",
        "selector": {"matchLabels": {"app": "slow", "model.aibrix.ai/name": "llama"}, "port": 8000},
    }
    assert (fast["name"], fast["acceleratorClassName"]) == ("fast", "nvidia-a100")
    assert "are pools of one model" in said(migration)


def test_external_deployments_of_one_selector_are_one_pool() -> None:
    first, second = deployment("first"), deployment("second", "NVIDIA-L4")
    for document in (first, second):
        document["spec"]["selector"]["matchLabels"] = {"model.aibrix.ai/name": "llama"}
    [manifest] = convert(first, second, external=True).manifests
    [pool] = manifest["spec"]["pools"]
    assert pool["selector"]["matchLabels"] == {"model.aibrix.ai/name": "llama"}
    assert "acceleratorClassName" not in pool


def test_converted_deployments_of_one_name_are_noted() -> None:
    migration = convert(deployment("first"), deployment("second"))
    assert [manifest["metadata"]["name"] for manifest in migration.manifests] == ["first", "second"]
    assert "before you apply the output: first has the name llama, too" in said(migration)


@pytest.mark.parametrize("variable", [False, True])
def test_engines_that_need_a_key_are_noted(variable: bool) -> None:
    document = deployment()
    container = pod_of(document)["containers"][0]
    if variable:
        container["env"].append({"name": "VLLM_API_KEY", "value": "secret"})
    else:
        container["command"] += ["--api-key", "secret"]
    migration = convert(document, external=True)
    assert [note.outcome for note in migration.notes] == [Outcome.REQUIRED]
    assert "refuse requests without --api-key" in said(migration)
    assert "secret" not in said(migration)


def test_storm_service_with_one_role_becomes_one_pool() -> None:
    template = deployment()["spec"]["template"]
    spec = {"replicas": 2, "template": {"spec": {"roles": [{"name": "server", "replicas": 2, "template": template}]}}}
    head = {"apiVersion": "orchestration.aibrix.ai/v1alpha1", "kind": "StormService", "metadata": {"name": "a"}}
    [manifest] = convert({**head, "spec": spec}).manifests
    [pool] = manifest["spec"]["pools"]
    assert (pool["minReplicas"], pool.get("role")) == (4, None)
    spec["template"]["spec"]["roles"].append({"name": "other", "template": template})  # type: ignore[index]
    with pytest.raises(BadInput, match="its roles with engines are server, other"):
        convert({**head, "spec": spec})
