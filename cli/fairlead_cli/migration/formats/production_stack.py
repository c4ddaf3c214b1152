"""vLLM production-stack: values of its Helm chart `vllm-stack`."""

from collections.abc import Sequence
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.pod_spec import (
    ACCOUNT_NOTE,
    labels_of_terms,
    node_affinity,
    read_environment,
    read_probes,
    read_resources,
    shared_memory,
    store_flags,
)
from fairlead_cli.migration.references import rename_taken

_PRESETS: Final = {"roundrobin": "round-robin", "session": "session"}
_FLAGS: Final = {
    "maxModelLen": "--max-model-len",
    "dtype": "--dtype",
    "maxNumSeqs": "--max-num-seqs",
    "gpuMemoryUtilization": "--gpu-memory-utilization",
    "runner": "--runner",
    "convert": "--convert",
}
_SIZES: Final = {
    "tensorParallelSize": "--tensor-parallel-size",
    "pipelineParallelSize": "--pipeline-parallel-size",
    "dataParallelSize": "--data-parallel-size",
    "maxLoras": "--max-loras",
}
_ROLES: Final = {"kv_producer": "Prefill", "kv_consumer": "Decode"}
_MOUNT: Final = "/data/"
"""The folder of a model's claim in the chart's pods."""
_ADAPTERS: Final = "write a ModelAdapter for each; spec.adapters sets the slots"
_TEMPLATE: Final = "write it into pools[].template"
_MODEL_REASONS: Final = {
    "labels": "Fairlead labels its objects itself",
    "annotations": "Fairlead labels its objects itself",
    "serviceAnnotations": "Fairlead's gateway finds pods itself",
    "initContainer": _TEMPLATE,
    "nodeName": _TEMPLATE,
    "chatTemplate": "mount it in pools[].template, and add --chat-template to engine.args",
    "pvcAccessMode": "a claim that exists has its own, and a cache of one pod needs none",
    "limitGPU": "Fairlead counts devices from parallelism",
    "pvcMatchLabels": "name a StorageClass or an existing claim in model.cache",
    "pvcLabels": "the volume belongs to the pod",
    "pvcAnnotations": "the volume belongs to the pod",
    "pdb": "Fairlead writes a PodDisruptionBudget for each pool",
}
REASONS: Final = {
    "routerSpec": "Fairlead's gateway is installed once, for all models",
    "cacheserverSpec": "name a shared store in kvCache.offload.store",
    "sharedPvcStorage": "name an existing claim in model.cache.claimName",
    "loraController": _ADAPTERS,
    "loraAdapters": _ADAPTERS,
    "servingEngineSpec.labels": "the chart's router finds its engines by them, and would take the new pods, too; write "
    "labels that others read into pools[].template.metadata.labels",
    "servingEngineSpec.vllmApiKey": "the gateway checks keys, and a NetworkPolicy protects the engines",
    "servingEngineSpec.strategy": "set spec.rollout",
    "servingEngineSpec.sidecar": _ADAPTERS,
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    return [manifest for document in documents for manifest in _convert(document, options)]


def _convert(values: FieldReader, options: MigrationOptions) -> list[dict[str, Any]]:
    engines = values.section("servingEngineSpec")
    engines.skip("enableEngine", "servicePort")
    drafts = []
    for spec in engines.entries("modelSpec"):
        if spec.peek("enabled") is False:
            spec.drop_all("it is off")
            continue
        spec.skip("enabled")
        drafts.append(_read_model(values, engines, spec))
    router = values.section("routerSpec")
    logic = router.text("routingLogic")
    if logic in ("session", "kvaware", "prefixaware"):
        router.drop("sessionKey", "clients send a session in the header x-session-id")
    manifests = []
    for draft in assembly.join_roles(drafts):
        if logic in _PRESETS:
            draft.spec["routing"] = {"preset": _PRESETS[logic]}
        manifests.append(assembly.assemble(draft, options))
    return manifests


def _read_model(values: FieldReader, engines: FieldReader, spec: FieldReader) -> ModelDraft:
    name = spec.text("name")
    draft = ModelDraft(values, name=name)
    pool = PoolDraft(spec, selector={"model": name}, port=engines.integer("containerPort") or 8000)
    draft.pools = [pool]
    url = spec.text("modelURL")
    draft.uri = _claim_uri(url, spec) or assembly.model_uri(url, spec, "modelURL")[0]
    pool.min_replicas = spec.number("replicaCount")
    repository, tag = spec.text("repository"), spec.text("tag")
    pool.engine.image = f"{repository}:{tag}" if repository and tag else repository
    store_flags(_arguments(spec), pool, spec, "vllmConfig")
    draft.served_names = pool.engine.flags.served_names or [url]
    pool.engine.needs_key |= "vllmApiKey" in engines
    pool.engine.flags.revision = spec.text("modelRevision")
    if spec.flag("enableLoRA"):
        pool.engine.flags.adapters = pool.engine.flags.adapters or {}
    _read_storage(spec, draft)
    _read_resources(spec, pool)
    _read_variables(engines, spec, pool)
    _read_pod(engines, spec, pool)
    read_probes(engines, pool)
    _read_lmcache(spec.section("lmcacheConfig"), pool, draft)
    _read_scaling(spec.section("keda"), pool, draft)
    _read_ray(spec.section("raySpec"), spec, pool)
    for field, reason in _MODEL_REASONS.items():
        spec.drop(field, reason)
    return draft


def _read_ray(ray: FieldReader, spec: FieldReader, pool: PoolDraft) -> None:
    """Stores the nodes of a Ray cluster: its head, and as many workers as there are replicas.

    Charts before 0.1.8 have no `enabled`, and start Ray where the section is.
    """
    if not ray or ("enabled" in ray and not ray.flag("enabled")):
        spec.skip("raySpec")
        return
    nodes, shape = 1 + pool.min_replicas, pool.engine.flags.parallelism
    ranks = shape.get("tensor", 1) * shape.get("pipeline", 1)
    if nodes < 1 or ranks % nodes:
        message = f"{ranks} ranks of {nodes} Ray nodes cannot be shared evenly by the nodes of an instance"
        raise spec.error("raySpec", message, "write pools[].parallelism by hand, without Ray")
    pool.nodes, pool.min_replicas = nodes, 1
    spec.note("raySpec", f"one instance on {nodes} nodes, which a LeaderWorkerSet runs in the place of Ray")
    ray.drop("headNode", "the pods of an instance have one template")


def _claim_uri(url: str, spec: FieldReader) -> str:
    """Returns `pvc:CLAIM/PATH` for a path on the chart's volume; else an empty text."""
    if not url.startswith(_MOUNT):
        return ""
    claim = spec.text("pvcExistingClaimName")
    if not claim and "pvcStorage" in spec:
        claim = f"release-{spec.peek('name')}-storage-claim"
        spec.note(
            "modelURL",
            f"spec.model.uri names the chart's claim {claim}: write the name of your Helm release for `release`",
            Outcome.REQUIRED,
        )
    spec.skip("pvcExistingClaimName", "pvcStorage", "storageClass")
    return f"pvc:{claim}/{url.removeprefix(_MOUNT)}" if claim else ""


def _arguments(spec: FieldReader) -> list[str]:
    config = spec.section("vllmConfig")
    words = [f"{flag}={config.text(name)}" for name, flag in _FLAGS.items() if name in config]
    if "enableChunkedPrefill" in config:
        words.append(f"--{'' if config.flag('enableChunkedPrefill') else 'no-'}enable-chunked-prefill")
    if not config.flag("enablePrefixCaching"):
        config.note("enablePrefixCaching", "Fairlead turns prefix caching on: its routing builds on it")
    for name, flag in _SIZES.items():
        if name in config:
            words.append(f"{flag}={config.text(name)}")
    for name in ("v0", "v1"):
        config.drop(name, "vLLM has one engine since 0.11")
    if spec.flag("enableTool"):
        words.append("--enable-auto-tool-choice")
    if "toolCallParser" in spec:
        words.append(f"--tool-call-parser={spec.text('toolCallParser')}")
    return words + config.texts("extraArgs")


def _read_storage(spec: FieldReader, draft: ModelDraft) -> None:
    claim, size, storage_class = (
        spec.text("pvcExistingClaimName"),
        spec.text("pvcStorage"),
        spec.text("storageClass"),
    )
    if not draft.uri.startswith("hf://"):
        return
    if claim:
        draft.model["cache"] = {"claimName": claim}
    elif size:
        spec.note(
            "pvcStorage",
            "each pod has a volume of its own and downloads the weights; spec.model.cache.claimName shares a claim",
        )
        draft.model["cache"] = {"size": size} | ({"storageClassName": storage_class} if storage_class else {})


def _read_resources(spec: FieldReader, pool: PoolDraft) -> None:
    resources = spec.section("resources")
    if resources:
        read_resources(resources, pool)
    names = (
        ("requests", "cpu", "requestCPU"),
        ("requests", "memory", "requestMemory"),
        ("limits", "cpu", "limitCPU"),
        ("limits", "memory", "limitMemory"),
    )
    for kind, resource, name in names:
        if name in spec:
            pool.container.setdefault("resources", {}).setdefault(kind, {})[resource] = spec.value(name)
    count = spec.integer("requestGPU")
    if count:
        pool.devices.add(spec.text("requestGPUType") or "nvidia.com/gpu", count)
    for name in ("requestGPUMem", "requestGPUMemPercentage", "requestGPUCores", "limitGPUMem", "limitGPUCores"):
        spec.drop(name, "Fairlead requests whole devices")


def _read_variables(engines: FieldReader, spec: FieldReader, pool: PoolDraft) -> None:
    read_environment(engines, pool)
    read_environment(spec, pool)
    token = spec.peek("hf_token")
    if isinstance(token, dict):
        reference = spec.section("hf_token")
        source = {"name": reference.text("secretName"), "key": reference.text("secretKey")}
        pool.engine.env.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": source}})
    else:
        spec.drop("hf_token", "a manifest holds no token: put it into a Secret, named in model.credentials")
    sources = [{"secretRef": {"name": spec.section("envFromSecret").text("name")}}] if "envFromSecret" in spec else []
    if sources and sources[0]["secretRef"]["name"]:
        pool.container["envFrom"] = sources


def _read_pod(engines: FieldReader, spec: FieldReader, pool: PoolDraft) -> None:
    secret = spec.text("imagePullSecret")
    pool.engine.pull_secrets = [secret] if secret else []
    carried = ("serviceAccountName", "priorityClassName", "affinity")
    pool.pod |= {name: spec.value(name) for name in carried if spec.peek(name)}
    if "serviceAccountName" in pool.pod:
        spec.note("serviceAccountName", ACCOUNT_NOTE)
    runtime = spec.text("runtimeClassName") or engines.text("runtimeClassName")
    scheduler = engines.text("schedulerName")
    pool.pod |= assembly.without_empty({"runtimeClassName": runtime, "schedulerName": scheduler})
    pool.devices.signs += [f"runtimeClassName {runtime}"] if runtime else []
    own = spec.value("tolerations", default=[])
    shared = engines.value("tolerations", default=[]) if spec.text("tolerationsPolicy") != "override" else []
    if shared or own:
        pool.pod["tolerations"] = [*shared, *own]
    terms = spec.value("nodeSelectorTerms", default=[])
    if terms and "affinity" not in pool.pod:
        pool.devices.hints += labels_of_terms(terms)
        pool.pod["affinity"] = node_affinity(terms)
    for source, target, holder in (
        ("extraVolumes", "volumes", pool.pod),
        ("extraVolumeMounts", "volumeMounts", pool.container),
    ):
        entries = [*engines.entries(source), *spec.entries(source)]
        if entries:
            holder[target] = [entry.fields() for entry in entries]
    rename_taken(pool, spec)
    if volume := shared_memory(spec.value("shmSize"), spec, "shmSize"):
        pool.pod["volumes"] = [*pool.pod.get("volumes", []), volume]
    pool.pod |= assembly.without_empty({"securityContext": engines.value("securityContext")})
    names = {"securityContext": "containerSecurityContext", "imagePullPolicy": "imagePullPolicy"}
    pool.container |= assembly.without_empty({target: engines.value(name) for target, name in names.items()})
    labels = {"labels": spec.mapping("podLabels"), "annotations": spec.mapping("podAnnotations")}
    pool.metadata = assembly.without_empty(labels)


def _read_lmcache(cache: FieldReader, pool: PoolDraft, draft: ModelDraft) -> None:
    if cache.is_off():
        return
    role = _ROLES.get(cache.text("kvRole"))
    if cache.flag("enablePD") and role:
        pool.role, pool.name = role, role.lower()
        reason = "Fairlead moves KV from prefill to decode with vLLM's own NIXL connector"
    else:
        memory, disk = cache.text("cpuOffloadingBufferSize"), cache.text("diskOffloadingBufferSize")
        if memory and float(memory) > 0:
            offload = {"type": "LMCache", "memory": f"{memory}Gi"} | ({"disk": f"{disk}Gi"} if disk else {})
            draft.spec["kvCache"] = {"offload": offload}
        reason = "Fairlead starts LMCache with settings of its own"
    carried = ("enabled", "kvRole", "enablePD", "cpuOffloadingBufferSize", "diskOffloadingBufferSize")
    others = [name for name in cache.names() if name not in carried]
    cache.skip(*carried, *others)
    if others:
        cache.note("", f"{', '.join(others)}: {reason}", Outcome.DROPPED)


def _read_scaling(keda: FieldReader, pool: PoolDraft, draft: ModelDraft) -> None:
    if keda.is_off():
        return
    pool.min_replicas, pool.max_replicas = keda.number("minReplicaCount"), keda.integer("maxReplicaCount")
    window = keda.integer("cooldownPeriod")
    draft.spec |= assembly.scaling_spec([pool], stabilizationWindow=f"{window}s" if window else None)
    if keda.integer("idleReplicaCount") == 0:
        pool.min_replicas = 0
    for name in ("triggers", "pollingInterval", "initialCooldownPeriod", "fallback", "advanced"):
        keda.drop(name, assembly.SCALES_FOR_TARGETS)
