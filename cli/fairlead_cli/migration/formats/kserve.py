"""KServe: `LLMInferenceService`, with the `LLMInferenceServiceConfig`s that it inherits from."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.adapters import read_adapters
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import TO_GATEWAY, FieldReader, Outcome
from fairlead_cli.migration.pod_spec import EXTRA_ARGS, read_pod

OWN_PREFIXES: Final = ("serving.kserve.io/", "prometheus.kserve.io/", "sidecar.istio.io/")
_POD_NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
"""Annotation that KServe copies to its pods."""
_CONTAINER: Final = "main"
_MODELS: Final = "/mnt/models"
"""The folder of the weights in KServe's engines."""
_TEMPLATE: Final = re.compile(r"\{\{-?\s*\.([\w.]+)\s*-?\}\}")
_DRA: Final = "serving.kserve.io/exp-dra-device"
"""Begins the annotations by which KServe claims devices."""
_EVENTS_VARIABLE: Final = "KV_EVENTS_CONFIG"
_COMPONENT: Final = "app.kubernetes.io/component"
REASONS: Final = {
    "spec.router": f"clients call Fairlead's gateway, which routes without a scheduler; {TO_GATEWAY}",
    "spec.storageInitializer": "vLLM loads the weights itself",
    "spec.tracing": "set tracing for the gateway in the chart's values",
    "spec.model.confidential": "Fairlead does not decrypt weights",
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns a ModelDeployment for each LLMInferenceService."""
    configs = {str((d.peek("metadata") or {}).get("name")): d for d in documents if _is_config(d)}
    services = [document for document in documents if not _is_config(document)]
    converted = [manifest for document in services for manifest in _convert(document, configs, options)]
    named = {str(one.peek("name")) for service in services for one in service.section("spec").entries("baseRefs")}
    for name, config in configs.items():
        config.skip("spec")
        assembly.read_helper(config, is_used=name in named)
    return converted


def _is_config(document: FieldReader) -> bool:
    return bool(document.peek("kind") == "LLMInferenceServiceConfig")


def _convert(
    document: FieldReader, configs: Mapping[str, FieldReader], options: MigrationOptions
) -> list[dict[str, Any]]:
    document = _inherit(document, configs)
    spec = document.section("spec")
    draft = ModelDraft(document, **assembly.metadata_of(document, own_prefixes=OWN_PREFIXES))
    model = spec.section("model")
    draft.uri, revision = assembly.model_uri(model.text("uri"), model, "uri")
    if revision:
        draft.model["revision"] = revision
    draft.served_names = [model.text("name") or draft.name]
    main = _read_workload(spec, draft, "Decode" if "prefill" in spec else "Serve")
    draft.pools = [main]
    if "prefill" in spec:
        draft.pools.append(_read_workload(spec.section("prefill"), draft, "Prefill"))
    if spec.section("storageInitializer").peek("enabled") is False:
        _read_own_weights(spec, draft)
    networks = draft.annotations.pop(_POD_NETWORKS, None)
    if networks is not None:
        for pool in draft.pools:
            pool.metadata.setdefault("annotations", {}).setdefault(_POD_NETWORKS, networks)
    annotations = document.section("metadata").peek("annotations") or {}
    main.devices.signs += [name for name in annotations if name.startswith(_DRA)]
    adapters = _read_adapters(model.section("lora"), draft, options)
    if options.external:
        document.note("", "gateways call pods by HTTP: enableLLMInferenceServiceTLS must be false", Outcome.REQUIRED)
    return [assembly.assemble(draft, options), *adapters]


def _read_own_weights(spec: FieldReader, draft: ModelDraft) -> None:
    """Takes the weights from the folder that an init container of the user fills, if there is one.

    Source: KServe's docs: without its storage initializer, the pod itself provides /mnt/models.
    """
    writers: list[str] = []
    for pool in draft.pools:
        mounts = pool.container.get("volumeMounts") or ()
        places = {one.get("name") for one in mounts if str(one.get("mountPath")).rstrip("/") == _MODELS}
        if not places:
            return
        for one in pool.pod.get("initContainers") or ():
            if places & {mount.get("name") for mount in one.get("volumeMounts") or ()}:
                writers.append(str(one.get("name")))
    spec.skip("storageInitializer")
    draft.uri = f"file://{_MODELS}"
    draft.model.pop("revision", None)
    by = f"the init container {writers[0]} fills" if writers else "a volume of the pod holds"
    spec.note("model.uri", f"it is {draft.uri}, which {by}: nothing is downloaded twice")


def _inherit(document: FieldReader, configs: Mapping[str, FieldReader]) -> FieldReader:
    """Returns the document merged over the configurations that it names, as KServe merges them."""
    references = document.section("spec").entries("baseRefs")
    merged: dict[str, Any] = {}
    for reference in references:
        name = reference.text("name")
        if name in configs:
            merged = _merge(merged, configs[name].peek("spec") or {})
        else:
            reference.note("name", f"{name} is not among the files: give it too, with -f", Outcome.DROPPED)
    spec = _fill_in(_merge(merged, document.peek("spec") or {}), document)
    values = {name: document.peek(name) for name in document.names()} | {"spec": spec}
    return document.with_document(values)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(base))
    for name, value in over.items():
        existing = merged.get(name)
        if isinstance(existing, dict) and isinstance(value, dict):
            merged[name] = _merge(existing, value)
        elif isinstance(existing, list) and isinstance(value, list) and _have_names([*existing, *value]):
            named = {item["name"]: item for item in existing}
            for item in value:
                named[item["name"]] = _merge(named.get(item["name"], {}), item)
            merged[name] = list(named.values())
        else:
            merged[name] = copy.deepcopy(value)
    return merged


def _fill_in(value: Any, document: FieldReader) -> Any:
    """Returns a merged value with names of the object in the place of KServe's templates."""
    if isinstance(value, dict):
        return {name: _fill_in(item, document) for name, item in value.items()}
    if isinstance(value, list):
        return [_fill_in(item, document) for item in value]
    if not isinstance(value, str) or "{{" not in value:
        return value
    metadata = document.peek("metadata") or {}
    model = (document.peek("spec") or {}).get("model") or {}
    names = {
        "Spec.Model.Name": str(model.get("name") or metadata.get("name")),
        "ObjectMeta.Name": str(metadata.get("name")),
        "ObjectMeta.Namespace": str(metadata.get("namespace") or "default"),
    }
    return _TEMPLATE.sub(lambda found: names.get(found[1], found[0]), value)


def _drop_templates(container: FieldReader, pool: PoolDraft) -> None:
    """Removes variables that only KServe can fill in, and those that serve its flags."""
    for index, variable in enumerate(container.entries("env")):
        name = variable.peek("name")
        if name == EXTRA_ARGS:
            continue
        if name == _EVENTS_VARIABLE or "{{" in str(variable.peek("value")):
            reason = "Fairlead sets --kv-events-config itself" if name == _EVENTS_VARIABLE else "KServe fills it in"
            container.note(f"env[{index}]", f"{name}: {reason}", Outcome.DROPPED)
            pool.engine.env = [kept for kept in pool.engine.env if kept["name"] != name]


def _have_names(items: Sequence[Any]) -> bool:
    return all(isinstance(item, dict) and "name" in item for item in items)


def _read_workload(workload: FieldReader, draft: ModelDraft, role: str) -> PoolDraft:
    pool = PoolDraft(workload, role=role, name="main" if role == "Serve" else role.lower())
    suffix = "-prefill" if role == "Prefill" else ""
    pool.selector = {"app.kubernetes.io/name": draft.name, _COMPONENT: f"llminferenceservice-workload{suffix}"}
    pool.min_replicas = workload.number("replicas")
    pod = workload.section("template")
    containers = pod.entries("containers")
    main = next((one for one in containers if one.peek("name") == _CONTAINER), None)
    if main is not None:
        read_pod(pod, main, pool)
        _drop_templates(main, pool)
        if set(pool.engine.flags.served_names) - set(draft.served_names):
            main.note("env", "--served-model-name: spec.model names the model", Outcome.DROPPED)
    else:
        pool.devices.unknown = True
        if containers:
            pool.pod["containers"] = [one.fields() for one in containers]
    _read_parallelism(workload.section("parallelism"), workload, pool)
    _read_offload(workload, draft)
    _read_scaling(workload.section("scaling"), pool, draft)
    rollout = workload.section("rolloutStrategy")
    if "maxSurge" in rollout and role != "Prefill":
        draft.spec["rollout"] = {"maxSurge": rollout.value("maxSurge")}
    rollout.drop("maxUnavailable", "Fairlead starts new instances before it ends old ones")
    for kind in ("labels", "annotations"):
        if values := workload.mapping(kind):
            pool.metadata[kind] = {name: str(value) for name, value in values.items()}
    return pool


def _read_parallelism(sizes: FieldReader, workload: FieldReader, pool: PoolDraft) -> None:
    assembly.read_sizes(sizes, ("tensor", "pipeline", "data"), pool)
    local, found = sizes.integer("dataLocal"), pool.engine.flags.parallelism
    if local:
        pool.nodes = max(1, found.get("data", 1) // local)
    elif "worker" in workload:
        pool.nodes = found.get("pipeline", 1)
    if "worker" in workload:
        if pool.devices.count:
            pool.nodes = max(1, assembly.count_ranks(found) // pool.devices.count)
        workload.drop("worker", "Fairlead's pods of one instance have one template")
    if sizes.flag("expert"):
        pool.engine.flags.kept.append("--enable-expert-parallel")
    sizes.drop("dataRPCPort", "Fairlead chooses the ports of engines")


def _read_offload(workload: FieldReader, draft: ModelDraft) -> None:
    offload = workload.section("kvCacheOffloading")
    if not offload:
        return
    draft.spec.setdefault("kvCache", {})["offload"] = {"type": "Native", "memory": offload.text("cpu")}
    offload.drop("evictionPolicy", "vLLM's own policy applies")
    offload.drop("secondary", "offloading to disk needs LMCache: kvCache.offload.type and disk")


def _read_scaling(scaling: FieldReader, pool: PoolDraft, draft: ModelDraft) -> None:
    if not scaling:
        return
    pool.min_replicas, pool.max_replicas = scaling.number("minReplicas"), scaling.integer("maxReplicas")
    for name in ("wva", "keda"):
        scaling.drop(name, assembly.SCALES_FOR_TARGETS)
    draft.spec = assembly.scaling_spec([pool]) | draft.spec


def _read_adapters(lora: FieldReader, draft: ModelDraft, options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns the adapters of a model. Clients call them by the names that they have here."""
    if not lora:
        return []
    entries = lora.entries("adapters")
    slots, rank = lora.integer("maxAdapters") or len(entries), lora.integer("maxRank")
    lora.drop("maxCpuAdapters", "add --max-cpu-loras to engine.args")
    wanted = {"slots": slots or 4} | ({"maxRank": rank} if rank else {})
    return read_adapters(entries, "uri", draft, options, slots=wanted)
