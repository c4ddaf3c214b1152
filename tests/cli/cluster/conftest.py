"""A healthy installation as values, and ways to break one part of it."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fairlead import __version__
from fairlead.api.crd import crd_manifest
from fairlead.api.kinds import served_kinds
from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.access.permissions import (
    COMPONENTS_WITH_PERMISSIONS,
    component_permissions,
    permissions_to_check,
    permissions_to_install,
)
from fairlead_cli.cluster.components import COMPONENT_LABEL, secret_references, watched_namespaces
from fairlead_cli.cluster.facts import ClusterFacts, SecretSummary
from fairlead_cli.cluster.pod_http import PodReport, Readiness, parse_metrics
from fairlead_testing.yaml_documents import load_documents

GOLDEN = Path(__file__).parents[2] / "charts" / "golden" / "defaults.yaml"
NOW = 1_800_000_000.0
OPERATOR_PAGE = 'fairlead_operator_leading 1.0\nfairlead_operator_watch_age_seconds{kind="Pod"} 12.0\n'
GATEWAY_PAGE = 'fairlead_gateway_redis_connected 1\nfairlead_gateway_instances{model="chat/tiny",state="Ready"} 1\n'
INDEXER_PAGE = (
    "fairlead_indexer_redis_connected 1.0\n"
    'fairlead_indexer_leads{model="chat/tiny"} 1.0\n'
    'fairlead_indexer_instances{model="chat/tiny"} 2.0\nfairlead_indexer_connected{model="chat/tiny"} 2.0\n'
)
INDEXER_IDLE = 'fairlead_indexer_redis_connected 1.0\nfairlead_indexer_leads{model="chat/tiny"} 0.0\n'
AUTOSCALER_PAGE = (
    "fairlead_autoscaler_leads 1.0\nfairlead_autoscaler_frozen 0.0\n"
    "fairlead_autoscaler_gateways 2.0\nfairlead_autoscaler_gateways_missing 0.0\n"
)
Change = Callable[..., ClusterFacts]


def chart() -> list[Manifest]:
    """Returns the objects that helm installs, from the chart's golden file."""
    return copy.deepcopy(_chart())


@cache
def _chart() -> list[Manifest]:
    return [document for document in load_documents(GOLDEN.read_text(encoding="utf-8")) if document is not None]


def named(kind: str, manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def a_pod(deployment: Manifest, number: int, ready: bool = True) -> Manifest:
    """A pod of a Deployment, as its controllers would have made it."""
    template = copy.deepcopy(deployment["spec"]["template"])
    name = f"{deployment['metadata']['name']}-{number}"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {**template["metadata"], "name": name, "namespace": "fairlead", "uid": f"uid-{name}"},
        "spec": template["spec"],
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.9",
            "conditions": [{"type": "Ready", "status": str(ready), "message": "" if ready else "containers not ready"}],
        },
    }


def a_model(name: str = "tiny", ready: bool = True, **conditions: tuple[str, str, str]) -> Manifest:
    """Returns a model. ``conditions``: type → status, reason, message."""
    by_kind = {"Ready": (str(ready), "AllReady" if ready else "NoInstance", "1 instance ready"), **conditions}
    return {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {
            "name": name,
            "namespace": "chat",
            "uid": f"uid-{name}",
            "generation": 2,
            "creationTimestamp": "2027-01-15T07:00:00Z",
        },
        "spec": {
            "model": {"uri": "hf://a/b"},
            "engine": {"type": "VLLM"},
            "pools": [{"name": "main", "role": "Serve", "acceleratorClassName": "nvidia-l4"}],
        },
        "status": {
            "observedGeneration": 2,
            "clientName": name,
            "ready": "1/1" if ready else "0/1",
            "pools": [{"name": "main", "role": "Serve", "desired": 1, "ready": int(ready), "updated": 1}],
            "conditions": [
                {"type": kind, "status": status, "reason": reason, "message": message}
                for kind, (status, reason, message) in by_kind.items()
            ],
        },
    }


def established(definition: Manifest) -> Manifest:
    return {**definition, "status": {"conditions": [{"type": "Established", "status": "True"}]}}


def lease(renewed: str = "2027-01-15T07:59:58.000000Z") -> Manifest:
    """NOW is 2027-01-15T08:00:00Z."""
    spec = {"holderIdentity": "fairlead-operator-0_1_ab", "leaseDurationSeconds": 15, "renewTime": renewed}
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "x"}, "spec": spec}


def pod_report(pod: Manifest, page: str, *notes: str, ready: bool = True) -> PodReport:
    return PodReport(pod["metadata"]["name"], "fairlead", Readiness(ready, list(notes)), parse_metrics(page))


def healthy() -> ClusterFacts:
    manifests = chart()
    deployments = named("Deployment", manifests)
    pods = [a_pod(deployment, number) for deployment in deployments for number in range(deployment["spec"]["replicas"])]
    by = {
        name: [pod for pod in pods if pod["metadata"]["labels"][COMPONENT_LABEL] == name]
        for name in COMPONENTS_WITH_PERMISSIONS
    }
    secrets: dict[tuple[str, str], SecretSummary] = {}
    for wanted in (reference for each in deployments for reference in secret_references(each)):
        before = secrets.get((wanted.namespace, wanted.name), SecretSummary(frozenset()))
        secrets[wanted.namespace, wanted.name] = SecretSummary(before.entries | wanted.entries)
    accounts = {
        (deployment["metadata"]["labels"][COMPONENT_LABEL], "fairlead"): dict.fromkeys(
            component_permissions(
                deployment["metadata"]["labels"][COMPONENT_LABEL], "fairlead", watched_namespaces(deployment)
            ),
            True,
        )
        for deployment in deployments
        if deployment["metadata"]["labels"][COMPONENT_LABEL] in COMPONENTS_WITH_PERMISSIONS
    }
    asked = [
        *permissions_to_check("fairlead", before_install=False),
        *permissions_to_check("fairlead", before_install=True),
        *permissions_to_install("fairlead", True),
    ]
    return ClusterFacts(
        server="https://10.0.0.1:6443",
        access_source="the context prod of ~/.kube/config",
        version="v1.36.3",
        now=NOW,
        skew_seconds=0.0,
        permissions=dict.fromkeys(asked, True),
        dry_run_refusal="",
        nodes=[{"kind": "Node", "metadata": {"name": "n"}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}],
        storage_classes=[
            {"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}
        ],
        crds=[established(crd_manifest(kind)) for kind in served_kinds()],
        deployments=deployments,
        pods=pods,
        leases={"fairlead": lease()},
        account_permissions=accounts,
        secrets=secrets,
        pod_reports={
            "operator": [pod_report(pod, OPERATOR_PAGE, "leading") for pod in by["operator"]],
            "gateway": [pod_report(pod, GATEWAY_PAGE) for pod in by["gateway"]],
            "indexer": [
                pod_report(pod, INDEXER_IDLE if number else INDEXER_PAGE) for number, pod in enumerate(by["indexer"])
            ],
            "autoscaler": [
                pod_report(pod, AUTOSCALER_PAGE.replace("leads 1.0", "leads 0.0") if number else AUTOSCALER_PAGE)
                for number, pod in enumerate(by["autoscaler"])
            ],
        },
        models=[a_model()],
        disruption_budgets=named("PodDisruptionBudget", manifests),
        network_policies=named("NetworkPolicy", manifests),
        our_version=__version__,
    )


@pytest.fixture
def facts() -> ClusterFacts:
    return healthy()


@pytest.fixture
def with_models() -> Callable[..., ClusterFacts]:
    """The healthy installation with these models."""

    def make(*models: Manifest) -> ClusterFacts:
        return replace(healthy(), models=list(models))

    return make


@pytest.fixture(scope="session")
def builders() -> Mapping[str, Callable[..., Any]]:
    """Returns builders of facts for test modules, which cannot import this file."""
    return {"pod": a_pod, "model": a_model, "lease": lease, "pod_report": pod_report, "chart": chart}
