"""Every check on facts: all pass in a healthy installation, and each fault fails only its check."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from fairlead_cli.cluster.checks.catalogue import CHECKS
from fairlead_cli.cluster.checks.check import CheckOutcome
from fairlead_cli.cluster.checks.runner import SEEDED_FAULTS, has_failures, run_checks
from fairlead_cli.cluster.facts import ClusterFacts, SecretSummary
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.pod_http import Readiness

Build = Mapping[str, Callable[..., Any]]
AWAY = MissingValue("connection refused")
DENIED = MissingValue("you may not", is_forbidden=True)


def marks(facts: ClusterFacts, *, before: bool = False) -> dict[str, CheckOutcome]:
    return {one.check.id: one.verdict.outcome for one in run_checks(facts, before_install=before)}


def failing(facts: ClusterFacts, *, before: bool = False) -> set[str]:
    return {name for name, mark in marks(facts, before=before).items() if mark is CheckOutcome.FAILED}


def lines(facts: ClusterFacts, check: str, *, before: bool = False) -> str:
    return "\n".join(
        next(one for one in run_checks(facts, before_install=before) if one.check.id == check).verdict.lines
    )


def not_ready(pod: dict[str, Any]) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "False", "message": "containers with unready status: [operator]"}]
    return {**pod, "status": {**pod["status"], "conditions": conditions}}


def of(facts: ClusterFacts, component: str) -> list[dict[str, Any]]:
    return [one for one in facts.pods if one["metadata"]["labels"]["app.kubernetes.io/component"] == component]


@pytest.mark.parametrize("before", [False, True])
def test_healthy_cluster_passes_all_checks(facts: ClusterFacts, before: bool) -> None:
    if before:
        facts = replace(facts, crds=[])
    assert set(marks(facts, before=before).values()) == {CheckOutcome.OK}
    assert not has_failures(run_checks(facts, before_install=before))


def test_healthy_cluster_runs_all_unconditional_checks(facts: ClusterFacts) -> None:
    rare = {"gateway-certificate", "model-endpoint-secrets"}
    asked = set(marks(facts)) | set(marks(facts, before=True))
    assert asked == {one.id for one in CHECKS} - rare


# --- the ten faults, and more -------------------------------------------------------------------------------------------


def operator_down(facts: ClusterFacts, build: Build) -> ClusterFacts:
    pods = [not_ready(one) if one in of(facts, "operator") else one for one in facts.pods]
    return replace(
        facts,
        pods=pods,
        leases={"fairlead": build["lease"]("2027-01-15T07:40:00Z")},
        pod_reports={**facts.pod_reports, "operator": []},
    )


def operator_not_leading(facts: ClusterFacts, build: Build) -> ClusterFacts:
    return replace(facts, leases={"fairlead": build["lease"]("2027-01-15T07:58:00Z")})


def operator_right_removed(facts: ClusterFacts, build: Build) -> ClusterFacts:
    mine = dict(facts.account_permissions["operator", "fairlead"])
    mine |= {right: False for right in mine if right.resource == "services" and right.verb in ("create", "patch")}
    return replace(facts, account_permissions={**facts.account_permissions, ("operator", "fairlead"): mine})


def crd_outdated(facts: ClusterFacts, build: Build) -> ClusterFacts:
    found = copy.deepcopy(list(facts.crds))
    model = next(one for one in found if one["metadata"]["name"].startswith("modeldeployments"))
    del model["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rollout"]
    return replace(facts, crds=found)


def keys_missing(facts: ClusterFacts, build: Build) -> ClusterFacts:
    gone = MissingValue('secrets "fairlead-keys" not found', is_absent=True)
    return replace(facts, secrets={**facts.secrets, ("fairlead", "fairlead-keys"): gone})


def fleet_stale(facts: ClusterFacts, build: Build) -> ClusterFacts:
    note = "cannot watch the cluster; the last fleet stays: Pod had its last event more than 190 s ago: forbidden"
    page = "fairlead_gateway_redis_connected 1\n"
    return replace(
        facts,
        pod_reports={
            **facts.pod_reports,
            "gateway": [build["pod_report"](one, page, note) for one in of(facts, "gateway")],
        },
    )


def redis_unreachable(facts: ClusterFacts, build: Build) -> ClusterFacts:
    note = "Redis is away for 41s (Connection refused): decisions are not shared with other gateways"
    page = "fairlead_gateway_redis_connected 0\n"
    return replace(
        facts,
        pod_reports={
            **facts.pod_reports,
            "gateway": [build["pod_report"](one, page, note) for one in of(facts, "gateway")],
        },
    )


def stalled(reason: str, message: str) -> Callable[[ClusterFacts, Build], ClusterFacts]:
    def seed(facts: ClusterFacts, build: Build) -> ClusterFacts:
        model = build["model"](ready=False, Ready=("False", reason, message), Stalled=("True", reason, message))
        return replace(facts, models=[model])

    return seed


SEEDED: dict[str, tuple[Callable[[ClusterFacts, Build], ClusterFacts], str]] = {
    "operator-down": (operator_down, "containers with unready status"),
    "operator-not-leading": (operator_not_leading, "last renewed it 2m ago; it lasts 15 s"),
    "operator-right-removed": (operator_right_removed, "may not create, patch services in the whole cluster"),
    "crd-outdated": (crd_outdated, "is older than this release: it lacks spec.rollout"),
    "keys-missing": (
        keys_missing,
        "the Secret fairlead/fairlead-keys does not exist; it should hold keys.yaml, pepper",
    ),
    "fleet-stale": (fleet_stale, "Pod had its last event more than 190 s ago"),
    "redis-unreachable": (redis_unreachable, "Redis is away for 41s"),
    "image-unpullable": (
        stalled("ImagePullFailed", "pod a: x/y:z: not found"),
        "chat/tiny: ImagePullFailed: pod a: x/y:z",
    ),
    "accelerator-unschedulable": (stalled("InsufficientCapacity", "pod a waits"), "chat/tiny: InsufficientCapacity"),
    "credentials-missing": (stalled("MissingSecret", 'secret "hf" not found'), 'MissingSecret: secret "hf" not found'),
}


@pytest.mark.parametrize("fault", SEEDED_FAULTS, ids=lambda one: one.name)
def test_each_seeded_fault_fails_only_its_check(facts: ClusterFacts, builders: Build, fault: Any) -> None:
    seed, words = SEEDED[fault.name]
    found = seed(facts, builders)
    assert failing(found) == {fault.check}
    assert words in lines(found, fault.check)


OTHERS = {
    "quota": ("model-admission", stalled("QuotaExceeded", "exceeded quota: gpus")),
    "policy": ("model-admission", stalled("PolicyRefused", "violates PodSecurity")),
    "forbidden": ("model-admission", stalled("Forbidden", "services is forbidden")),
    "acceleratorClassName": ("model-references", stalled("UnknownAccelerator", "no class nvidia-x")),
    "crash": ("model-stalled", stalled("EngineCrashing", "exit code 1")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_stall_reasons_have_their_checks(facts: ClusterFacts, builders: Build, name: str) -> None:
    check, seed = OTHERS[name]
    assert failing(seed(facts, builders)) == {check}


# --- one by one ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "mark"),
    [
        ("v1.30.0", CheckOutcome.OK),
        ("v1.33.5-eks-1-2", CheckOutcome.OK),
        ("v1.29.14", CheckOutcome.FAILED),
        ("v2.0.0", CheckOutcome.OK),
        ("?", CheckOutcome.UNKNOWN),
    ],
)
def test_kubernetes_version_check(facts: ClusterFacts, version: str, mark: CheckOutcome) -> None:
    assert marks(replace(facts, version=version))["api-version"] is mark


@pytest.mark.parametrize(
    ("skew", "mark"),
    [(0.0, CheckOutcome.OK), (61.0, CheckOutcome.WARNING), (-61.0, CheckOutcome.WARNING), (None, CheckOutcome.UNKNOWN)],
)
def test_clock_skew_check(facts: ClusterFacts, skew: float | None, mark: CheckOutcome) -> None:
    assert marks(replace(facts, skew_seconds=skew))["clock-skew"] is mark


def test_missing_read_permissions_warn_and_install_permissions_fail(facts: ClusterFacts) -> None:
    none = dict.fromkeys(facts.permissions, False)
    assert marks(replace(facts, permissions=none))["rights-read"] is CheckOutcome.WARNING
    assert "you may not create customresourcedefinitions" in lines(
        replace(facts, permissions=none), "rights-install", before=True
    )


def test_refused_dry_run_shows_the_policys_message(facts: ClusterFacts) -> None:
    refused = replace(facts, dry_run_refusal="denied the request: images must be signed")
    assert failing(refused, before=True) == {"pod-security"}
    assert marks(replace(facts, dry_run_refusal=AWAY), before=True)["pod-security"] is CheckOutcome.UNKNOWN
    assert (
        marks(replace(facts, namespace_exists=False, dry_run_refusal=AWAY), before=True)["pod-security"]
        is CheckOutcome.OK
    )


def test_unreadable_namespace_leaves_install_checks_unknown(facts: ClusterFacts) -> None:
    found = marks(replace(facts, namespace_exists=DENIED), before=True)
    assert found["pod-security"] is found["rights-install"] is CheckOutcome.UNKNOWN


def test_quotas_of_other_namespaces_are_ignored(facts: ClusterFacts) -> None:
    def quota(namespace: str, used: str) -> dict[str, Any]:
        status = {
            "hard": {"requests.nvidia.com/gpu": "8", "pods": "0"},
            "used": {"requests.nvidia.com/gpu": used, "pods": "0"},
        }
        return {"metadata": {"name": "gpus", "namespace": namespace}, "status": status}

    assert failing(replace(facts, quotas=[quota("chat", "8")])) == {"quota"}
    assert "chat/gpus: requests.nvidia.com/gpu is used up (8 of 8)" in lines(
        replace(facts, quotas=[quota("chat", "8")]), "quota"
    )
    assert failing(replace(facts, quotas=[quota("elsewhere", "8"), quota("chat", "7")])) == set()


def test_missing_leader_worker_sets_fail_when_needed(facts: ClusterFacts, builders: Build) -> None:
    without = replace(facts, leader_worker_sets=False)
    assert marks(without)["leader-worker-set"] is CheckOutcome.WARNING
    model = builders["model"]()
    model["spec"]["pools"][0]["parallelism"] = {"nodes": 2}
    assert failing(replace(without, models=[model])) == {"leader-worker-set"}


def test_missing_unestablished_newer_and_foreign_crds(facts: ClusterFacts, builders: Build) -> None:
    found = list(facts.crds)
    assert failing(replace(facts, crds=found[:1])) == {"crd-installed"}
    bare = {name: value for name, value in found[0].items() if name != "status"}
    assert "is not established" in lines(replace(facts, crds=[bare, found[1]]), "crd-installed")
    foreign = {**found[0], "spec": {**found[0]["spec"], "names": {"kind": "Else"}}}
    assert failing(replace(facts, crds=[foreign]), before=True) == {"crd-names"}
    assert marks(replace(facts, crds=found), before=True)["crd-names"] is CheckOutcome.WARNING


def test_operators_with_shared_namespaces_fail(facts: ClusterFacts) -> None:
    operator = next(one for one in facts.deployments if one["metadata"]["name"] == "fairlead-operator")
    second = copy.deepcopy(operator)
    second["metadata"]["namespace"] = "other"
    pods = [
        *facts.pods,
        *({**one, "metadata": {**one["metadata"], "namespace": "other"}} for one in of(facts, "operator")),
    ]
    two = replace(
        facts,
        deployments=[*facts.deployments, second],
        pods=pods,
        leases={**facts.leases, "other": facts.leases["fairlead"]},
    )
    assert "both look after all namespaces" in lines(two, "operator-installed")
    for one, where in ((operator, "a,b"), (second, "c")):
        one["spec"]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "FAIRLEAD_WATCH_NAMESPACES", "value": where}
        )
    assert marks(two)["operator-installed"] is CheckOutcome.OK


def test_silent_watch_of_the_operator_fails(facts: ClusterFacts, builders: Build) -> None:
    page = 'fairlead_operator_leading 1\nfairlead_operator_watch_age_seconds{kind="Deployment"} 400\n'
    deaf = replace(
        facts,
        pod_reports={
            **facts.pod_reports,
            "operator": [builders["pod_report"](one, page) for one in of(facts, "operator")],
        },
    )
    assert failing(deaf) == {"operator-watches"}
    assert "has received nothing about Deployment for 400 s" in lines(deaf, "operator-watches")


def test_partly_ready_deployment_is_a_warning(facts: ClusterFacts) -> None:
    first, *rest = of(facts, "gateway")
    pods = [not_ready(one) if one is first else one for one in facts.pods]
    assert marks(replace(facts, pods=pods))["gateway-ready"] is CheckOutcome.WARNING
    assert rest


def test_unpullable_control_plane_image_fails(facts: ClusterFacts) -> None:
    pods = []
    for one in facts.pods:
        if one in of(facts, "redis"):
            one = not_ready(one)
            waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
            one["status"]["containerStatuses"] = [{"name": "redis", "state": {"waiting": waiting}}]
        pods.append(one)
    assert failing(replace(facts, pods=pods)) == {"images"}
    assert "ImagePullBackOff: Back-off pulling image" in lines(replace(facts, pods=pods), "images")


@pytest.mark.parametrize(
    ("ends", "mark"),
    [
        (NOW := 1_800_000_000.0, CheckOutcome.FAILED),
        (NOW + 86_400, CheckOutcome.WARNING),
        (NOW + 90 * 86_400, CheckOutcome.OK),
    ],
)
def test_expiring_certificates(facts: ClusterFacts, ends: float, mark: CheckOutcome) -> None:
    gateway = next(one for one in facts.deployments if one["metadata"]["name"] == "fairlead-gateway")
    gateway["spec"]["template"]["spec"]["volumes"].append({"name": "tls", "secret": {"secretName": "cert"}})
    found = SecretSummary(frozenset({"tls.crt", "tls.key"}), ends)
    assert marks(replace(facts, secrets={**facts.secrets, ("fairlead", "cert"): found}))["gateway-certificate"] is mark


def test_deployment_without_pods_shows_the_reason(facts: ClusterFacts) -> None:
    assert "no pod of fairlead-operator has been made" in lines(replace(facts, pods=[]), "operator-ready")
    operator = next(one for one in facts.deployments if one["metadata"]["name"] == "fairlead-operator")
    refused = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}]
    operator["status"] = {"conditions": refused}
    assert "exceeded quota: small" in lines(replace(facts, pods=[]), "operator-ready")
    operator["spec"]["replicas"] = 0
    assert "is scaled to 0" in lines(replace(facts, pods=[]), "operator-ready")


def test_chart_redis_failure_shows_its_pods_reason(facts: ClusterFacts, builders: Build) -> None:
    pods = [not_ready(one) if one in of(facts, "redis") else one for one in facts.pods]
    found = redis_unreachable(replace(facts, pods=pods), builders)
    assert "pod fairlead-redis-0: containers with unready status" in lines(found, "redis")


def test_unobserved_model_fails(facts: ClusterFacts, builders: Build) -> None:
    model = builders["model"]()
    model["status"]["observedGeneration"] = 1
    assert failing(replace(facts, models=[model])) == {"model-observed"}
    model["metadata"]["creationTimestamp"] = "2027-01-15T07:59:50Z"
    assert failing(replace(facts, models=[model])) == set()


def test_name_clashes_and_starting_models_are_warnings(facts: ClusterFacts, builders: Build) -> None:
    taken = builders["model"](NameTaken=("True", "BareNameTaken", "clients that say tiny get a/tiny"))
    assert marks(replace(facts, models=[taken]))["model-name"] is CheckOutcome.WARNING
    starting = builders["model"](ready=False, Ready=("False", "Starting", "pool main has 0 of 1 ready"))
    assert marks(replace(facts, models=[starting]))["model-ready"] is CheckOutcome.WARNING
    lost = builders["model"](ready=False)
    assert failing(replace(facts, models=[lost])) == {"model-ready"}


def test_missing_safeguards_and_version_skew_are_warnings(facts: ClusterFacts) -> None:
    assert marks(replace(facts, network_policies=[]))["network-policies"] is CheckOutcome.WARNING
    assert marks(replace(facts, disruption_budgets=[]))["disruption-budgets"] is CheckOutcome.WARNING
    assert marks(replace(facts, our_version="9.9.9"))["version-skew"] is CheckOutcome.WARNING


def test_missing_facts_make_checks_unknown(facts: ClusterFacts) -> None:
    """Without a fact, no check fails by it, and no check that needs it passes."""
    blind = replace(
        facts,
        deployments=DENIED,
        pods=DENIED,
        crds=DENIED,
        models=DENIED,
        quotas=DENIED,
        disruption_budgets=DENIED,
        network_policies=DENIED,
        leader_worker_sets=AWAY,
        leases={},
        secrets={},
        account_permissions={},
        pod_reports={},
    )
    found = marks(blind)
    assert CheckOutcome.FAILED not in found.values()
    assert {name for name, mark in found.items() if mark is CheckOutcome.OK} == {
        "api-reachable",
        "api-version",
        "clock-skew",
        "rights-read",
    }


def test_unreached_gateways_show_the_reason(facts: ClusterFacts) -> None:
    away = MissingValue("pod g says nothing for 8 s; a NetworkPolicy may keep the API server out")
    said = {
        name: [replace(one, readiness=away, metrics=away) for one in found] for name, found in facts.pod_reports.items()
    }
    found = replace(facts, pod_reports=said)
    for check in ("gateway-fleet", "redis", "gateway-index", "gateway-notes", "operator-watches"):
        assert marks(found)[check] is CheckOutcome.UNKNOWN
        assert "NetworkPolicy" in lines(found, check)


def test_missing_installation_fails_once_per_component(facts: ClusterFacts) -> None:
    bare = replace(
        facts,
        deployments=[],
        pods=[],
        crds=[],
        models=[],
        leases={},
        account_permissions={},
        secrets={},
        pod_reports={},
    )
    assert failing(bare) == {"crd-installed", "operator-installed", "gateway-installed"}


@pytest.mark.parametrize(
    "note",
    [
        "default/tiny: the index of 2 instances is in quarantine: e-0/0/0: the index predicts what the engine does not find",
        "the index of 1 models is not kept up: default/tiny: Redis is away for 3 s",
        "1 engines do not report what they cache: e-0/0/0: no answer within 3 s",
    ],
)
def test_quarantined_or_stale_index_is_reported_once(facts: ClusterFacts, note: str) -> None:
    first, *rest = facts.pod_reports["gateway"]
    assert isinstance(first.readiness, Readiness)
    degraded = replace(first, readiness=msgspec.structs.replace(first.readiness, notes=[note]))
    found = replace(facts, pod_reports={**facts.pod_reports, "gateway": [degraded, *rest]})
    assert marks(facts)["gateway-index"] is CheckOutcome.OK
    assert marks(found)["gateway-index"] is CheckOutcome.WARNING
    assert note in lines(found, "gateway-index")
    assert marks(found)["gateway-notes"] is CheckOutcome.OK
