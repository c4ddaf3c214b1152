"""Checks of the cluster below Fairlead: API server, permissions, admission, CRDs."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fairlead import units
from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.api.v1alpha1 import GROUP, VERSION
from fairlead.kube.resources import Manifest, key_of, metadata_of, name_of
from fairlead_cli.cluster.access.permissions import (
    COMPONENTS_WITH_PERMISSIONS,
    permissions_to_check,
    permissions_to_install,
)
from fairlead_cli.cluster.checks.check import (
    OLDEST_KUBERNETES,
    CheckOutcome,
    Verdict,
    failed,
    known,
    passed,
    unknown,
    verdict_of,
    warned,
)
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, VERSION_LABEL, desired_replicas
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import (
    MissingValue,
    is_condition_true,
    label_of,
    namespace_name,
    spec_of,
    status_of,
)

_MAX_SKEW_SECONDS: Final = 10.0
_DEFAULT_CLASS: Final = "storageclass.kubernetes.io/is-default-class"
_MAX_SHOWN_FIELDS: Final = 4


def check_api_reachable(facts: ClusterFacts) -> Verdict:
    """Passes always, because facts exist only when the API server answers. The note names the
    server.
    """
    return passed(f"{facts.server}, {facts.access_source}")


def check_api_version(facts: ClusterFacts) -> Verdict:
    """Fails for a Kubernetes before OLDEST_KUBERNETES. Vendors' suffixes, as in
    ``v1.33.5-eks-1-2``, do not matter.
    """
    version = re.match(r"v?(\d+)\.(\d+)", facts.version)
    if version is None:
        return unknown(f"the API server calls itself {facts.version!r}")
    if (int(version[1]), int(version[2])) < OLDEST_KUBERNETES:
        return failed(f"it is {facts.version}")
    return passed(facts.version)


def check_clock_skew(facts: ClusterFacts) -> Verdict:
    """Warns when this machine's clock is more than _MAX_SKEW_SECONDS off the API server's."""
    skew = facts.skew_seconds
    if skew is None:
        return unknown("the API server's answers carry no date")
    if abs(skew) > _MAX_SKEW_SECONDS:
        return warned(f"this machine is {abs(skew):.0f} s {'ahead' if skew > 0 else 'behind'}")
    return passed()


def check_read_permissions(facts: ClusterFacts, *, before_install: bool = False) -> Verdict:
    """Warns about missing permissions to read; the checks that need them are unknown."""
    needed = permissions_to_check(facts.install_namespace, before_install=before_install)
    denied = [str(permission) for permission in needed if facts.permissions.get(permission) is False]
    return warned(*(f"you may not {permission}" for permission in denied)) if denied else passed()


def check_install_permissions(facts: ClusterFacts) -> Verdict:
    """Fails for each missing permission to create the objects of the chart."""
    exists = facts.namespace_exists is True
    answers = {
        permission: facts.permissions.get(permission)
        for permission in permissions_to_install(facts.install_namespace, exists)
    }
    doubts = [
        f"{permission}: {answer.reason}" for permission, answer in answers.items() if isinstance(answer, MissingValue)
    ]
    if isinstance(facts.namespace_exists, MissingValue):
        doubts.append(f"the namespace {facts.install_namespace}: {facts.namespace_exists.reason}")
    return verdict_of(
        (f"you may not {permission}" for permission, answer in answers.items() if answer is False), doubts
    )


def check_pod_security(facts: ClusterFacts) -> Verdict:
    """Fails when admission refused the dry run of a pod like the chart's.

    Unknown when it was not tried or got no answer. Passes when the namespace does not exist yet,
    since nothing can be tried there.
    """
    if not known(facts.namespace_exists):
        return passed(f"not tried: the namespace {facts.install_namespace} does not exist yet")
    if facts.dry_run_refusal is None or isinstance(facts.dry_run_refusal, MissingValue):
        return unknown(facts.dry_run_refusal or "no dry run was made")
    return failed(facts.dry_run_refusal) if facts.dry_run_refusal else passed()


def check_quotas(facts: ClusterFacts) -> Verdict:
    """Fails for used-up quotas in the namespaces of installation and models."""
    namespaces = {facts.install_namespace}
    for objects in (facts.models, facts.deployments):
        namespaces |= set() if isinstance(objects, MissingValue) else {namespace_name(quota) for quota in objects}
    return verdict_of(
        f"{key_of(quota)}: {resource} is used up ({used} of {limit})"
        for quota in known(facts.quotas)
        if namespace_name(quota) in namespaces
        for resource, used, limit in _used_up(quota)
    )


def _used_up(quota: Manifest) -> Iterator[tuple[str, str, str]]:
    hard, used = status_of(quota).get("hard") or {}, status_of(quota).get("used") or {}
    for resource, limit_text in hard.items():
        used_amount, limit = units.parse_resource(str(used.get(resource, "0"))), units.parse_resource(str(limit_text))
        if used_amount is not None and limit is not None and used_amount >= limit and (limit > 0 or used_amount > 0):
            yield resource, str(used[resource]), str(limit_text)


def check_accelerators(facts: ClusterFacts) -> Verdict:
    """Warns when no node offers a resource of any AcceleratorClass, built in or applied."""
    nodes = known(facts.nodes)
    names = {str(class_.spec.resource) for class_ in builtin_accelerators().values() if class_.spec.resource}
    if not isinstance(facts.accelerator_classes, MissingValue):
        names |= {
            str(spec_of(class_)["resource"]) for class_ in facts.accelerator_classes if spec_of(class_).get("resource")
        }
    offered: dict[str, float] = {}
    for node in nodes:
        for name, count in (status_of(node).get("allocatable") or {}).items():
            if name in names and (units.parse_resource(str(count)) or 0.0) > 0:
                offered[name] = offered.get(name, 0.0) + (units.parse_resource(str(count)) or 0.0)
    if not offered:
        return warned(f"none of {len(nodes)} nodes does; only models without accelerators can run")
    return passed(", ".join(f"{count:.0f} {name}" for name, count in sorted(offered.items())))


def check_storage_class(facts: ClusterFacts) -> Verdict:
    """Warns without a default StorageClass."""
    for storage_class in known(facts.storage_classes):
        if (metadata_of(storage_class).get("annotations") or {}).get(_DEFAULT_CLASS) == "true":
            return passed(name_of(storage_class))
    return warned("claims that name no class stay unbound")


def check_leader_worker_sets(facts: ClusterFacts) -> Verdict:
    """Checks that the cluster has LeaderWorkerSets: fails if a model needs them, else warns."""
    if known(facts.leader_worker_sets):
        return passed()
    models = () if isinstance(facts.models, MissingValue) else facts.models
    needing = [key_of(model) for model in models if any(_nodes(pool) > 1 for pool in spec_of(model).get("pools") or [])]
    if needing:
        return failed(*(f"{model} spans nodes and cannot be run" for model in needing))
    return warned("models whose instances span nodes cannot be run")


def _nodes(pool: Mapping[str, Any]) -> int:
    return int((pool.get("parallelism") or {}).get("nodes") or 1)


# --- CRDs ---------------------------------------------------------------------------------------------------------------


def _installed(facts: ClusterFacts) -> dict[str, Manifest]:
    return {name_of(crd): crd for crd in known(facts.crds)}


def check_crd_names(facts: ClusterFacts) -> Verdict:
    """Fails when a CRD with a name of Fairlead's has another kind; warns when Fairlead's CRDs
    exist.
    """
    installed = _installed(facts)
    kinds_by_name = {f"{kind.plural}.{GROUP}": kind for kind in served_kinds()}
    foreign = [
        f"{name} is {(spec_of(installed[name]).get('names') or {}).get('kind')}, not {kind.name}"
        for name, kind in kinds_by_name.items()
        if name in installed and (spec_of(installed[name]).get("names") or {}).get("kind") != kind.name
    ]
    present = [name for name in kinds_by_name if name in installed]
    if foreign:
        return failed(*foreign)
    if present:
        return warned(f"Fairlead's CRDs are there already ({', '.join(present)}); helm leaves them as they are")
    return passed()


def check_crds_installed(facts: ClusterFacts) -> Verdict:
    """Checks that every kind of this release is established and served."""
    installed = _installed(facts)
    missing = []
    for kind in served_kinds():
        name = f"{kind.plural}.{GROUP}"
        crd = installed.get(name)
        if crd is None:
            missing.append(f"{name} is missing")
        elif not is_condition_true(crd, "Established"):
            missing.append(f"{name} is not established")
        elif not any(
            version.get("name") == VERSION and version.get("served") for version in spec_of(crd).get("versions") or []
        ):
            missing.append(f"{name} does not serve {VERSION}")
    return verdict_of(missing, note=f"{len(served_kinds())} of {len(served_kinds())}")


def check_crd_schemas(facts: ClusterFacts) -> Verdict | None:
    """Fails for CRDs that lack fields of this release. Warns of others that differ, as after a
    rollback.
    """
    installed = _installed(facts)
    older: list[str] = []
    different: list[str] = []
    compared = 0
    for kind in served_kinds():
        crd = installed.get(f"{kind.plural}.{GROUP}")
        if crd is None:
            continue
        compared += 1
        name, schema, own_schema = name_of(crd), _schema(crd), _schema(crd_manifest(kind))
        if schema == own_schema:
            continue
        fields, own_fields = set(_fields(schema)), set(_fields(own_schema))
        if missing := sorted(own_fields - fields):
            older.append(f"{name} is older than this release: it lacks {_listed(missing)}")
        elif unknown_fields := sorted(fields - own_fields):
            different.append(f"{name} is newer than this release: it has {_listed(unknown_fields)}")
        else:
            different.append(f"{name} has the same fields with other rules, defaults or descriptions")
    outcome = CheckOutcome.FAILED if older else CheckOutcome.WARNING
    return verdict_of(older or different, outcome=outcome) if compared else None


def _schema(crd: Manifest) -> Mapping[str, Any]:
    for version in spec_of(crd).get("versions") or []:
        if version.get("name") == VERSION:
            schema: Mapping[str, Any] = (version.get("schema") or {}).get("openAPIV3Schema") or {}
            return schema
    return {}


def _fields(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for name, below in (schema.get("properties") or {}).items():
        where = f"{path}.{name}" if path else name
        yield where
        yield from _fields(below, where)
    items = schema.get("items")
    if isinstance(items, dict):
        yield from _fields(items, f"{path}[]")


def _listed(names: list[str]) -> str:
    """Returns up to _MAX_SHOWN_FIELDS field names as text, without those below another field of the
    list.
    """
    top_names = [name for name in names if not any(name.startswith((f"{parent}.", f"{parent}[")) for parent in names)]
    rest = len(top_names) - _MAX_SHOWN_FIELDS
    return ", ".join(top_names[:_MAX_SHOWN_FIELDS]) + (f" and {rest} more" if rest > 0 else "")


def check_network_policies(facts: ClusterFacts) -> Verdict | None:
    """Warns about components that no NetworkPolicy selects."""
    deployments, policies = known(facts.deployments), known(facts.network_policies)
    if not deployments:
        return None
    selected = {(namespace_name(object_), *_selected_component(object_)) for object_ in policies}
    return verdict_of(
        (
            f"{key_of(object_)} has none"
            for object_ in deployments
            if (namespace_name(object_), label_of(object_, RELEASE_LABEL), label_of(object_, COMPONENT_LABEL))
            not in selected
        ),
        outcome=CheckOutcome.WARNING,
    )


def check_disruption_budgets(facts: ClusterFacts) -> Verdict | None:
    """Warns about replicated components without a disruption budget, and budgets that allow no
    disruption now.
    """
    deployments, budgets = known(facts.deployments), known(facts.disruption_budgets)
    if not deployments:
        return None
    return verdict_of(_budget_problems(deployments, budgets), outcome=CheckOutcome.WARNING)


def _budget_problems(deployments: Sequence[Manifest], budgets: Sequence[Manifest]) -> Iterator[str]:
    covered = {(namespace_name(object_), *_selected_component(object_)) for object_ in budgets}
    for object_ in deployments:
        if (
            desired_replicas(object_) > 1
            and (namespace_name(object_), label_of(object_, RELEASE_LABEL), label_of(object_, COMPONENT_LABEL))
            not in covered
        ):
            yield f"{key_of(object_)} has {desired_replicas(object_)} replicas and no budget"
    for object_ in budgets:
        budget_status = status_of(object_)
        if budget_status.get("expectedPods") and not budget_status.get("disruptionsAllowed"):
            healthy = (
                f"{budget_status.get('currentHealthy', 0)} of {budget_status.get('expectedPods')} pods are healthy"
            )
            yield f"{key_of(object_)} allows no disruption now: {healthy}"


def check_version_skew(facts: ClusterFacts) -> Verdict | None:
    """Warns when the components' versions, by their labels, differ from each other or from this
    command line.
    """
    versions = {
        f"{label_of(deployment, COMPONENT_LABEL)} of {namespace_name(deployment)}": label_of(deployment, VERSION_LABEL)
        for deployment in known(facts.deployments)
        if label_of(deployment, COMPONENT_LABEL) in COMPONENTS_WITH_PERMISSIONS
    }
    if not versions:
        return None
    if set(versions.values()) == {facts.our_version}:
        return passed(facts.our_version)
    component_lines = [f"{name} is {version or 'not known'}" for name, version in versions.items()]
    return warned(f"the command line is {facts.our_version}", *component_lines)


def _selected_component(policy: Manifest) -> tuple[str, str]:
    """Returns release and component that a policy or budget selects."""
    selector = spec_of(policy).get("podSelector") or spec_of(policy).get("selector") or {}
    labels = selector.get("matchLabels") or {}
    return str(labels.get(RELEASE_LABEL, "")), str(labels.get(COMPONENT_LABEL, ""))
