"""Workloads of Kubernetes with vLLM or SGLang: Deployments, StatefulSets and LeaderWorkerSets, such
as those of llm-d, and kthena's ModelServings. AIBrix's workloads have the same pod templates.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairlead_cli.migration import assembly
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.pod_spec import OtherEngine, claim_of_path, find_engine, other_engine, read_pod

KTHENA_GROUP: Final = "workload.serving.volcano.sh"
_GROUP_KIND: Final = "LeaderWorkerSet"
_KINDS: Final = {"Deployment": "apps", "StatefulSet": "apps", _GROUP_KIND: "leaderworkerset.x-k8s.io"}
_OWN_LABELS: Final[Mapping[str, Mapping[str, str]]] = {
    _GROUP_KIND: {"leaderworkerset.sigs.k8s.io/name": "{}", "leaderworkerset.sigs.k8s.io/worker-index": "0"},
    "ModelServing": {"modelserving.volcano.sh/name": "{}", "modelserving.volcano.sh/entry": "true"},
}
"""Labels that controllers give to the pods that answer requests."""
_ROLE_LABEL: Final = "llm-d.ai/role"
_ROLES: Final = {"prefill": "Prefill", "decode": "Decode"}
_SELECTED: Final = "the selector of the old workload has it: a Service with this label would take the new pods, too"
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


def is_workload(document: Mapping[str, Any]) -> bool:
    """Returns True for a workload whose pods have a container that runs vLLM or SGLang."""
    group, kind = _group_and_kind(document)
    if group == KTHENA_GROUP:
        return kind == "ModelServing"
    return _KINDS.get(kind) == group and find_engine(_pod_of(document, kind)) is not None


def other_engine_of(document: Mapping[str, Any]) -> OtherEngine | None:
    """Returns the engine in a workload that no conversion reads; None for other workloads."""
    group, kind = _group_and_kind(document)
    return other_engine(_pod_of(document, kind).entries("containers")) if _KINDS.get(kind) == group else None


def convert_models(documents: Sequence[FieldReader], options: assembly.MigrationOptions) -> list[dict[str, Any]]:
    """Returns a ModelDeployment for each workload; prefill and decode of one model become pools."""
    return [assembly.assemble(draft, options) for draft in assembly.join_roles(map(_read_workload, documents))]


def _read_workload(workload: FieldReader) -> assembly.ModelDraft:
    draft = assembly.ModelDraft(
        workload, **assembly.metadata_of(workload, own_prefixes=("deployment.kubernetes.io/", "llm-d.ai/"))
    )
    spec, kind = workload.section("spec"), str(workload.peek("kind"))
    pool = assembly.PoolDraft(spec, min_replicas=spec.number("replicas"))
    draft.pools = [pool]
    if kind == "ModelServing":
        _read_only_role(spec, pool)
    else:
        if kind == _GROUP_KIND:
            group = spec.section("leaderWorkerTemplate")
            pool.nodes = group.integer("size") or 1
            if "leaderTemplate" in group:
                group.drop("workerTemplate", _ONE_TEMPLATE)
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


def _read_only_role(spec: FieldReader, pool: assembly.PoolDraft) -> None:
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
    pool: assembly.PoolDraft,
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
    pool: assembly.PoolDraft,
    own_prefixes: tuple[str, ...],
    selected: Mapping[str, Any],
    reasons: Mapping[str, str],
) -> None:
    """Stores the labels and annotations of pods, but for those of the other system.

    own_prefixes: of labels and annotations that the other system reads.
    selected: the labels by which the workload finds its pods.
    reasons: name of a label or annotation to why it is not carried over.
    """
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


def read_source(draft: assembly.ModelDraft, spec: FieldReader) -> None:
    """Stores where the weights are, and the names of a model, from the engines' command lines."""
    first = draft.pools[0]
    source = next((pool.engine.flags.model for pool in draft.pools if pool.engine.flags.model), "")
    if not source:
        raise spec.error("template", "the command line names no model", "add --model to it")
    claim = claim_of_path(source, first) if source.startswith("/") else ""
    draft.uri = claim or assembly.model_uri(source, spec, "template")[0]
    draft.served_names = first.engine.flags.served_names or draft.served_names or [source if not claim else draft.name]


def selected_labels(spec: FieldReader, name: str = "selector") -> Mapping[str, Any]:
    """Returns the labels of a selector."""
    selector = spec.peek(name)
    return (selector.get("matchLabels") or {}) if isinstance(selector, dict) else {}
