"""AIBrix: Deployments with its labels, StormServices, PodAutoscalers and ModelAdapters."""

from collections.abc import Sequence
from typing import Any, Final

from fairlead_cli.migration.draft import (
    MigrationOptions,
    ModelDraft,
    PoolDraft,
    assemble,
    metadata_of,
    model_uri,
    scaling_spec,
)
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.pod_spec import claim_of_path, read_pod

NAME_LABEL: Final = "model.aibrix.ai/name"
_PORT_LABEL: Final = "model.aibrix.ai/port"
_OWN: Final = ("model.aibrix.ai/", "adapter.model.aibrix.ai/", "kpa.autoscaling.aibrix.ai/", "storm-service")
_ENGINE_WORDS: Final = ("vllm", "sglang")
_RUNTIME: Final = "aibrix/runtime"
"""In the image of AIBrix's sidecar."""
REASONS: Final = {
    "spec.selector": "Fairlead labels its pods itself",
    "spec.template.metadata": "Fairlead labels its pods itself",
    "spec.strategy": "set spec.rollout",
    "spec.updateStrategy": "set spec.rollout",
    "spec.rolloutStrategy": "set spec.rollout",
    "spec.stateful": "Fairlead's pools are stateless",
    "spec.metricsSources": "Fairlead scales for latency targets: set spec.slo",
    "spec.scalingStrategy": "Fairlead scales for latency targets: set spec.slo",
    "spec.progressDeadlineSeconds": "Fairlead reports progress in conditions",
    "spec.revisionHistoryLimit": "Fairlead keeps ten revisions",
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns a ModelDeployment for each Deployment and StormService."""
    of_kind = {kind: [d for d in documents if d.peek("kind") == kind] for kind in _KINDS}
    for service in of_kind["Service"]:
        service.drop("spec", "clients call Fairlead's gateway, which finds the pods of a model itself")
        metadata_of(service, own_prefixes=_OWN)
    converted = []
    targets: dict[tuple[str, str], ModelDraft] = {}
    for workload in (*of_kind["Deployment"], *of_kind["StormService"]):
        draft = _read_workload(workload)
        targets[(str(workload.peek("kind")), draft.name)] = draft
    for scaler in of_kind["PodAutoscaler"]:
        _read_scaler(scaler, targets)
    adapters = [_read_adapter(adapter) for adapter in of_kind["ModelAdapter"]]
    for draft in targets.values():
        flags = draft.pools[0].engine.flags
        if any(base in flags.served_names for base in adapters) and flags.adapters is None:
            flags.adapters = {}
        converted.append(assemble(draft, options))
    return converted


_KINDS: Final = ("Deployment", "StormService", "Service", "PodAutoscaler", "ModelAdapter")


def _read_workload(workload: FieldReader) -> ModelDraft:
    draft = ModelDraft(workload, **metadata_of(workload, own_prefixes=_OWN))
    spec = workload.section("spec")
    if workload.peek("kind") == "StormService":
        draft.pools = _read_roles(spec)
        draft.pools.sort(key=lambda pool: pool.role == "Prefill")
    else:
        pool = PoolDraft(spec)
        pool.min_replicas = _replicas(spec)
        _read_template(spec.section("template"), pool)
        draft.pools = [pool]
    first = draft.pools[0]
    flags = first.engine.flags
    source = next((pool.engine.flags.model for pool in draft.pools if pool.engine.flags.model), "")
    if not source:
        raise spec.error("template", "the command line names no model", "add --model to it")
    claim = claim_of_path(source, first) if source.startswith("/") else ""
    draft.uri = claim or model_uri(source, spec, "template")[0]
    draft.served_names = flags.served_names or [first.selector.get(NAME_LABEL, draft.name)]
    return draft


def _replicas(reader: FieldReader) -> int:
    replicas = reader.integer("replicas")
    return 1 if replicas is None else replicas


def _read_roles(spec: FieldReader) -> list[PoolDraft]:
    sets = _replicas(spec)
    pools = []
    for role in spec.section("template").section("spec").entries("roles"):
        name = role.text("name")
        pool = PoolDraft(role, name=name, role={"prefill": "Prefill", "decode": "Decode"}.get(name, "Serve"))
        if pool.role == "Serve":
            role.skip(*role.names())
            role.note("", f"{name}: Fairlead's gateway does the work of this role", Outcome.DROPPED)
            continue
        pool.min_replicas = sets * _replicas(role)
        if sets > 1:
            role.note("replicas", f"{sets} role sets are one pool of {pool.min_replicas} instances")
        role.drop("stateful", REASONS["spec.stateful"])
        for field in ("updateStrategy", "podGroupSize", "upgradeOrder"):
            role.drop(field, "Fairlead has its own order of rollouts")
        _read_template(role.section("template"), pool)
        pools.append(pool)
    if {pool.role for pool in pools} != {"Prefill", "Decode"}:
        raise spec.error("template", "there is no role prefill, or no role decode", "write this model by hand")
    spec.section("template").section("metadata").skip("labels")
    return pools


def _read_template(template: FieldReader, pool: PoolDraft) -> None:
    labels = template.section("metadata").mapping("labels")
    if NAME_LABEL in labels:
        pool.selector = {NAME_LABEL: str(labels[NAME_LABEL])}
        if pool.role == "Decode":
            pool.selector["role-name"] = pool.name
    pool.port = int(labels.get(_PORT_LABEL) or 8000)
    annotations = template.section("metadata").mapping("annotations")
    if annotations:
        pool.metadata["annotations"] = {name: str(value) for name, value in annotations.items()}
    pod = template.section("spec")
    containers = pod.entries("containers")
    engine = next((container for container in containers if _is_engine(container)), None)
    if engine is None:
        raise pod.error("containers", "no container runs vLLM or SGLang", "write the model by hand, as type: Custom")
    for container in containers:
        if container.path == engine.path:
            continue
        fields = {name: container.value(name) for name in container.names()}
        if _RUNTIME in str(fields.get("image", "")):
            container.note("", "AIBrix's sidecar serves AIBrix alone", Outcome.DROPPED)
        else:
            pool.pod.setdefault("containers", []).append(fields)
    read_pod(pod, engine, pool)


def _is_engine(container: FieldReader) -> bool:
    image = str(container.peek("image") or "")
    words = [*(container.peek("command") or ()), *(container.peek("args") or ())]
    text = " ".join(map(str, words))
    return _RUNTIME not in image and any(word in text or word in image for word in _ENGINE_WORDS)


def _read_scaler(scaler: FieldReader, targets: dict[tuple[str, str], ModelDraft]) -> None:
    metadata_of(scaler, own_prefixes=("autoscaling.aibrix.ai/", "kpa.autoscaling.", "apa.autoscaling."))
    spec = scaler.section("spec")
    reference = spec.section("scaleTargetRef")
    reference.skip("apiVersion", "kind", "name", "namespace")
    draft = targets.get((str(reference.peek("kind")), str(reference.peek("name"))))
    if draft is None:
        spec.skip(*spec.names())
        scaler.note("spec.scaleTargetRef", "its target is not among the files", Outcome.DROPPED)
        return
    role = spec.section("subTargetSelector").text("roleName")
    pools = [pool for pool in draft.pools if role in ("", pool.name)]
    low, high = spec.integer("minReplicas"), spec.integer("maxReplicas")
    for pool in pools:
        pool.min_replicas, pool.max_replicas = (1 if low is None else low), high
    schedules = [_read_schedule(entry, role) for entry in spec.entries("schedules")]
    found = scaling_spec(pools, schedules=schedules)
    if found and "autoscaling" in draft.spec:
        draft.spec["autoscaling"].setdefault("schedules", []).extend(schedules)
    else:
        draft.spec |= found


def _read_schedule(entry: FieldReader, role: str) -> dict[str, Any]:
    names = {"startTime": "begin", "endTime": "end", "timezone": "timeZone"}
    schedule: dict[str, Any] = {"name": entry.text("name")}
    if "daysOfWeek" in entry:
        schedule["days"] = entry.texts("daysOfWeek")
    schedule |= {new: entry.text(name) for name, new in names.items() if name in entry}
    schedule |= {name: entry.integer(name) for name in ("minReplicas", "maxReplicas") if name in entry}
    return schedule | ({"pool": role} if role else {})


def _read_adapter(adapter: FieldReader) -> str:
    """Returns the name of an adapter's base model."""
    metadata_of(adapter, own_prefixes=_OWN)
    spec = adapter.section("spec")
    base = spec.text("baseModel")
    spec.skip(*spec.names())
    adapter.note("spec", "load the adapter through the engine's own API; spec.adapters sets the slots", Outcome.DROPPED)
    return base
