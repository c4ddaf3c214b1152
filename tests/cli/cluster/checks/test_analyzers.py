"""Every check on facts: all pass in a healthy installation, and each fault fails only its check."""

import asyncio
import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, cast

import msgspec
import pytest

from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound
from fairlead.kube.resources import SECRETS, Manifest, Resource
from fairlead_autoscaler.kubernetes.manager import LEASE_NAME
from fairlead_cli.cluster.access.permissions import AUTOSCALER_LEASE_NAME
from fairlead_cli.cluster.checks.analyzers.models import check_endpoint_secrets, check_references
from fairlead_cli.cluster.checks.catalogue import CHECKS
from fairlead_cli.cluster.checks.check import CheckOutcome, Verdict
from fairlead_cli.cluster.checks.runner import SEEDED_FAULTS, has_failures, run_checks
from fairlead_cli.cluster.components import COMPONENT_LABEL, GATEWAY
from fairlead_cli.cluster.facts import ClusterFacts, SecretSummary
from fairlead_cli.cluster.facts_collector import collect_references
from fairlead_cli.cluster.object_fields import MissingValue
from fairlead_cli.cluster.pod_http import PodReport, Readiness

Build = Mapping[str, Callable[..., Any]]
AWAY = MissingValue("connection refused")
DENIED = MissingValue("you may not", is_forbidden=True)


def marks(facts: ClusterFacts, *, before: bool = False) -> dict[str, CheckOutcome]:
    return {check.check.id: check.verdict.outcome for check in run_checks(facts, before_install=before)}


def failing(facts: ClusterFacts, *, before: bool = False) -> set[str]:
    return {name for name, mark in marks(facts, before=before).items() if mark is CheckOutcome.FAILED}


def lines(facts: ClusterFacts, check: str, *, before: bool = False) -> str:
    return "\n".join(
        next(result for result in run_checks(facts, before_install=before) if result.check.id == check).verdict.lines
    )


def not_ready(pod: dict[str, Any]) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": "False", "message": "containers with unready status: [operator]"}]
    return {**pod, "status": {**pod["status"], "conditions": conditions}}


def of(facts: ClusterFacts, component: str) -> list[dict[str, Any]]:
    return [pod for pod in facts.pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component]


@pytest.mark.parametrize("before", [False, True])
def test_healthy_cluster_passes_all_checks(facts: ClusterFacts, before: bool) -> None:
    if before:
        facts = replace(facts, crds=[])
    assert set(marks(facts, before=before).values()) == {CheckOutcome.OK}
    assert not has_failures(run_checks(facts, before_install=before))


def test_healthy_cluster_runs_all_unconditional_checks(facts: ClusterFacts) -> None:
    rare = {"gateway-certificate", "model-endpoint-secrets"}
    asked = set(marks(facts)) | set(marks(facts, before=True))
    assert asked == {check.id for check in CHECKS} - rare


# --- the ten faults, and more -------------------------------------------------------------------------------------------


def operator_down(facts: ClusterFacts, build: Build) -> ClusterFacts:
    pods = [not_ready(pod) if pod in of(facts, "operator") else pod for pod in facts.pods]
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
    crds = copy.deepcopy(list(facts.crds))
    model = next(manifest for manifest in crds if manifest["metadata"]["name"].startswith("modeldeployments"))
    del model["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rollout"]
    return replace(facts, crds=crds)


def keys_missing(facts: ClusterFacts, build: Build) -> ClusterFacts:
    gone = MissingValue('secrets "fairlead-keys" not found', is_absent=True)
    return replace(facts, secrets={**facts.secrets, ("fairlead", "fairlead-keys"): gone})


def fleet_stale(facts: ClusterFacts, build: Build) -> ClusterFacts:
    note = "cannot watch the cluster; the last fleet stays: Pod had its last event more than 190 s ago: forbidden"
    page = "fairlead_gateway_redis_connected 1\n"
    return with_reports(facts, "gateway", [build["pod_report"](pod, page, note) for pod in of(facts, "gateway")])


def redis_unreachable(facts: ClusterFacts, build: Build) -> ClusterFacts:
    note = "Redis is away for 41s (Connection refused): decisions are not shared with other gateways"
    page = "fairlead_gateway_redis_connected 0\n"
    return with_reports(facts, "gateway", [build["pod_report"](pod, page, note) for pod in of(facts, "gateway")])


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


@pytest.mark.parametrize("fault", SEEDED_FAULTS, ids=lambda fault: fault.name)
def test_each_seeded_fault_fails_only_its_check(facts: ClusterFacts, builders: Build, fault: Any) -> None:
    seed, words = SEEDED[fault.name]
    seeded = seed(facts, builders)
    assert failing(seeded) == {fault.check}
    assert words in lines(seeded, fault.check)


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
    outcomes = marks(replace(facts, namespace_exists=DENIED), before=True)
    assert outcomes["pod-security"] is outcomes["rights-install"] is CheckOutcome.UNKNOWN


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


def test_newer_crds_which_a_rollback_leaves_are_a_warning(facts: ClusterFacts) -> None:
    crds = copy.deepcopy(list(facts.crds))
    schema = crds[0]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    schema["description"] = "of a later release"
    assert marks(replace(facts, crds=crds))["crd-schema"] is CheckOutcome.WARNING
    schema["properties"]["later"] = {"type": "string"}
    assert marks(replace(facts, crds=crds))["crd-schema"] is CheckOutcome.WARNING
    assert "is newer than this release: it has spec.later" in lines(replace(facts, crds=crds), "crd-schema")


def test_missing_unestablished_newer_and_foreign_crds(facts: ClusterFacts, builders: Build) -> None:
    crds = list(facts.crds)
    assert failing(replace(facts, crds=crds[:1])) == {"crd-installed"}
    bare = {name: value for name, value in crds[0].items() if name != "status"}
    assert "is not established" in lines(replace(facts, crds=[bare, crds[1]]), "crd-installed")
    foreign = {**crds[0], "spec": {**crds[0]["spec"], "names": {"kind": "Else"}}}
    assert failing(replace(facts, crds=[foreign]), before=True) == {"crd-names"}
    assert marks(replace(facts, crds=crds), before=True)["crd-names"] is CheckOutcome.WARNING


def test_operators_with_shared_namespaces_fail(facts: ClusterFacts) -> None:
    operator = next(
        deployment for deployment in facts.deployments if deployment["metadata"]["name"] == "fairlead-operator"
    )
    second = copy.deepcopy(operator)
    second["metadata"]["namespace"] = "other"
    pods = [
        *facts.pods,
        *(
            {**manifest, "metadata": {**manifest["metadata"], "namespace": "other"}}
            for manifest in of(facts, "operator")
        ),
    ]
    two = replace(
        facts,
        deployments=[*facts.deployments, second],
        pods=pods,
        leases={**facts.leases, "other": facts.leases["fairlead"]},
    )
    assert "both look after all namespaces" in lines(two, "operator-installed")
    for deployment, where in ((operator, "a,b"), (second, "c")):
        deployment["spec"]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "FAIRLEAD_WATCH_NAMESPACES", "value": where}
        )
    assert marks(two)["operator-installed"] is CheckOutcome.OK


def test_silent_watch_of_the_operator_fails(facts: ClusterFacts, builders: Build) -> None:
    page = 'fairlead_operator_leading 1\nfairlead_operator_watch_age_seconds{kind="Deployment"} 400\n'
    deaf = with_reports(facts, "operator", [builders["pod_report"](pod, page) for pod in of(facts, "operator")])
    assert failing(deaf) == {"operator-watches"}
    assert "has received nothing about Deployment for 400 s" in lines(deaf, "operator-watches")


def test_partly_ready_deployment_is_a_warning(facts: ClusterFacts) -> None:
    first, *rest = of(facts, "gateway")
    pods = [not_ready(pod) if pod is first else pod for pod in facts.pods]
    assert marks(replace(facts, pods=pods))["gateway-ready"] is CheckOutcome.WARNING
    assert rest


def test_unpullable_control_plane_image_fails(facts: ClusterFacts) -> None:
    pods = []
    for pod in facts.pods:
        if pod in of(facts, "redis"):
            pod = not_ready(pod)
            waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
            pod["status"]["containerStatuses"] = [{"name": "redis", "state": {"waiting": waiting}}]
        pods.append(pod)
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
    gateway = next(
        deployment for deployment in facts.deployments if deployment["metadata"]["name"] == "fairlead-gateway"
    )
    gateway["spec"]["template"]["spec"]["volumes"].append({"name": "tls", "secret": {"secretName": "cert"}})
    pair = SecretSummary(frozenset({"tls.crt", "tls.key"}), ends)
    assert marks(replace(facts, secrets={**facts.secrets, ("fairlead", "cert"): pair}))["gateway-certificate"] is mark


def test_deployment_without_pods_shows_the_reason(facts: ClusterFacts) -> None:
    assert "no pod of fairlead-operator has been made" in lines(replace(facts, pods=[]), "operator-ready")
    operator = next(
        deployment for deployment in facts.deployments if deployment["metadata"]["name"] == "fairlead-operator"
    )
    refused = [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}]
    operator["status"] = {"conditions": refused}
    assert "exceeded quota: small" in lines(replace(facts, pods=[]), "operator-ready")
    operator["spec"]["replicas"] = 0
    assert "is scaled to 0" in lines(replace(facts, pods=[]), "operator-ready")


def test_chart_redis_failure_shows_its_pods_reason(facts: ClusterFacts, builders: Build) -> None:
    pods = [not_ready(pod) if pod in of(facts, "redis") else pod for pod in facts.pods]
    changed = redis_unreachable(replace(facts, pods=pods), builders)
    assert "pod fairlead-redis-0: containers with unready status" in lines(changed, "redis")


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
    outcomes = marks(blind)
    assert CheckOutcome.FAILED not in outcomes.values()
    assert {name for name, mark in outcomes.items() if mark is CheckOutcome.OK} == {
        "api-reachable",
        "api-version",
        "clock-skew",
        "rights-read",
    }


def test_unreached_gateways_show_the_reason(facts: ClusterFacts) -> None:
    away = MissingValue("pod g says nothing for 8 s; a NetworkPolicy may keep the API server out")
    reports = {
        name: [replace(old, readiness=away, metrics=away) for old in group] for name, group in facts.pod_reports.items()
    }
    unreached = replace(facts, pod_reports=reports)
    for check in ("gateway-fleet", "redis", "gateway-index", "gateway-notes", "operator-watches"):
        assert marks(unreached)[check] is CheckOutcome.UNKNOWN
        assert "NetworkPolicy" in lines(unreached, check)


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
        "the index of default/tiny in Redis is not used, since it was written with another secret",
        "1 engines do not report what they cache: e-0/0/0: no answer within 3 s",
        "the index of default/tiny is not used, since FAIRLEAD_LINKS is off",
    ],
)
def test_quarantined_or_unused_index_is_reported_once(facts: ClusterFacts, note: str) -> None:
    first, *rest = facts.pod_reports["gateway"]
    assert isinstance(first.readiness, Readiness)
    degraded = replace(first, readiness=msgspec.structs.replace(first.readiness, notes=[note]))
    changed = with_reports(facts, "gateway", [degraded, *rest])
    assert marks(facts)["gateway-index"] is CheckOutcome.OK
    assert marks(changed)["gateway-index"] is CheckOutcome.WARNING
    assert note in lines(changed, "gateway-index")
    assert marks(changed)["gateway-notes"] is CheckOutcome.OK


COMPONENT_CHECKS = ("installed", "ready", "secrets", "rights", "leads", "hears")


def problems(facts: ClusterFacts) -> dict[str, Verdict]:
    """Returns the verdicts that are not OK."""
    return {
        check.check.id: check.verdict for check in run_checks(facts) if check.verdict.outcome is not CheckOutcome.OK
    }


def with_reports(facts: ClusterFacts, component: str, reports: list[PodReport]) -> ClusterFacts:
    return replace(facts, pod_reports={**facts.pod_reports, component: reports})


def reporting(facts: ClusterFacts, build: Build, component: str, *pages: str) -> ClusterFacts:
    """Returns facts in which the metrics of a component's pods are these pages."""
    pods = zip(of(facts, component), pages, strict=True)
    return with_reports(facts, component, [build["pod_report"](pod, page) for pod, page in pods])


CONNECTED = "fairlead_indexer_redis_connected 1\n"
INDEXER_IDLE = f'{CONNECTED}fairlead_indexer_leads{{model="chat/tiny"}} 0\n'


def page(leads: int = 0, frozen: int = 0, gateways: int = 2, missing: int = 0) -> str:
    values = {"leads": leads, "frozen": frozen, "gateways": gateways, "gateways_missing": missing}
    return "".join(f"fairlead_autoscaler_{name} {value}\n" for name, value in values.items())


@pytest.mark.parametrize(
    ("component", "leads", "hears"),
    [("autoscaler", "fairlead-autoscaler-0", "4 of 4 gateway answers"), ("indexer", "1 of 1", "2 of 2 engines")],
)
def test_healthy_installation_passes_all_checks_of_a_component(
    facts: ClusterFacts, component: str, leads: str, hears: str
) -> None:
    notes = {result.check.id: result.verdict.note for result in run_checks(facts)}
    assert {f"{component}-{name}" for name in COMPONENT_CHECKS} <= notes.keys()
    assert (notes[f"{component}-leads"], notes[f"{component}-hears"]) == (leads, hears)


def test_an_installation_without_a_leader_fails(facts: ClusterFacts, builders: Build) -> None:
    verdicts = problems(reporting(facts, builders, "autoscaler", page(), page()))
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {"autoscaler-leads": CheckOutcome.FAILED}


@pytest.mark.parametrize(("component", "idle"), [("autoscaler", page()), ("indexer", INDEXER_IDLE)])
def test_an_unreached_pod_may_lead(facts: ClusterFacts, builders: Build, component: str, idle: str) -> None:
    first, second = reporting(facts, builders, component, idle, idle).pod_reports[component]
    silent = replace(first, metrics=MissingValue("the API server does not reach pod x"))
    verdict = problems(with_reports(facts, component, [silent, second]))[f"{component}-leads"]
    assert verdict.outcome is CheckOutcome.UNKNOWN
    assert "does not reach pod x" in verdict.lines[0]


def test_a_frozen_leader_and_silent_gateways_are_warnings(facts: ClusterFacts, builders: Build) -> None:
    verdicts = problems(reporting(facts, builders, "autoscaler", page(leads=1, frozen=1, missing=1), page(gateways=0)))
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {
        "autoscaler-leads": CheckOutcome.WARNING,
        "autoscaler-hears": CheckOutcome.WARNING,
    }
    assert verdicts["autoscaler-hears"].lines == (
        "1 of 2 gateways do not answer fairlead-autoscaler-0",
        "fairlead-autoscaler-1 knows no gateway",
    )


@pytest.mark.parametrize("mode", ["Auto", "Advise", "Disabled", None])
def test_a_missing_autoscaler_warns_only_where_a_model_wants_one(
    facts: ClusterFacts, builders: Build, mode: str | None
) -> None:
    assert not isinstance(facts.deployments, MissingValue)
    model = builders["model"]()
    model["spec"]["autoscaling"] = {"mode": mode} if mode else None
    kept = [
        deployment
        for deployment in facts.deployments
        if deployment["metadata"]["labels"][COMPONENT_LABEL] != "autoscaler"
    ]
    verdicts = problems(replace(facts, deployments=kept, models=[model]))
    assert ("autoscaler-installed" in verdicts) is (mode in ("Auto", "Advise"))
    if mode == "Auto":
        assert "chat/tiny has autoscaling.mode Auto" in verdicts["autoscaler-installed"].lines[0]


def test_a_removed_right_is_named(facts: ClusterFacts) -> None:
    mine = dict.fromkeys(facts.account_permissions["autoscaler", "fairlead"], False)
    denied = replace(facts, account_permissions={**facts.account_permissions, ("autoscaler", "fairlead"): mine})
    lines = problems(denied)["autoscaler-rights"].lines
    assert any("patch deployments.apps/scale" in line or "patch deployments/scale" in line for line in lines), lines


def test_the_lease_is_the_autoscalers() -> None:
    assert AUTOSCALER_LEASE_NAME == LEASE_NAME


def without(facts: ClusterFacts, *components: str) -> ClusterFacts:
    kept = [
        deployment
        for deployment in facts.deployments
        if deployment["metadata"]["labels"][COMPONENT_LABEL] not in components
    ]
    return replace(facts, deployments=kept)


def test_model_without_a_leading_indexer_fails(facts: ClusterFacts, builders: Build) -> None:
    idle, leads = (f'{CONNECTED}fairlead_indexer_leads{{model="chat/tiny"}} {number}\n' for number in (0, 1))
    assert problems(reporting(facts, builders, "indexer", idle, leads)) == {}
    verdicts = problems(reporting(facts, builders, "indexer", idle, idle))
    assert verdicts["indexer-leads"].lines == ("no indexer reads the engines of chat/tiny",)
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {"indexer-leads": CheckOutcome.FAILED}


def test_missing_engine_or_redis_connections_are_warnings(facts: ClusterFacts, builders: Build) -> None:
    page = (
        'fairlead_indexer_redis_connected 0\nfairlead_indexer_leads{model="chat/tiny"} 1\n'
        'fairlead_indexer_instances{model="chat/tiny"} 4\nfairlead_indexer_connected{model="chat/tiny"} 3\n'
    )
    (verdict,) = problems(reporting(facts, builders, "indexer", page, CONNECTED)).values()
    assert verdict.outcome is CheckOutcome.WARNING
    assert [line.partition(" ")[2] for line in verdict.lines] == [
        "is not connected to Redis",
        "hears 3 of 4 engines of chat/tiny",
    ]


def test_missing_indexer_warns_only_for_gateways_with_redis(facts: ClusterFacts) -> None:
    verdicts = problems(without(facts, "indexer"))
    assert {name: verdict.outcome for name, verdict in verdicts.items()} == {"indexer-installed": CheckOutcome.WARNING}
    assert "has a Redis, and no indexer writes the index there" in verdicts["indexer-installed"].lines[0]
    alone = without(facts, "indexer", "redis")
    for deployment in alone.deployments:
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        container["env"] = [each for each in container["env"] if each["name"] != "FAIRLEAD_REDIS_URL"]
    asked = {check.check.id for check in run_checks(alone)} - {"indexer-rights"}  # as they were read
    assert not [name for name in asked if name.startswith("indexer")]


@pytest.mark.parametrize("gone", ["secrets", "rights"])
def test_missing_secret_and_permission_are_named(facts: ClusterFacts, gone: str) -> None:
    if gone == "secrets":
        away = MissingValue('secrets "fairlead-redis" not found', is_absent=True)
        facts = replace(facts, secrets={**facts.secrets, ("fairlead", "fairlead-redis"): away})
    else:
        mine = dict.fromkeys(facts.account_permissions["indexer", "fairlead"], False)
        facts = replace(facts, account_permissions={**facts.account_permissions, ("indexer", "fairlead"): mine})
    assert problems(facts)[f"indexer-{gone}"].outcome is CheckOutcome.FAILED


COMPLETE = SecretSummary(frozenset({"token", "ca.crt"}))
WHERE = ("fairlead", "provider")


def hosted(build: Build, namespace: str = "chat") -> Manifest:
    manifest: Manifest = build["model"]()
    manifest["metadata"] |= {"namespace": namespace, "name": "hosted"}
    endpoint = {
        "url": "https://api.example.com/v1",
        "tokenSecretKeyRef": {"name": "provider", "key": "token"},
        "caSecretKeyRef": {"name": "provider", "key": "ca.crt"},
    }
    manifest["spec"] |= {"engine": {"type": "OpenAI"}, "pools": [{"endpoints": [endpoint]}]}
    return manifest


def with_mount(facts: ClusterFacts, namespace: str = "chat") -> ClusterFacts:
    """Returns the facts with a gateway that mounts the Secret for a namespace."""
    deployments = copy.deepcopy(list(facts.component_deployments(GATEWAY)))  # type: ignore[arg-type]
    for deployment in deployments:
        pods = deployment["spec"]["template"]["spec"]
        pods.setdefault("volumes", []).append({"name": "endpoint-x", "secret": {"secretName": "provider"}})
        mount = {"name": "endpoint-x", "mountPath": f"{ENDPOINT_SECRETS_FOLDER}/{namespace}/provider"}
        pods["containers"][0].setdefault("volumeMounts", []).append(mount)
    return replace(facts, deployments=deployments)


def test_models_without_such_secrets_are_no_matter(facts: ClusterFacts) -> None:
    assert check_endpoint_secrets(facts) is None


@pytest.mark.parametrize(
    ("secret", "outcome", "line"),
    [
        (COMPLETE, CheckOutcome.OK, None),
        (
            SecretSummary(frozenset({"ca.crt"})),
            CheckOutcome.FAILED,
            "chat/hosted: the Secret fairlead/provider has no entry token",
        ),
        (
            MissingValue("not found", is_absent=True),
            CheckOutcome.FAILED,
            "chat/hosted: there is no Secret fairlead/provider",
        ),
        (MissingValue("you may not", is_forbidden=True), CheckOutcome.UNKNOWN, "you may not"),
    ],
)
def test_mounted_secret_has_the_entries(
    facts: ClusterFacts,
    builders: Build,
    secret: SecretSummary | MissingValue,
    outcome: CheckOutcome,
    line: str | None,
) -> None:
    changed = replace(with_mount(facts), models=[hosted(builders)], secrets={**facts.secrets, WHERE: secret})
    verdict = check_endpoint_secrets(changed)
    assert verdict is not None
    assert (verdict.outcome, verdict.lines) == (outcome, () if line is None else (line,))


def test_secret_of_another_namespace_does_not_count(facts: ClusterFacts, builders: Build) -> None:
    changed = replace(with_mount(facts, "search"), models=[hosted(builders)], secrets={WHERE: COMPLETE})
    verdict = check_endpoint_secrets(changed)
    assert verdict is not None
    assert verdict.outcome is CheckOutcome.FAILED
    assert verdict.lines == (
        "chat/hosted: fairlead/fairlead-gateway does not mount the Secret provider for models of the namespace chat",
    )


def test_unreadable_gateways_leave_it_open(facts: ClusterFacts, builders: Build) -> None:
    changed = replace(facts, models=[hosted(builders)], deployments=MissingValue("connection refused"))
    (verdict,) = (check.verdict for check in run_checks(changed) if check.check.id == "model-endpoint-secrets")
    assert verdict.outcome is CheckOutcome.UNKNOWN


class Objects:
    """An API server with some objects; Secrets of the namespace `shut` may not be read."""

    def __init__(self, *objects: Manifest) -> None:
        self._objects = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in objects}

    async def get(self, resource: Resource, namespace: str, name: str) -> Manifest:
        if namespace == "shut" and resource == SECRETS:
            raise Forbidden("you may not get secrets in shut", status=403)
        if (resource.kind, name) not in self._objects:
            raise NotFound("not found", status=404)
        return self._objects[resource.kind, name]


def named(kind: str, name: str, **fields: Any) -> Manifest:
    return {"kind": kind, "metadata": {"name": name}, **fields}


def model(build: Build, namespace: str = "chat") -> Manifest:
    manifest: Manifest = build["model"]()
    manifest["metadata"]["namespace"] = namespace
    token = {"secretKeyRef": {"name": "engine", "key": "token"}}
    maybe = {"secretKeyRef": {"name": "maybe", "key": "x", "optional": True}}
    volumes = [
        {"name": "tls", "secret": {"secretName": "tls"}},
        {"name": "d", "persistentVolumeClaim": {"claimName": "data"}},
    ]
    manifest["spec"] = {
        "model": {"uri": "hf://a/b", "credentials": {"secretRef": {"name": "hf"}}, "cache": {"claimName": "weights"}},
        "engine": {
            "type": "VLLM",
            "imagePullSecrets": [{"name": "registry"}],
            "env": [{"name": "A", "valueFrom": token}, {"name": "B", "valueFrom": maybe}],
        },
        "pools": [{"name": "main", "acceleratorClassName": "l40s", "template": {"spec": {"volumes": volumes}}}],
    }
    return manifest


def checked(facts: ClusterFacts, manifest: Manifest, *objects: Manifest) -> tuple[CheckOutcome, tuple[str, ...]]:
    references = asyncio.run(collect_references(cast(KubeApi, Objects(*objects)), [manifest]))
    verdict = check_references(replace(facts, models=[manifest], references=references))
    assert verdict is not None
    return verdict.outcome, verdict.lines


def test_all_that_is_missing_is_listed_at_once(facts: ClusterFacts, builders: Build) -> None:
    outcome, lines = checked(facts, model(builders), named("Secret", "engine", data={"other": ""}))
    assert outcome is CheckOutcome.FAILED
    assert lines == (
        "chat/tiny: there is no AcceleratorClass l40s",
        "chat/tiny: there is no Secret chat/hf",
        "chat/tiny: there is no PersistentVolumeClaim chat/weights",
        "chat/tiny: there is no Secret chat/registry",
        "chat/tiny: there is no Secret chat/engine with the entry token",
        "chat/tiny: there is no Secret chat/tls",
        "chat/tiny: there is no PersistentVolumeClaim chat/data",
    )


def test_model_with_all_that_it_names_passes(facts: ClusterFacts, builders: Build) -> None:
    objects = [named("Secret", name, data={"token": ""}) for name in ("hf", "registry", "engine", "tls")]
    objects += [named("PersistentVolumeClaim", name) for name in ("weights", "data")]
    facts = replace(facts, accelerator_classes=[named("AcceleratorClass", "l40s")])
    assert checked(facts, model(builders), *objects) == (CheckOutcome.OK, ())


def test_secret_that_may_not_be_read_is_not_called_missing(facts: ClusterFacts, builders: Build) -> None:
    facts = replace(facts, accelerator_classes=[named("AcceleratorClass", "l40s")])
    claims = [named("PersistentVolumeClaim", name) for name in ("weights", "data")]
    outcome, lines = checked(facts, model(builders, "shut"), *claims)
    assert outcome is CheckOutcome.UNKNOWN
    assert lines == ("you may not get secrets in shut",)


def test_mounted_claim_of_a_source_is_looked_up(facts: ClusterFacts, builders: Build) -> None:
    tiny: Manifest = builders["model"]()
    tiny["spec"]["model"] = {"uri": "pvc:models/qwen"}
    assert checked(facts, tiny) == (CheckOutcome.FAILED, ("chat/tiny: there is no PersistentVolumeClaim chat/models",))
