"""Workloads of Kubernetes with vLLM or SGLang: Deployments, StatefulSets and LeaderWorkerSets, such
as those of llm-d, and kthena's ModelServings. AIBrix's workloads have the same pod templates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairlead.errors import BadInput
from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.pod_spec import claim_of_path, find_engine, other_engine, read_pod

KTHENA_GROUP: Final = "workload.serving.volcano.sh"
_GROUP_KIND: Final = "LeaderWorkerSet"
_KINDS: Final = {"Deployment": "apps", "StatefulSet": "apps", _GROUP_KIND: "leaderworkerset.x-k8s.io"}
SCALER_KINDS: Final = ("HorizontalPodAutoscaler", "ScaledObject")
_SCALER_FIELDS: Final = (
    *("metrics", "behavior", "targetCPUUtilizationPercentage", "triggers", "pollingInterval", "fallback", "advanced"),
    "initialCooldownPeriod",
)
_KEDA_MAXIMUM: Final = 100
_OWN_LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    _GROUP_KIND: {"leaderworkerset.sigs.k8s.io/name": "{}", "leaderworkerset.sigs.k8s.io/worker-index": "0"},
    "ModelServing": {"modelserving.volcano.sh/name": "{}", "modelserving.volcano.sh/entry": "true"},
}
"""Labels that controllers give to the pods that answer requests."""
_ROLE_LABEL: Final = "llm-d.ai/role"
_ROLES: Final = {"prefill": "Prefill", "decode": "Decode"}
_SELECTED: Final = "the selector of the old workload has it: a Service with this label would take the new pods, too"
_FOR_WORKLOADS: Final = ("kueue.x-k8s.io/", "leaderworkerset.sigs.k8s.io/")
_NOT_ON_WORKLOADS: Final = (
    "it stays on the ModelDeployment, and does not reach the workload that Fairlead makes; labels of pods are in "
    "pools[].template.metadata"
)
_ONE_TEMPLATE: Final = "Fairlead's pods of one instance have one template"
REASONS: Final = {
    "spec.selector": "Fairlead labels its pods itself",
    **dict.fromkeys(
        ("spec.strategy", "spec.updateStrategy", "spec.rolloutStrategy", "spec.minReadySeconds"), "set spec.rollout"
    ),
    "spec.podManagementPolicy": "Fairlead's pools are stateless",
    "spec.serviceName": "clients call Fairlead's gateway, which finds the pods of a model itself",
    "spec.startupPolicy": "Fairlead starts the pods of an instance together",
    "spec.networkConfig": "Fairlead sets the addresses of the nodes of an instance",
    "spec.leaderWorkerTemplate.restartPolicy": "Fairlead restarts an instance as a whole",
    "spec.progressDeadlineSeconds": "Fairlead reports progress in conditions",
    "spec.revisionHistoryLimit": "Fairlead keeps ten revisions",
    "spec.recoveryPolicy": "Fairlead restarts an instance as a whole",
    "spec.template.restartGracePeriodSeconds": "Fairlead restarts an instance as a whole",
    "spec.template.gangPolicy": "Fairlead starts the pods of an instance together",
}


Target = tuple[str, str, str]
"""Namespace, kind and name of a workload."""


def is_workload(document: Mapping[str, Any]) -> bool:
    """Returns True for a workload whose pods have a container that runs vLLM or SGLang."""
    group, kind = _group_and_kind(document)
    if group == KTHENA_GROUP:
        return kind == "ModelServing"
    return _KINDS.get(kind) == group and find_engine(_pod_of(document, kind)) is not None


def unread_engine(document: Mapping[str, Any]) -> str:
    """Returns why a workload with an engine is not converted, and what to do; empty for others."""
    kind = str(document.get("kind", ""))
    try:
        pod = FieldReader.of_document(document, "").section("spec") if kind == "Pod" else _pod_of(document, kind)
        other, engine = other_engine(pod.entries("containers")), find_engine(pod)
    except BadInput:
        return ""  # of another form: no workload
    if other is not None:
        return f"{other.problem}: {other.hint}"
    if engine is None or kind in _KINDS or kind == "Job":
        return ""
    return f"convert reads no {kind}, only {', '.join(_KINDS)}: give it as one of these, or write the model by hand"


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns a ModelDeployment for each workload; prefill and decode of one model become pools."""
    scalers = [document for document in documents if document.peek("kind") in SCALER_KINDS]
    drafts = {target_key(one): _read_workload(one) for one in documents if one not in scalers}
    for scaler in scalers:
        read_scaler(scaler, drafts)
    return [assembly.assemble(draft, options) for draft in assembly.join_roles(drafts.values())]


def read_scaler(scaler: FieldReader, targets: Mapping[Target, ModelDraft], role: str = "") -> ModelDraft | None:
    """Stores the bounds of an autoscaler in the model of its target, and returns the model.

    role: the only pool that it scales; empty for all.
    Returns None, with a note, for one whose target is not among the files.
    """
    assembly.metadata_of(scaler, own_prefixes=("autoscaling.aibrix.ai/", "kpa.autoscaling.", "apa.autoscaling."))
    spec = scaler.section("spec")
    spec.section("scaleTargetRef").skip("apiVersion", "kind", "name", "namespace", "envSourceContainerName")
    draft = targets.get(scaler_target(scaler))
    if draft is None:
        spec.skip(*spec.names())
        scaler.note("spec.scaleTargetRef", "its target is not among the files", Outcome.DROPPED)
        return None
    pools = [pool for pool in draft.pools if role in ("", pool.name)]
    low, high = scaler_bounds(scaler.peek("spec") or {}, str(scaler.peek("kind")))
    for pool in pools:
        pool.min_replicas, pool.max_replicas = low, max(low, high)
    spec.skip("minReplicas", "maxReplicas", "minReplicaCount", "maxReplicaCount", "idleReplicaCount")
    window = spec.integer("cooldownPeriod")
    for field in _SCALER_FIELDS:
        spec.drop(field, assembly.SCALES_FOR_TARGETS)
    found = assembly.scaling_spec(pools, stabilizationWindow=f"{window}s" if window else None)
    draft.spec = found | draft.spec
    return draft


def target_key(workload: FieldReader) -> Target:
    metadata = workload.peek("metadata") or {}
    return str(metadata.get("namespace") or ""), str(workload.peek("kind")), str(metadata.get("name"))


def scaler_target(scaler: FieldReader) -> Target:
    reference = (scaler.peek("spec") or {}).get("scaleTargetRef") or {}
    return target_key(scaler)[0], str(reference.get("kind") or "Deployment"), str(reference.get("name"))


def scaler_bounds(spec: Mapping[str, Any], kind: str) -> tuple[int, int]:
    """Returns the least and the greatest number of pods of an autoscaler, with its defaults."""
    if kind != "ScaledObject":
        low = spec.get("minReplicas")
        return 1 if low is None else int(low), int(spec.get("maxReplicas") or 1)
    low = spec.get("idleReplicaCount", spec.get("minReplicaCount"))
    high = spec.get("maxReplicaCount")
    return int(low or 0), _KEDA_MAXIMUM if high is None else int(high)


def _read_workload(workload: FieldReader) -> ModelDraft:
    draft = ModelDraft(
        workload, **assembly.metadata_of(workload, own_prefixes=("deployment.kubernetes.io/", "llm-d.ai/"))
    )
    for name in (*draft.labels, *draft.annotations):
        if name.startswith(_FOR_WORKLOADS):
            workload.note("metadata", f"{name}: {_NOT_ON_WORKLOADS}", Outcome.REQUIRED)
    spec, kind = workload.section("spec"), str(workload.peek("kind"))
    pool = PoolDraft(spec, min_replicas=spec.number("replicas"))
    draft.pools = [pool]
    if kind == "ModelServing":
        _read_only_role(spec, pool)
    else:
        if kind == _GROUP_KIND:
            group = spec.section("leaderWorkerTemplate")
            pool.nodes = group.integer("size") or 1
            if "leaderTemplate" in group:
                group.drop("workerTemplate", _ONE_TEMPLATE)
        for claim in spec.entries("volumeClaimTemplates"):
            claim_spec, name = claim.value("spec"), claim.section("metadata").text("name")
            claim.skip(*claim.names())
            pool.claim_volumes.append({"name": name, "ephemeral": {"volumeClaimTemplate": {"spec": claim_spec}}})
            claim.note("", "each pod has a volume of this kind, which ends with the pod: its files are loaded again")
        template = _template_of(spec, kind)
        labels = template.section("metadata").peek("labels") or {}
        role = str(labels.get(_ROLE_LABEL) or "")
        if role in _ROLES:
            pool.role, pool.name = _ROLES[role], role
        pool.selector = {name: str(value) for name, value in (selected_labels(spec) or labels).items()}
        read_template(template, pool, own_prefixes=("llm-d.ai/",), selected=selected_labels(spec))
    if kind in _OWN_LABELS:
        pool.selector = {name: value.format(draft.name) for name, value in _OWN_LABELS[kind].items()}
    read_source(draft, spec)
    return draft


def _group_and_kind(document: Mapping[str, Any]) -> tuple[str, str]:
    return str(document.get("apiVersion", "")).partition("/")[0], str(document.get("kind", ""))


def _pod_of(document: Mapping[str, Any], kind: str) -> FieldReader:
    return _template_of(FieldReader.of_document(document, "").section("spec"), kind).section("spec")


def _template_of(spec: FieldReader, kind: str) -> FieldReader:
    """Returns the template of the pods that run the engine's server."""
    if kind != _GROUP_KIND:
        return spec.section("template")
    group = spec.section("leaderWorkerTemplate")
    return group.section("leaderTemplate" if "leaderTemplate" in group else "workerTemplate")


def _read_only_role(spec: FieldReader, pool: PoolDraft) -> None:
    """Stores the only role of a ModelServing. Raises BadInput for one with several roles."""
    template = spec.section("template")
    roles = template.entries("roles")
    if len(roles) != 1:
        names = ", ".join(str(role.peek("name")) for role in roles)
        raise template.error("roles", f"there are the roles {names}", "write a pool for each by hand")
    (role,) = roles
    pool.min_replicas *= role.number("replicas")
    pool.nodes = 1 + (role.integer("workerReplicas") or 0)
    role.skip("name")
    role.drop("workerTemplate", _ONE_TEMPLATE)
    if "schedulerName" in spec:
        pool.pod["schedulerName"] = spec.text("schedulerName")
    read_template(role.section("entryTemplate"), pool)


def read_template(
    template: FieldReader,
    pool: PoolDraft,
    *,
    own_prefixes: tuple[str, ...] = (),
    selected: Mapping[str, Any] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> None:
    """Stores a pod template. Raises BadInput if none of its containers runs an engine.

    own_prefixes, selected, reasons: see `read_pod_metadata`.
    """
    read_pod_metadata(template.section("metadata"), pool, own_prefixes, selected or {}, reasons or {})
    pod = template.section("spec")
    engine = find_engine(pod, mentioned=True)
    if engine is None:
        other = other_engine(pod.entries("containers"))
        if other is not None:
            raise pod.error("containers", other.problem, other.hint)
        raise pod.error("containers", "no container runs vLLM or SGLang", "write the model by hand, as type: Custom")
    ports = {str(port.get("name")): port.get("containerPort") for port in engine.peek("ports") or ()}
    pool.port = int(ports.get("http") or next(iter(ports.values()), None) or pool.port)
    read_pod(pod, engine, pool)


def read_pod_metadata(
    metadata: FieldReader,
    pool: PoolDraft,
    own_prefixes: tuple[str, ...],
    selected: Mapping[str, Any],
    reasons: Mapping[str, str],
) -> None:
    """Stores the labels and annotations of pods, but for those of the other system.

    own_prefixes: of labels and annotations that the other system reads.
    selected: the labels by which the workload finds its pods.
    reasons: name of a label or annotation to why it is not carried over.
    """
    pool.labels |= {name: str(value) for name, value in (metadata.peek("labels") or {}).items()}
    for kind in ("labels", "annotations"):
        values = metadata.section(kind)
        kept: dict[str, str] = {}
        dropped: dict[str, list[str]] = {}
        for name in values.names():
            reason = reasons.get(name, "the other system reads them" if name.startswith(own_prefixes) else "")
            if kind == "labels" and name in selected and not reason:
                reason = _SELECTED
            if reason:
                values.skip(name)
                dropped.setdefault(reason, []).append(name)
            else:
                kept[name] = values.text(name)
        for reason, names in dropped.items():
            metadata.note(kind, f"{', '.join(names)}: {reason}", Outcome.DROPPED)
        if kept:
            pool.metadata[kind] = pool.metadata.get(kind, {}) | kept


def read_source(draft: ModelDraft, spec: FieldReader) -> None:
    """Stores where the weights are, and the names of a model, from the engines' command lines."""
    first = draft.pools[0]
    source = next((pool.engine.flags.model for pool in draft.pools if pool.engine.flags.model), "")
    if not source:
        raise spec.error("template", "the command line names no model", "add --model to it")
    claim = claim_of_path(source, first) if source.startswith("/") else ""
    draft.uri = claim or assembly.model_uri(source, spec, "template")[0]
    draft.served_names = first.engine.flags.served_names or draft.served_names or [source if not claim else draft.name]


def selected_labels(spec: FieldReader, name: str = "selector") -> Mapping[str, Any]:
    selector = spec.peek(name)
    return (selector.get("matchLabels") or {}) if isinstance(selector, dict) else {}
