"""llm-d: values of the Helm chart `llm-d-modelservice`."""

import re
from collections.abc import Sequence
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.pod_spec import node_affinity, read_pod

_MODEL_NAME: Final = re.compile(r'"?\{\{\s*\.Values\.modelArtifacts\.name\s*\}\}"?')
_ROLES: Final = (("decode", 1), ("prefill", 0))
_RESOURCES: Final = {
    "nvidia": "nvidia.com/gpu",
    "amd": "amd.com/gpu",
    "google": "google.com/tpu",
    "intel-gaudi": "habana.ai/gaudi",
    "intel-i915": "gpu.intel.com/i915",
    "intel-xe": "gpu.intel.com/xe",
}
"""Type of accelerator to the resource that its pods request, as in the chart's own values."""
_DROPPED: Final = {
    "autoscaling": "set pools[].maxReplicas and spec.autoscaling",
    "monitoring": "the chart's ServiceMonitor covers the gateway, which relays the engines' metrics",
    "strategy": "set spec.rollout",
    "schedulerName": "write it into pools[].template",
    "extraConfig": "write its pod fields into pools[].template.spec",
    "annotations": "write those that pods need into pools[].template.metadata",
    "podAnnotations": "write them into pools[].template.metadata",
}
REASONS: Final = {
    "routing.proxy": "Fairlead's gateway sends prompts to prefill and answers to decode itself",
    "tracing": "set tracing for the gateway in the chart's values",
    "requester": "Fairlead keeps spare engines asleep: spec.autoscaling.sleep",
    "accelerator": "an AcceleratorClass holds the device resource; engine.env holds variables",
    "fullnameOverride": "the ModelDeployment is named after the model",
    "common": "it is an input of the chart's templates",
    "enabled": "it is an input of the chart's templates",
    "extraObjects": "apply these objects as they are",
    "serviceAccountOverride": "write serviceAccountName into pools[].template",
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    return [_convert(document, options) for document in documents]


def _convert(values: FieldReader, options: MigrationOptions) -> dict[str, Any]:
    """Returns the ModelDeployment of one values file. What has no counterpart is noted in it."""
    artifacts = values.section("modelArtifacts")
    name = artifacts.text("name")
    if not name:
        raise artifacts.error("name", "is missing", "it is the name under which clients reach the model")
    draft = ModelDraft(values, name=name.rsplit("/", 1)[-1].lower().replace(".", "-"), served_names=[name])
    _read_source(artifacts, draft)
    labels = {key: str(value) for key, value in artifacts.mapping("labels").items()}
    port = values.section("routing").integer("servicePort") or 8000
    values.section("routing").skip("modelName")
    multinode = values.flag("multinode")
    for role, default in _ROLES:
        section = values.section(role)
        count = section.number("replicas", default)
        if section.peek("create") is False or (role == "prefill" and count == 0):
            if section:
                section.drop_all("it is off")
            continue
        section.skip("create")
        pool = PoolDraft(section, name=role, role=role.capitalize(), min_replicas=count, port=port)
        pool.selector = {**labels, "llm-d.ai/role": role}
        _read_role(values, section, pool, multinode=multinode)
        draft.pools.append(pool)
    if not draft.pools:
        raise values.error("decode", "there is no decode workload", "set decode.create")
    if len(draft.pools) == 1:
        draft.pools[0].role, draft.pools[0].name = "Serve", "main"
    return assembly.assemble(draft, options)


def _read_source(artifacts: FieldReader, draft: ModelDraft) -> None:
    uri = _MODEL_NAME.sub(draft.served_names[0], artifacts.text("uri")) or f"hf://{draft.served_names[0]}"
    if uri.startswith("pvc+hf://"):
        claim, *_, owner, model = uri.removeprefix("pvc+hf://").split("/")
        draft.uri, draft.model["cache"] = f"hf://{owner}/{model}", {"claimName": claim}
        artifacts.note("uri", "the weights are downloaded once more, into a folder of the claim that Fairlead chooses")
    else:
        draft.uri, _ = assembly.model_uri(uri, artifacts, "uri")
    size = artifacts.text("size")
    if size and draft.uri.startswith("hf://") and "cache" not in draft.model:
        draft.model["cache"] = {"size": size}
    secret = artifacts.text("authSecretName")
    if secret and draft.uri.startswith("pvc:"):
        artifacts.note("authSecretName", "weights on a claim are read without a token", Outcome.DROPPED)
    elif secret:
        draft.model["credentials"] = {"secretRef": {"name": secret}}
    artifacts.drop("mountPath", "Fairlead chooses where weights are mounted")
    artifacts.skip("readOnly")


def _read_role(values: FieldReader, section: FieldReader, pool: PoolDraft, *, multinode: bool) -> None:
    containers = section.entries("containers")
    if not containers:
        raise section.error("containers", "there is no container", "name the engine's container")
    engine = containers[0]
    command = engine.text("modelCommand")
    engine.skip("mountModelVolume")
    if command != "custom":
        engine.skip("command")
    read_pod(section, engine, pool)
    sizes = section.section("parallelism")
    assembly.read_sizes(sizes, ("tensor", "data"), pool)
    workers = sizes.integer("workers") or 1
    pool.nodes = workers if multinode else 1
    local = sizes.integer("dataLocal") or 1
    common, own = values.section("accelerator"), section.section("accelerator")
    accelerator = own.text("type") or str(common.peek("type") or "nvidia")
    common.skip("type")
    pool.devices.is_cpu = accelerator == "cpu"
    if accelerator != "cpu":
        resources = _RESOURCES | (common.peek("resources") or {})
        pool.devices.resource = str(resources.get(accelerator, accelerator))
        pool.devices.count = pool.devices.count or (sizes.integer("tensor") or 1) * local
    _read_node_labels(section.section("acceleratorTypes"), pool)
    if own.peek("dra") or common.peek("dra"):
        own.skip("dra")
        section.note("", "accelerators come from the device plugin, not from DRA resource claims", Outcome.DROPPED)
    if claims := pool.pod.get("resourceClaims"):
        names = ", ".join(str(claim.get("name")) for claim in claims)
        section.note("resourceClaims", f"{names}: kept, for devices other than the accelerators of the class")
    for name, reason in _DROPPED.items():
        section.drop(name, reason)


def _read_node_labels(types: FieldReader, pool: PoolDraft) -> None:
    key, values = types.text("labelKey"), types.texts("labelValues")
    if not key or not values:
        return
    pool.devices.hints += values
    term = {"matchExpressions": [{"key": key, "operator": "In", "values": values}]}
    pool.pod["affinity"] = node_affinity([term])
