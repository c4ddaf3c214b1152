"""AIBrix: Deployments with its labels, StormServices, PodAutoscalers and ModelAdapters."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fairlead.distribution import ADDRESSES
from fairlead_cli.migration import assembly
from fairlead_cli.migration.adapters import AdapterDraft, adapter_source, assemble_adapter, can_have_adapters, slots_of
from fairlead_cli.migration.drafts import Devices, MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.formats import workloads
from fairlead_cli.migration.formats.workloads import (
    SCALER_KINDS,
    read_pod_metadata,
    read_scaler,
    read_source,
    read_template,
    selected_labels,
)
from fairlead_cli.migration.pod_spec import find_engine

NAME_LABEL: Final = "model.aibrix.ai/name"
_PORT_LABEL: Final = "model.aibrix.ai/port"
_OWN: Final = ("model.aibrix.ai/", "adapter.model.aibrix.ai/", "kpa.autoscaling.aibrix.ai/", "storm-service")
_CONFIG: Final = "model.aibrix.ai/config"
_CONFIG_REASON: Final = (
    "set spec.routing.preset for its routingStrategy; its requestsPerSecond has no counterpart, since Fairlead queues "
    "by latency target"
)
_JOIN: Final = (
    f"write them as pools of one model (documentation: {ADDRESSES.documentation_page('how-to/mixed-gpus.html')}), "
    "or the second gets no requests by it"
)
_REASONS: Final = {_CONFIG: _CONFIG_REASON}
REASONS: Final = workloads.REASONS | {
    "spec.stateful": "Fairlead's pools are stateless",
    "spec.metricsSources": assembly.SCALES_FOR_TARGETS,
    "spec.scalingStrategy": assembly.SCALES_FOR_TARGETS,
}

_KINDS: Final = ("Deployment", "StormService", "Service", "PodAutoscaler", "ModelAdapter", *SCALER_KINDS)


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns a ModelDeployment for each Deployment and StormService, and their ModelAdapters."""
    of_kind = {kind: [d for d in documents if d.peek("kind") == kind] for kind in _KINDS}
    for service in of_kind["Service"]:
        service.drop("spec", "clients call Fairlead's gateway, which finds the pods of a model itself")
        assembly.metadata_of(service, own_prefixes=_OWN)
    converted = []
    targets: dict[workloads.Target, ModelDraft] = {}
    for workload in (*of_kind["Deployment"], *of_kind["StormService"]):
        draft = _read_workload(workload)
        targets[workloads.target_key(workload)] = draft
    for scaler in of_kind["PodAutoscaler"]:
        _read_scaler(scaler, targets)
    for kind in SCALER_KINDS:
        for scaler in of_kind[kind]:
            read_scaler(scaler, targets)
    drafts = _join_models(list(targets.values()), options)
    adapters = [_convert_adapter(adapter, drafts, options) for adapter in of_kind["ModelAdapter"]]
    converted += [assembly.assemble(draft, options) for draft in drafts]
    return converted + [adapter for adapter in adapters if adapter is not None]


def _join_models(drafts: Sequence[ModelDraft], options: MigrationOptions) -> list[ModelDraft]:
    """Returns the models; external ones that clients call by one name are pools of one model."""
    joined: dict[tuple[str, ...], ModelDraft] = {}
    for draft in drafts:
        first = joined.setdefault((draft.namespace, *draft.served_names), draft)
        if first is draft:
            continue
        name = draft.served_names[0]
        if options.external and len(first.pools[0].selector) and draft.pools[0].role == "Serve":
            _join_pools(first, draft, name)
        else:
            joined[(draft.namespace, draft.name)] = draft
            draft.reader.note("", f"{first.name} has the name {name}, too: {_JOIN}", Outcome.REQUIRED)
    return list(joined.values())


def _join_pools(first: ModelDraft, other: ModelDraft, name: str) -> None:
    """Adds the pool of `other` to `first`, the model `name`.

    Equal selectors are one pool; if its hints at an accelerator differ, that is unknown.
    """
    if len(first.pools) == 1:
        first.pools[0].name = first.name
        first.pools[0].selector = _all_labels(first)
    other.pools[0].name, other.pools[0].selector = other.name, _all_labels(other)
    if all(pool.selector != other.pools[0].selector for pool in first.pools):
        first.pools += other.pools
    elif other.pools[0].devices.hints != first.pools[0].devices.hints:
        first.pools[0].devices = Devices(unknown=True)
    first.reader.note("", f"{first.name} and {other.name} are pools of one model, since both serve {name}")
    first.name = name


def _all_labels(draft: ModelDraft) -> dict[str, str]:
    selected = selected_labels(draft.reader.section("spec"))
    return {label: str(value) for label, value in selected.items()} or draft.pools[0].selector


def _read_workload(workload: FieldReader) -> ModelDraft:
    draft = ModelDraft(workload, **assembly.metadata_of(workload, own_prefixes=_OWN))
    spec = workload.section("spec")
    if workload.peek("kind") == "StormService":
        draft.pools = _read_roles(spec)
        draft.pools.sort(key=lambda pool: pool.role == "Prefill")
    else:
        pool = PoolDraft(spec, min_replicas=spec.number("replicas"))
        _read_template(spec.section("template"), pool, selected_labels(spec))
        draft.pools = [pool]
    draft.served_names = [draft.pools[0].selector.get(NAME_LABEL, draft.name)]
    read_source(draft, spec)
    return draft


def _read_roles(spec: FieldReader) -> list[PoolDraft]:
    """Returns the pools of a StormService: prefill and decode, or its only role with an engine."""
    sets, pools = spec.number("replicas"), []
    template = spec.section("template")
    for role in template.section("spec").entries("roles"):
        name = role.text("name")
        pool = PoolDraft(role, name=name, role={"prefill": "Prefill", "decode": "Decode"}.get(name, "Serve"))
        if pool.role == "Serve" and find_engine(role.section("template").section("spec")) is None:
            role.skip(*role.names())
            role.note("", f"{name}: Fairlead's gateway does the work of this role", Outcome.DROPPED)
            continue
        pool.min_replicas = sets * role.number("replicas")
        if sets > 1:
            role.note("replicas", f"{sets} role sets are one pool of {pool.min_replicas} instances")
        role.drop("stateful", REASONS["spec.stateful"])
        for field in ("updateStrategy", "podGroupSize", "upgradeOrder"):
            role.drop(field, "Fairlead has its own order of rollouts")
        _read_template(role.section("template"), pool, selected_labels(spec))
        pools.append(pool)
    if [pool.role for pool in pools] == ["Serve"]:
        pools[0].name = "main"
    elif {pool.role for pool in pools} != {"Prefill", "Decode"}:
        names = ", ".join(pool.name for pool in pools) or "none"
        message = f"its roles with engines are {names}: not prefill and decode, and not one alone"
        raise spec.error("template", message, "write this model by hand")
    for pool in pools:
        read_pod_metadata(template.section("metadata"), pool, _OWN, selected_labels(spec), _REASONS)
    return pools


def _read_template(template: FieldReader, pool: PoolDraft, selected: Mapping[str, Any]) -> None:
    read_template(template, pool, own_prefixes=_OWN, selected=selected, reasons=_REASONS)
    labels = template.section("metadata").peek("labels") or {}
    if NAME_LABEL in labels:
        pool.selector = {NAME_LABEL: str(labels[NAME_LABEL])}
        if pool.role == "Decode":
            pool.selector["role-name"] = pool.name
    pool.port = int(labels.get(_PORT_LABEL) or 8000)


def _read_scaler(scaler: FieldReader, targets: Mapping[workloads.Target, ModelDraft]) -> None:
    """Stores the bounds and the schedules of a PodAutoscaler."""
    spec = scaler.section("spec")
    role = spec.section("subTargetSelector").text("roleName")
    draft = read_scaler(scaler, targets, role)
    schedules = [_read_schedule(entry, role) for entry in spec.entries("schedules")] if draft else []
    if draft is None or not schedules:
        return
    if "autoscaling" in draft.spec:
        draft.spec["autoscaling"].setdefault("schedules", []).extend(schedules)
    else:
        draft.spec |= assembly.scaling_spec(draft.pools, schedules=schedules)


def _read_schedule(entry: FieldReader, role: str) -> dict[str, Any]:
    names = {"startTime": "begin", "endTime": "end", "timezone": "timeZone"}
    schedule: dict[str, Any] = {"name": entry.text("name")}
    if "daysOfWeek" in entry:
        schedule["days"] = entry.texts("daysOfWeek")
    schedule |= {new: entry.text(name) for name, new in names.items() if name in entry}
    schedule |= {name: entry.integer(name) for name in ("minReplicas", "maxReplicas") if name in entry}
    return schedule | ({"pool": role} if role else {})


def _convert_adapter(
    adapter: FieldReader, drafts: Sequence[ModelDraft], options: MigrationOptions
) -> dict[str, Any] | None:
    """Returns the ModelAdapter; None, with a note, if there is none for it."""
    metadata, spec = assembly.metadata_of(adapter, own_prefixes=_OWN), adapter.section("spec")
    names = {spec.text("baseModel"), str(selected_labels(spec, "podSelector").get(NAME_LABEL) or "")} - {""}
    spec.drop("podSelector", "the adapter belongs to its base")
    spec.drop("schedulerName", "gateways choose the engines")
    spec.drop(
        "credentialsSecretRef",
        "name a Secret in model.credentials of the model, or for stores in adapters.download.credentials",
    )
    spec.drop("additionalConfig", "Fairlead's engines ask for no key")
    url, replicas = spec.text("artifactURL"), spec.integer("replicas")
    base = next(
        (one for one in drafts if one.namespace == metadata["namespace"] and names & {one.name, *one.served_names}),
        None,
    )
    if base is None:
        spec.note("baseModel", "its base is not among the files: give it, too", Outcome.LEFT_OUT)
        return None
    if not can_have_adapters(base, adapter, external=options.external):
        return None
    slots_of(base.pools[0])
    source = adapter_source(url, spec, "artifactURL", base.pools[0])
    if not source:
        return None
    if replicas is None:
        spec.note("replicas", "AIBrix loads it into all engines; Fairlead does when a request names it, or by replicas")
    return assemble_adapter(
        AdapterDraft(
            base=assembly.manifest_name(base.name, options),
            source=source,
            served_names=[metadata["name"]],
            replicas=replicas,
            **metadata,
        )
    )
