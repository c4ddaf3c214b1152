"""Values of Helm charts and LiteLLM's configuration, as their users write them."""

from typing import Any

import pytest

from fairlead.errors import BadInput
from fairlead_cli.manifest_conversion import Migration, migrate
from fairlead_cli.migration.drafts import MigrationOptions
from fairlead_cli.migration.field_reader import Note, Outcome


def convert(document: dict[str, Any], *, external: bool = False) -> Migration:
    return migrate([("f.yaml", document)], MigrationOptions("nvidia-a100", external))


def notes_of(migration: Migration, field: str) -> list[Note]:
    return [note for note in migration.notes if note.field == field]


def production_stack(**fields: Any) -> dict[str, Any]:
    spec = {"name": "qwen", "repository": "vllm/vllm-openai", "tag": "v0.32.0", "modelURL": "a/b", "requestGPU": 1}
    return {"servingEngineSpec": {"modelSpec": [spec | fields]}}


def test_served_name_among_extra_arguments_is_the_name_of_clients() -> None:
    config = {"enablePrefixCaching": True, "extraArgs": ["--served-model-name", "chat"]}
    document = production_stack(vllmConfig=config)
    for external in (False, True):
        [manifest] = convert(document, external=external).manifests
        assert manifest["spec"]["model"]["servedNames"] == ["chat"]


@pytest.mark.parametrize(
    ("storage", "uri", "noted"),
    [
        ({"pvcExistingClaimName": "weights"}, "pvc:weights/models/qwen", False),
        ({"pvcStorage": "50Gi", "storageClass": "fast"}, "pvc:release-qwen-storage-claim/models/qwen", True),
        ({}, "file:///data/models/qwen", False),
    ],
)
def test_weights_below_the_mount_of_the_chart_are_on_its_claim(storage: dict[str, str], uri: str, noted: bool) -> None:
    migration = convert(production_stack(modelURL="/data/models/qwen", **storage))
    [manifest] = migration.manifests
    assert manifest["spec"]["model"]["uri"] == uri
    assert "cache" not in manifest["spec"]["model"]
    notes = notes_of(migration, "servingEngineSpec.modelSpec[0].modelURL")
    assert [note.outcome for note in notes] == ([Outcome.REQUIRED] if noted else [])


def test_key_of_all_engines_is_noted_for_external_models() -> None:
    document = production_stack()
    document["servingEngineSpec"]["vllmApiKey"] = "secret"
    [note] = convert(document, external=True).notes
    assert (note.outcome, "secret" in note.reason) == (Outcome.REQUIRED, False)


@pytest.mark.parametrize(("key", "outcome"), [("os.environ/KEY", Outcome.REQUIRED), ("EMPTY", Outcome.DROPPED)])
@pytest.mark.parametrize("external", [False, True])
def test_key_of_a_server_is_noted(key: str, outcome: Outcome, external: bool) -> None:
    parameters = {"model": "openai/a/b", "api_base": "http://server:8000/v1", "api_key": key}
    migration = convert({"model_list": [{"model_name": "chat", "litellm_params": parameters}]}, external=external)
    [note] = notes_of(migration, "model_list[0].litellm_params.api_key")
    assert note.outcome is outcome


def test_provider_of_an_engine_without_address_is_named_as_such() -> None:
    entries = [
        {"model_name": "chat", "litellm_params": {"model": "openai/a/b", "api_base": "http://server:8000"}},
        {"model_name": "gpt", "litellm_params": {"model": "openai/gpt"}},
    ]
    [note] = notes_of(convert({"model_list": entries}), "model_list[1]")
    assert note.reason == "gpt: without api_base, openai is a provider: keep LiteLLM for it"


ENGINE = {"model": "openai/a/b", "api_base": "http://server:8000/v1"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "openai/a/b", "api_base": "http://server:8000/other"}, "is not the address of an engine"),
        ({"model": "azure/b", "api_base": "os.environ/AZURE"}, "azure is a provider"),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_a_model_of_litellm_is_not_converted_in_part(
    parameters: dict[str, str], message: str, *, is_first: bool
) -> None:
    entries = [{"model_name": "chat", "litellm_params": params} for params in (ENGINE, parameters)]
    with pytest.raises(BadInput, match=message) as refused:
        convert({"model_list": entries[::-1] if is_first else entries})
    assert "remove it from the file" in (refused.value.hint or "")


def test_an_address_that_litellm_reads_from_a_variable_must_be_written() -> None:
    parameters = ENGINE | {"api_base": "os.environ/VLLM_B"}
    with pytest.raises(BadInput, match="VLLM_B") as refused:
        convert({"model_list": [{"model_name": "chat", "litellm_params": parameters}]})
    assert (refused.value.hint or "").startswith("write the address")
    assert (refused.value.field or "").endswith("model_list[0].litellm_params.api_base")


def test_the_default_strategy_of_litellm_is_named_when_it_is_written() -> None:
    entries = [{"model_name": "chat", "litellm_params": ENGINE}]
    migration = convert({"model_list": entries, "router_settings": {"routing_strategy": "simple-shuffle"}})
    [note] = notes_of(migration, "router_settings.routing_strategy")
    assert "dual-hash" in note.reason
    assert "routing" not in migration.manifests[0]["spec"]


def test_llm_d_names_where_pod_fields_belong() -> None:
    decode = {
        "extraConfig": {"priorityClassName": "high"},
        "annotations": {"team": "search"},
        "containers": [{"name": "vllm", "image": "vllm/vllm-openai:v0.32.0", "modelCommand": "vllmServe"}],
    }
    artifacts = {"name": "a/b", "uri": "pvc://weights/b", "authSecretName": "token"}
    migration = convert({"modelArtifacts": artifacts, "decode": decode})
    assert "pools[].template.spec" in notes_of(migration, "decode.extraConfig")[0].reason
    assert "pools[].template.metadata" in notes_of(migration, "decode.annotations")[0].reason
    assert notes_of(migration, "modelArtifacts.authSecretName")


def llm_d(accelerator: dict[str, Any], **roles: dict[str, Any]) -> dict[str, Any]:
    container = {"name": "vllm", "image": "vllm/vllm-openai:v0.32.0", "modelCommand": "vllmServe"}
    filled = {role: {"replicas": 1, "containers": [container], **fields} for role, fields in roles.items()}
    return {"modelArtifacts": {"name": "a/b"}, "accelerator": accelerator, **filled}


TYPES = {
    "nvidia": "nvidia.com/gpu",
    "amd": "amd.com/gpu",
    "google": "google.com/tpu",
    "intel-gaudi": "habana.ai/gaudi",
    "intel-i915": "gpu.intel.com/i915",
    "intel-xe": "gpu.intel.com/xe",
    "own": "example.com/device",
}


@pytest.mark.parametrize("prefill", TYPES)
@pytest.mark.parametrize("decode", TYPES)
def test_pool_whose_devices_are_not_those_of_the_given_class_is_noted(decode: str, prefill: str) -> None:
    types = {"decode": decode, "prefill": prefill}
    roles = {role: {"accelerator": {"type": type}} for role, type in types.items()}
    migration = convert(llm_d({"type": "nvidia", "resources": {"own": "example.com/device"}}, **roles))
    noted = {note.place.rpartition(": ")[2] + note.field for note in migration.notes if "the pods had" in note.reason}
    assert len(noted) == len({role for role, type in types.items() if TYPES[type] != "nvidia.com/gpu"})
    for note in migration.notes:
        if "the pods had" in note.reason:
            assert note.outcome is Outcome.REQUIRED
            assert any(TYPES[type] in note.reason for type in types.values())


@pytest.mark.parametrize(("label", "noted"), [("NVIDIA-L4", True), ("NVIDIA-A100-SXM4-80GB", False), ("rack-7", False)])
def test_label_of_another_device_than_the_given_class_is_noted(label: str, noted: bool) -> None:
    types = {"labelKey": "nvidia.com/gpu.product", "labelValues": [label]}
    migration = convert(llm_d({"type": "nvidia"}, decode={"acceleratorTypes": types}))
    assert any("which is nvidia-l4" in note.reason for note in migration.notes) == noted


@pytest.mark.parametrize("dra", [False, True])
@pytest.mark.parametrize("names", [[], ["imex"], ["imex", "rdma"]])
def test_claims_of_devices_beside_the_accelerators_are_kept_whole(names: list[str], dra: bool) -> None:
    claims = [{"name": name, "resourceClaimTemplateName": f"{name}-template"} for name in names]
    document = llm_d({"type": "nvidia", "dra": dra}, decode={"resourceClaims": claims} if names else {})
    if names:
        document["decode"]["containers"][0]["resources"] = {"claims": [{"name": name} for name in names]}
    migration = convert(document)
    spec = migration.manifests[0]["spec"]["pools"][0].get("template", {}).get("spec", {})
    (engine,) = spec.get("containers", [{}])
    assert spec.get("resourceClaims", []) == claims
    assert [claim["name"] for claim in engine.get("resources", {}).get("claims", [])] == names
    assert any("the device plugin" in note.reason for note in notes_of(migration, "decode")) == dra


RAY = {"headNode": {"requestCPU": 1, "requestMemory": "20Gi", "requestGPU": 4}}


def pipeline(**fields: Any) -> Migration:
    config = {"enablePrefixCaching": True, "tensorParallelSize": 4, "pipelineParallelSize": 2}
    return convert(production_stack(replicaCount=1, requestGPU=4, vllmConfig=config, **fields))


@pytest.mark.parametrize(
    ("ray", "nodes"), [(RAY, 2), (RAY | {"enabled": True}, 2), (RAY | {"enabled": False}, None), (None, None)]
)
def test_ray_cluster_of_the_chart_is_one_instance_on_several_nodes(ray: dict[str, Any] | None, nodes: int) -> None:
    """The first charts had no `enabled`. The head is one node more than there are replicas."""
    migration = pipeline(**({} if ray is None else {"raySpec": ray}))
    [pool] = migration.manifests[0]["spec"]["pools"]
    assert pool["parallelism"] == {"tensor": 4, "pipeline": 2} | ({"nodes": nodes} if nodes else {})
    assert pool["minReplicas"] == 1
    noted = notes_of(migration, "servingEngineSpec.modelSpec[0].raySpec")
    assert [note.outcome for note in noted] == ([Outcome.CHANGED] if nodes else [])


def test_ray_nodes_that_do_not_share_the_ranks_are_refused() -> None:
    config = {"tensorParallelSize": 4}
    with pytest.raises(BadInput, match="4 ranks of 3 Ray nodes"):
        convert(production_stack(replicaCount=2, vllmConfig=config, raySpec=RAY))


def test_ray_cluster_without_nodes_is_refused() -> None:
    with pytest.raises(BadInput, match="of 0 Ray nodes"):
        convert(production_stack(replicaCount=-1, raySpec=RAY))


@pytest.mark.parametrize(("size", "kept"), [("128Gi", True), ("20Gi", True), ("16Gi", False), ("8Gi", False)])
def test_greater_shared_memory_of_the_chart_is_kept(size: str, kept: bool) -> None:
    volumes = [{"name": "certs", "secret": {"secretName": "a"}}]
    migration = pipeline(shmSize=size, extraVolumes=volumes)
    rendered = migration.manifests[0]["spec"]["pools"][0]["template"]["spec"]["volumes"]
    own = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    assert rendered == [*volumes, *([own] if kept else [])]


def test_volumes_of_all_engines_of_the_chart_are_kept() -> None:
    document = production_stack(extraVolumeMounts=[{"name": "b", "mountPath": "/b"}])
    document["servingEngineSpec"]["extraVolumes"] = [{"name": "a", "emptyDir": {}}]
    document["servingEngineSpec"]["extraVolumeMounts"] = [{"name": "a", "mountPath": "/a"}]
    spec = convert(document).manifests[0]["spec"]["pools"][0]["template"]["spec"]
    assert spec["volumes"] == [{"name": "a", "emptyDir": {}}]
    assert [mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]] == ["/a", "/b"]


def test_field_that_convert_does_not_know_is_not_called_missing_in_the_api() -> None:
    [note] = [
        note for note in convert(production_stack(topologyKey="zone")).notes if note.field.endswith("topologyKey")
    ]
    assert (note.outcome, note.reason.startswith("convert does not read this field")) == (Outcome.DROPPED, True)


def litellm(*entries: dict[str, Any]) -> Migration:
    return convert({"model_list": [{"model_name": "chat", **entry} for entry in entries]})


@pytest.mark.parametrize("place", ["litellm_params", "model_info"])
@pytest.mark.parametrize(
    ("costs", "price"),
    [
        (
            {"input_cost_per_token": 4e-07, "output_cost_per_token": "0.0000012"},
            {"input": "0.4", "output": "1.2"},
        ),
        (
            {
                "input_cost_per_token": 3e-06,
                "output_cost_per_token": 0.000015,
                "cache_read_input_token_cost": 3e-07,
            },
            {"input": "3", "cachedInput": "0.3", "output": "15"},
        ),
        ({"input_cost_per_token": 3.75e-08, "output_cost_per_token": 0}, {"input": "0.038", "output": "0"}),
    ],
)
def test_prices_of_litellm_are_those_of_the_model(place: str, costs: dict[str, Any], price: dict[str, str]) -> None:
    entry = {"litellm_params": ENGINE, "model_info": {"max_tokens": 4096}}
    migration = litellm({**entry, place: {**entry[place], **costs}})
    assert migration.manifests[0]["spec"]["price"] == price
    [note] = notes_of(migration, "model_list[0].model_info")
    assert note.reason.startswith("max_tokens: ")


def test_price_that_a_model_cannot_have_is_named() -> None:
    half = litellm({"litellm_params": ENGINE | {"input_cost_per_token": 1e-06}})
    assert "price" not in half.manifests[0]["spec"]
    assert any("one of input and one of output" in note.reason for note in half.notes)
    prices = ({"input_cost_per_token": cost, "output_cost_per_token": cost} for cost in (1e-06, 2e-06))
    two = litellm(*({"litellm_params": ENGINE | price} for price in prices))
    assert two.manifests[0]["spec"]["price"] == {"input": "1", "output": "1"}
    assert any("differs from that of an earlier server" in note.reason for note in two.notes)
    for wrong in ("much", -1e-06, "Infinity", "1e900000000"):
        with pytest.raises(BadInput, match="is no price"):
            litellm({"litellm_params": ENGINE | {"input_cost_per_token": wrong, "output_cost_per_token": 0}})
