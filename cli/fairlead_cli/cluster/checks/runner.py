"""Runs all checks on the facts of one moment."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final

from fairlead_cli.cluster.checks.analyzers import autoscaler, gateway, indexer, models, operator, platform, workloads
from fairlead_cli.cluster.checks.catalogue import all_checks
from fairlead_cli.cluster.checks.check import Analyzer, CheckOutcome, CheckResult, CheckStage
from fairlead_cli.cluster.facts import ClusterFacts

ANALYZERS: Final[Mapping[str, Analyzer]] = MappingProxyType(
    {
        "api-reachable": platform.check_api_reachable,
        "api-version": platform.check_api_version,
        "clock-skew": platform.check_clock_skew,
        "rights-read": platform.check_read_permissions,
        "rights-install": platform.check_install_permissions,
        "pod-security": platform.check_pod_security,
        "quota": platform.check_quotas,
        "accelerators": platform.check_accelerators,
        "storage-class": platform.check_storage_class,
        "leader-worker-set": platform.check_leader_worker_sets,
        "crd-names": platform.check_crd_names,
        "crd-installed": platform.check_crds_installed,
        "crd-schema": platform.check_crd_schemas,
        "operator-installed": operator.check_installed,
        "operator-ready": operator.check_ready,
        "operator-leader": operator.check_leader,
        "operator-watches": operator.check_watches,
        "operator-rights": operator.check_permissions,
        "gateway-installed": gateway.check_installed,
        "gateway-ready": gateway.check_ready,
        "gateway-keys": gateway.check_secrets,
        "gateway-rights": gateway.check_permissions,
        "gateway-fleet": gateway.check_fleet,
        "redis": gateway.check_redis,
        "gateway-index": gateway.check_index,
        "gateway-notes": gateway.check_notes,
        "gateway-certificate": gateway.check_certificate,
        "indexer-installed": indexer.check_installed,
        "indexer-ready": indexer.check_ready,
        "indexer-secrets": indexer.check_secrets,
        "indexer-rights": indexer.check_permissions,
        "indexer-leads": indexer.check_leadership,
        "indexer-hears": indexer.check_connections,
        "autoscaler-installed": autoscaler.check_installed,
        "autoscaler-ready": autoscaler.check_ready,
        "autoscaler-secrets": autoscaler.check_secrets,
        "autoscaler-rights": autoscaler.check_permissions,
        "autoscaler-leads": autoscaler.check_leader,
        "autoscaler-hears": autoscaler.check_gateways,
        "model-observed": models.check_observed,
        "model-image": models.stalled_analyzer("model-image"),
        "model-capacity": models.stalled_analyzer("model-capacity"),
        "model-references": models.check_references,
        "model-endpoint-secrets": models.check_endpoint_secrets,
        "model-admission": models.stalled_analyzer("model-admission"),
        "model-stalled": models.stalled_analyzer("model-stalled"),
        "model-ready": models.check_ready,
        "model-name": models.check_names,
        "network-policies": platform.check_network_policies,
        "disruption-budgets": platform.check_disruption_budgets,
        "keys-asked": gateway.check_authentication,
        "images": workloads.check_images,
        "version-skew": platform.check_version_skew,
    }
)


def run_checks(facts: ClusterFacts, *, before_install: bool = False) -> tuple[CheckResult, ...]:
    """Returns the results of all checks that concern this cluster, in order."""
    stages = (CheckStage.PRE, CheckStage.BOTH) if before_install else (CheckStage.POST, CheckStage.BOTH)
    results = []
    for check in all_checks():
        if check.stage not in stages:
            continue
        analyzer = (
            partial(platform.check_read_permissions, before_install=before_install)
            if check.id == "rights-read"
            else ANALYZERS[check.id]
        )
        verdict = analyzer(facts)
        if verdict is not None:
            results.append(CheckResult(check, verdict))
    return tuple(results)


def has_failures(results: tuple[CheckResult, ...]) -> bool:
    """Whether any check failed. Warnings and unknown outcomes do not count."""
    return any(result.verdict.outcome is CheckOutcome.FAILED for result in results)


@dataclass(frozen=True, slots=True)
class SeededFault:
    """A fault that happens in clusters, and the check that names it. Tests seed each; alert rules
    fire on the same faults.
    """

    name: str
    check: str
    how: str


SEEDED_FAULTS: Final = (
    SeededFault("operator-down", "operator-ready", "no pod of the operator is ready"),
    SeededFault(
        "operator-not-leading",
        "operator-leader",
        "pods are ready, and the lease was not renewed for longer than it lasts",
    ),
    SeededFault("operator-right-removed", "operator-rights", "a rule is taken out of the operator's role"),
    SeededFault("crd-outdated", "crd-schema", "the CRD of ModelDeployments is that of an older release"),
    SeededFault("keys-missing", "gateway-keys", "the Secret with API keys is deleted"),
    SeededFault("fleet-stale", "gateway-fleet", "a gateway can no longer list or watch"),
    SeededFault("redis-unreachable", "redis", "Redis is gone while gateways run"),
    SeededFault("image-unpullable", "model-image", "a model names an image that does not exist"),
    SeededFault("accelerator-unschedulable", "model-capacity", "a model asks for more devices than any node has"),
    SeededFault("credentials-missing", "model-references", "`model.credentials` names a Secret that does not exist"),
)
