"""Rights: the operator has exactly those that its code uses, and none leads to others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    EVENTS,
    LEADER_WORKER_SETS,
    MODEL_ADAPTERS,
    MODEL_DEPLOYMENTS,
    MODEL_ROUTES,
    MODEL_TENANTS,
    PODS,
    RESOURCES_BY_KIND,
    SERVICES,
    Resource,
)
from fairlead_autoscaler.kubernetes import manager as autoscaler
from fairlead_operator.kube.leader_election import LEASE_NAME
from fairlead_operator.kube.object_cache import OPTIONAL_CHILD_KINDS, STANDARD_CHILD_KINDS
from fairlead_testing.kube.helm import HelmError, pod_specs, render_chart
from fairlead_testing.yaml_documents import load_documents

ENGINES = Path(__file__).parents[1] / "operator" / "render" / "golden"
ROLES = ("Role", "ClusterRole")
Right = tuple[str, str, str]


def rules(manifests: list[dict[str, Any]], ending: str = "") -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if manifest["kind"] in ROLES and manifest["metadata"]["name"].endswith(ending):
            yield from manifest["rules"]


def rights(manifests: list[dict[str, Any]], ending: str) -> set[Right]:
    """(group, resource, verb) of all roles whose name ends so."""
    return {
        (group, resource, verb)
        for rule in rules(manifests, ending)
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def wanted(resource: Resource, *verbs: str, sub: str = "") -> set[Right]:
    return {(resource.group, resource.plural + sub, verb) for verb in verbs}


def written() -> set[Resource]:
    """Returns the kinds of rendered objects, from the operator's golden files, and the revisions."""
    kinds = {CONTROLLER_REVISIONS}
    for path in ENGINES.rglob("*.yaml"):
        for document in load_documents(path.read_text(encoding="utf-8")):
            if document is not None:
                kinds.add(RESOURCES_BY_KIND[document["apiVersion"], document["kind"]])
    return kinds


def used() -> set[Right]:
    """Returns the rights that the operator uses in the namespaces of models."""
    permissions = wanted(MODEL_DEPLOYMENTS, "get", "list", "watch", "patch") | wanted(
        MODEL_DEPLOYMENTS, "patch", sub="/status"
    )
    permissions |= wanted(MODEL_DEPLOYMENTS, "update", sub="/finalizers")  # asked for by blockOwnerDeletion
    for kind in (MODEL_ROUTES, MODEL_ADAPTERS):
        permissions |= wanted(kind, "list", "watch") | wanted(kind, "patch", sub="/status")
    permissions |= wanted(EVENTS, "create", "patch")
    permissions |= wanted(PODS, "delete") | wanted(PODS, "patch", sub="/status")  # of engines that hang
    for kind in (*STANDARD_CHILD_KINDS, *OPTIONAL_CHILD_KINDS, PODS):
        permissions |= wanted(kind, "list", "watch")
    for kind in written():
        permissions |= wanted(kind, "get", "create", "patch", "delete")
    return permissions


FORBIDDEN_VERBS = {"escalate", "bind", "impersonate"}
FORBIDDEN = {
    *("secrets", "nodes", "roles", "rolebindings", "clusterroles", "clusterrolebindings", "serviceaccounts/token"),
    *("pods/exec", "pods/attach", "pods/portforward", "pods/ephemeralcontainers", "pods/proxy", "services/proxy"),
    *("mutatingwebhookconfigurations", "validatingwebhookconfigurations", "customresourcedefinitions"),
}
"""Resources, and all below them: who may read or write these has more than he was given."""
RUNNING = {"pods", "jobs", "cronjobs", "daemonsets", "statefulsets", "replicasets"}
"""They are made by controllers, from what the operator makes, and by nothing of ours."""


GUARDED: Right = ("", "pods", "patch")
"""The autoscaler's alone, and an admission policy holds it to two annotations."""
OPERATORS: tuple[Right, ...] = (("", "pods", "delete"), ("", "pods/status", "patch"))
"""The operator's alone, and an admission policy holds it to pods of models and one condition."""


def too_wide(rule: dict[str, Any]) -> list[str]:
    """Returns the parts of a rule that grant more than they name."""
    problems = ["nonResourceURLs"] if "nonResourceURLs" in rule else []
    for part in ("apiGroups", "resources", "verbs"):
        problems += [f"{part}: {value}" for value in rule.get(part, ()) if "*" in value]
    problems += sorted(FORBIDDEN_VERBS & set(rule["verbs"]))
    for kind in rule.get("resources", ()):
        if {kind, kind.partition("/")[0]} & FORBIDDEN:
            problems.append(kind)
        elif kind.partition("/")[0] in RUNNING and set(rule["verbs"]) - {"get", "list", "watch"} - _guarded(kind):
            problems.append(f"{kind} written")
    return problems


def _guarded(resource: str) -> set[str]:
    return {verb for _, name, verb in (GUARDED, *OPERATORS) if name == resource}


def test_no_rule_is_wider_than_stated_or_grants_other_rights(program: Path, case: Path) -> None:
    for rule in rules(render_chart(program, f"--values={case}")):
        assert too_wide(rule) == [], rule


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"verbs": ["*"]}, "verbs: *"),
        ({"resources": ["*"]}, "resources: *"),
        ({"resources": ["*/scale"]}, "resources: */scale"),
        ({"apiGroups": ["*"]}, "apiGroups: *"),
        ({"resources": ["secrets"], "verbs": ["list"]}, "secrets"),
        ({"resources": ["secrets"], "verbs": ["watch"]}, "secrets"),
        ({"resources": ["secrets"], "verbs": ["get"]}, "secrets"),
        ({"verbs": ["get", "escalate"]}, "escalate"),
        ({"verbs": ["bind"]}, "bind"),
        ({"verbs": ["impersonate"]}, "impersonate"),
        ({"resources": ["pods/exec"], "verbs": ["create"]}, "pods/exec"),
        ({"resources": ["pods/attach"]}, "pods/attach"),
        ({"resources": ["pods/proxy"]}, "pods/proxy"),
        ({"resources": ["nodes/proxy"]}, "nodes/proxy"),
        ({"resources": ["serviceaccounts/token"]}, "serviceaccounts/token"),
        ({"resources": ["clusterroles"]}, "clusterroles"),
        ({"resources": ["pods"], "verbs": ["create"]}, "pods written"),
        ({"resources": ["pods/status"], "verbs": ["update"]}, "pods/status written"),
        ({"resources": ["pods"], "verbs": ["deletecollection"]}, "pods written"),
        ({"resources": ["daemonsets"], "verbs": ["patch"]}, "daemonsets written"),
        ({"nonResourceURLs": ["/metrics"]}, "nonResourceURLs"),
    ],
)
def test_each_privilege_escalation_is_detected(program: Path, changed: dict[str, Any], problem: str) -> None:
    """Every rule of the chart, changed so."""
    for rule in rules(render_chart(program)):
        assert too_wide(rule) == []
        assert problem in too_wide(rule | changed)


def test_only_gateways_read_tenants_and_nothing_writes_them(program: Path, case: Path) -> None:
    """A right to write tenants gives access to models."""
    chart = render_chart(program, f"--values={case}")
    holders = {
        (manifest["metadata"]["name"].rpartition("-")[2], verb)
        for manifest in chart
        if manifest["kind"] in ROLES
        for rule in manifest["rules"]
        if MODEL_TENANTS.plural in rule.get("resources", ())
        for verb in rule["verbs"]
    }
    assert holders <= {("gateway", "list"), ("gateway", "watch")}
    (spec,) = (spec for name, spec in pod_specs(chart).items() if name.startswith("Deployment") and "-gateway" in name)
    watches = "--kube-tenants" in spec["containers"][0]["args"]
    assert watches == bool(holders)


def test_gateways_read_one_config_map_and_no_other(program: Path) -> None:
    manifests = render_chart(program)
    (rule,) = rules(manifests, "gateway-revoked-keys")
    assert rule == {
        "apiGroups": [""],
        "resources": ["configmaps"],
        "resourceNames": ["fairlead-revoked-keys"],
        "verbs": ["list", "watch"],
    }
    assert [rule for rule in rules(manifests) if "configmaps" in rule["resources"]] == [rule]


def test_operator_has_exactly_the_permissions_of_its_code(program: Path) -> None:
    assert rights(render_chart(program), "fairlead-operator") == used() | wanted(ACCELERATOR_CLASSES, "list", "watch")


def test_namespaced_operator_reads_only_accelerators_cluster_wide(program: Path) -> None:
    manifests = render_chart(program, "--set=watchNamespaces={a,b}")
    assert rights(manifests, "fairlead-operator") == wanted(ACCELERATOR_CLASSES, "list", "watch")
    assert rights(manifests, "operator-models") == used()
    for kind in ("Role", "RoleBinding"):
        here = [
            manifest
            for manifest in manifests
            if manifest["kind"] == kind and manifest["metadata"]["name"].endswith("operator-models")
        ]
        assert [manifest["metadata"]["namespace"] for manifest in here] == ["a", "b"]


def test_namespaced_operator_lists_gateways_where_it_runs(program: Path) -> None:
    manifests = render_chart(program, "--set=watchNamespaces={a,b}")
    assert rights(manifests, "operator-gateways") == wanted(PODS, "list")
    (role,) = (
        manifest
        for manifest in manifests
        if manifest["kind"] == "Role" and manifest["metadata"]["name"].endswith("-gateways")
    )
    assert role["metadata"]["namespace"] == "fairlead"


@pytest.mark.parametrize(
    "value", ["operator.hungEngines.enabled=false", "gateway.fleet.models[0].name=tiny"], ids=["off", "fleet-file"]
)
def test_operator_that_restarts_no_engine_may_not_write_pods(program: Path, value: str) -> None:
    manifests = render_chart(program, f"--set={value}")
    assert not rights(manifests, "fairlead-operator") & set(OPERATORS)
    (spec,) = (spec for name, spec in pod_specs(manifests).items() if name == "Deployment fairlead-operator")
    names = {variable["name"] for variable in spec["containers"][0]["env"]}
    assert not {"FAIRLEAD_MANAGEMENT_PODS", "FAIRLEAD_MANAGE_TOKEN", "FAIRLEAD_HUNG_RESTART"} & names


def test_operator_may_touch_only_its_own_lease(program: Path) -> None:
    for component, lease in (("operator", LEASE_NAME), ("autoscaler", autoscaler.LEASE_NAME)):
        create, touch = rules(render_chart(program), f"{component}-lease")
        assert create["verbs"] == ["create"]
        assert (touch["resourceNames"], touch["verbs"]) == ([lease], ["get", "patch"])


SCALED = (
    wanted(MODEL_DEPLOYMENTS, "list", "watch")
    | wanted(MODEL_DEPLOYMENTS, "patch", sub="/status")
    | wanted(DEPLOYMENTS, "get", "list", "watch")
    | wanted(DEPLOYMENTS, "patch", sub="/scale")
    | wanted(LEADER_WORKER_SETS, "get", "list", "watch", "patch")
    | wanted(PODS, "list", "watch", "patch")
    | wanted(EVENTS, "create", "patch")
)


def test_autoscaler_has_exactly_the_permissions_of_its_code(program: Path) -> None:
    classes = wanted(ACCELERATOR_CLASSES, "list", "watch")
    assert rights(render_chart(program), "fairlead-autoscaler") == SCALED | classes
    manifests = render_chart(program, "--set=watchNamespaces={a,b}")
    assert (rights(manifests, "fairlead-autoscaler"), rights(manifests, "autoscaler-models")) == (classes, SCALED)


@pytest.mark.parametrize(("component", "held"), [("autoscaler", (GUARDED,)), ("operator", OPERATORS)])
def test_only_its_guarded_component_holds_a_right_on_pods(
    program: Path, component: str, held: tuple[Right, ...]
) -> None:
    manifests = render_chart(program)
    name = f"fairlead-fairlead-{component}"
    for right in held:
        roles = [role for role in manifests if role["kind"] in ROLES and right in rights([role], "")]
        assert [role["metadata"]["name"] for role in roles] == [name]
    guards = {guard["kind"]: guard.get("spec") for guard in manifests if guard["metadata"]["name"] == name}
    assert guards["ValidatingAdmissionPolicyBinding"] == {"policyName": name, "validationActions": ["Deny"]}
    (whom,) = guards["ValidatingAdmissionPolicy"]["matchConditions"]
    assert f"system:serviceaccount:fairlead:fairlead-{component}" in whom["expression"]


@pytest.mark.parametrize("component", ["gateway", "indexer"])
def test_gateways_and_indexers_only_read_models_pods_accelerators(program: Path, component: str) -> None:
    models = wanted(MODEL_DEPLOYMENTS, "list", "watch") | wanted(PODS, "list", "watch")
    classes = wanted(ACCELERATOR_CLASSES, "list", "watch")
    if component == "gateway":  # tenants belong to the cluster, too
        classes |= wanted(MODEL_TENANTS, "list", "watch")
        models |= wanted(MODEL_ROUTES, "list", "watch") | wanted(MODEL_ADAPTERS, "list", "watch")
    assert rights(render_chart(program), f"fairlead-{component}") == models | classes
    manifests = render_chart(program, "--set=watchNamespaces={a,b}")
    assert (rights(manifests, f"fairlead-{component}"), rights(manifests, f"{component}-fleet")) == (classes, models)


@pytest.mark.parametrize("component", ["gateway", "indexer"])
def test_services_are_read_only_where_models_may_name_endpoints(program: Path, component: str) -> None:
    services = wanted(SERVICES, "list", "watch")
    assert not rights(render_chart(program), f"fairlead-{component}") & services
    manifests = render_chart(program, "--set=externalEngines.namespaces={a}")
    assert rights(manifests, f"fairlead-{component}") >= services
    manifests = render_chart(program, "--set=externalEngines.namespaces={a}", "--set=watchNamespaces={a,b}")
    assert rights(manifests, f"{component}-fleet") >= services
    assert not rights(manifests, f"fairlead-{component}") & services


@pytest.mark.parametrize("component", ["gateway", "indexer"])
def test_fleet_file_users_have_no_permissions(program: Path, component: str) -> None:
    manifests = render_chart(program, "--set=gateway.fleet.models[0].name=tiny")
    assert not any(manifest["kind"] in ROLES and component in manifest["metadata"]["name"] for manifest in manifests)
    assert pod_specs(manifests)[f"Deployment fairlead-{component}"]["automountServiceAccountToken"] is False


def test_every_role_is_bound_to_its_own_component(program: Path) -> None:
    chart = render_chart(program, "--set=watchNamespaces={a,b}")
    for manifest in chart:
        if manifest["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
            subject = {"kind": "ServiceAccount", "name": f"fairlead-{component}", "namespace": "fairlead"}
            assert manifest["subjects"] == [subject]
            assert f"fairlead-{component}" in manifest["roleRef"]["name"]
            assert manifest["roleRef"]["name"] in {role["metadata"]["name"] for role in chart if role["kind"] in ROLES}


AGGREGATION = "rbac.authorization.k8s.io/aggregate-to-"


def test_default_values_give_holders_of_edit_no_right_on_models(program: Path) -> None:
    for arguments, count in (((), 0), (("--set=rbac.aggregate=true",), 3)):
        manifests = render_chart(program, *arguments)
        roles = [manifest for manifest in manifests if manifest["kind"] == "ClusterRole"]
        aggregated = [label for role in roles for label in role["metadata"]["labels"] if label.startswith(AGGREGATION)]
        assert len(aggregated) == count
        writers = [
            role["metadata"]["name"]
            for role in roles
            if ("serving.fairlead.io", "modeldeployments", "create") in rights([role], "")
        ]
        assert writers == ["fairlead-fairlead-edit"]
        bound = {manifest["roleRef"]["name"] for manifest in manifests if manifest["kind"].endswith("RoleBinding")}
        assert not {"fairlead-fairlead-edit", "fairlead-fairlead-view"} & bound


def test_processes_that_read_models_know_assigned_names_and_endpoint_namespaces(program: Path) -> None:
    values = ("--set=clientNames.llama=team-a/llama", "--set=externalEngines.namespaces={team-a,team-b}")
    readers = 0
    for spec in pod_specs(render_chart(program, *values)).values():
        variables = {variable["name"]: variable.get("value") for variable in spec["containers"][0].get("env", ())}
        if "FAIRLEAD_CLIENT_NAMES" in variables:
            readers += 1
            assert variables["FAIRLEAD_CLIENT_NAMES"] == "llama=team-a/llama"
            assert variables["FAIRLEAD_ENDPOINT_NAMESPACES"] == "team-a,team-b"
    assert readers == 3  # gateway, indexer, operator
    with pytest.raises(HelmError, match="externalEngines"):
        render_chart(program, "--set=externalEngines.namespaces={Team}")
