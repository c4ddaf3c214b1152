"""Runs all checks on the facts of one moment."""

from dataclasses import dataclass
from typing import Final

from fairlead_cli.cluster.checks.analyzers.platform import check_read_permissions
from fairlead_cli.cluster.checks.catalogue import CHECKS
from fairlead_cli.cluster.checks.check import CheckOutcome, CheckResult, CheckStage, MissingFact, unknown
from fairlead_cli.cluster.facts import ClusterFacts


def run_checks(facts: ClusterFacts, *, before_install: bool = False) -> tuple[CheckResult, ...]:
    """Returns the results of all checks that concern this cluster, in order."""
    stages = (CheckStage.PRE, CheckStage.BOTH) if before_install else (CheckStage.POST, CheckStage.BOTH)
    results = []
    for check in CHECKS:
        if check.stage not in stages:
            continue
        is_read = check.id == "rights-read"
        try:
            verdict = check_read_permissions(facts, before_install=before_install) if is_read else check.analyze(facts)
        except MissingFact as error:
            verdict = unknown(error.missing)
        if verdict is not None:
            results.append(CheckResult(check, verdict))
    return tuple(results)


def has_failures(results: tuple[CheckResult, ...]) -> bool:
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
