"""KubeAI: `Model` of `kubeai.org/v1`."""

from collections.abc import Sequence
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.adapters import read_adapters
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader
from fairlead_cli.migration.pod_spec import store_flags

REASONS: Final = {
    "spec.features": "the gateway serves the engine's APIs for JSON requests; it refuses forms with files, as for SpeechToText",
    "spec.targetRequests": assembly.SCALES_FOR_TARGETS,
    "spec.scaleDownDelaySeconds": "without minReplicas below maxReplicas nothing is scaled down",
    "spec.owner": "/v1/models names Fairlead as the owner",
    "spec.cacheProfile": "set spec.model.cache: a claim that all pods share, or a volume for each pod",
    "spec.files": "put them into a ConfigMap, and mount it in pools[].template",
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    return [manifest for document in documents for manifest in _convert(document, options)]


def _convert(document: FieldReader, options: MigrationOptions) -> list[dict[str, Any]]:
    spec = document.section("spec")
    engine = spec.text("engine")
    if engine != "VLLM" and not options.external:
        raise spec.error("engine", f"Fairlead does not run {engine}", "route to it as it is: --external")
    pool = PoolDraft(spec)
    draft = ModelDraft(document, pools=[pool], **assembly.metadata_of(document, own_prefixes=("features.kubeai.org/",)))
    draft.served_names = [draft.name]
    pool.selector = {"model": draft.name, "app.kubernetes.io/managed-by": "kubeai"}
    url = spec.text("url")
    if options.external and not url.startswith(("hf://", "pvc://", "s3://", "gs://")):
        url = f"file:///{url.partition('://')[2]}"
    draft.uri, _ = assembly.model_uri(url, spec, "url")
    _read_engine(spec, pool)
    profile, _, count = spec.text("resourceProfile").partition(":")
    pool.devices.is_cpu = profile.startswith("cpu")
    if profile and not pool.devices.is_cpu:
        pool.devices.hints.append(profile)
        pool.devices.resource, pool.devices.count = (
            "gpu",
            int(count) if count.isascii() and count.isdigit() and len(count) < 6 else 1,
        )
    if profile:
        spec.note("resourceProfile", "its CPU, memory, node labels and tolerations are in KubeAI's configuration")
    _read_scaling(spec, pool, draft)
    _read_routing(spec.section("loadBalancing"), draft)
    # Clients name adapters after the model, as KubeAI's do.
    adapters = []
    if "adapters" in spec:
        adapters = read_adapters(spec.entries("adapters"), "url", draft, options, served=f"{draft.name}_{{}}")
    return [assembly.assemble(draft, options), *adapters]


def _read_engine(spec: FieldReader, pool: PoolDraft) -> None:
    pool.engine.image = spec.text("image")
    store_flags(spec.texts("args"), pool, spec, "args")
    pool.engine.env = [{"name": name, "value": str(value)} for name, value in spec.mapping("env").items()]
    if "envFrom" in spec:
        pool.container["envFrom"] = spec.value("envFrom")
    if "priorityClassName" in spec:
        pool.pod["priorityClassName"] = spec.text("priorityClassName")


def _read_scaling(spec: FieldReader, pool: PoolDraft, draft: ModelDraft) -> None:
    low, high, replicas = spec.integer("minReplicas") or 0, spec.integer("maxReplicas"), spec.integer("replicas")
    if spec.flag("autoscalingDisabled"):
        pool.min_replicas = 1 if replicas is None else replicas
        return
    if high is None:
        high = max(low, replicas or 0, 1)
        spec.note("maxReplicas", f"it is left out, so it becomes {high}: write the number that your devices allow")
    pool.min_replicas, pool.max_replicas = low, high
    delay = spec.integer("scaleDownDelaySeconds") if high > low else None
    draft.spec |= assembly.scaling_spec([pool], stabilizationWindow=f"{delay}s" if delay else None)


def _read_routing(balancing: FieldReader, draft: ModelDraft) -> None:
    if balancing.text("strategy") == "PrefixHash":
        draft.spec["routing"] = {"preset": "chwbl"}
        balancing.drop("prefixHash", "the preset chwbl has KubeAI's default settings")
    elif balancing:
        balancing.note("strategy", "Fairlead's default preset, dual-hash, also prefers cached prefixes")
        balancing.skip("prefixHash")
