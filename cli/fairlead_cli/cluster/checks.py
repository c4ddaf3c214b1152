"""Which function judges which check; and all of them over the facts of one moment."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Final

from fairlead_cli.cluster.catalogue import When, checks
from fairlead_cli.cluster.facts import Facts
from fairlead_cli.cluster.judging import around, gateway, indexer, models, operator, platform, workloads
from fairlead_cli.cluster.verdict import Judge, Mark, Result

JUDGES: Final[Mapping[str, Judge]] = MappingProxyType(
    {
        "api-reachable": platform.api_reachable,
        "api-version": platform.api_version,
        "clock-skew": platform.clock_skew,
        "rights-read": platform.rights_read,
        "rights-install": platform.rights_install,
        "pod-security": platform.pod_security,
        "quota": platform.quota,
        "accelerators": platform.accelerators,
        "storage-class": platform.storage_class,
        "leader-worker-set": platform.leader_worker_set,
        "crd-names": platform.crd_names,
        "crd-installed": platform.crd_installed,
        "crd-schema": platform.crd_schema,
        "operator-installed": operator.installed,
        "operator-ready": operator.ready,
        "operator-leader": operator.leader,
        "operator-watches": operator.watches,
        "operator-rights": operator.rights,
        "gateway-installed": gateway.installed,
        "gateway-ready": gateway.ready,
        "gateway-keys": gateway.keys,
        "gateway-rights": gateway.rights,
        "gateway-fleet": gateway.fleet,
        "redis": gateway.redis,
        "gateway-index": gateway.index,
        "gateway-notes": gateway.notes,
        "gateway-certificate": gateway.certificate,
        "indexer-installed": indexer.installed,
        "indexer-ready": indexer.ready,
        "indexer-secrets": indexer.secrets,
        "indexer-rights": indexer.rights,
        "indexer-leads": indexer.leads,
        "indexer-hears": indexer.hears,
        "model-observed": models.observed,
        "model-image": models.caused("model-image"),
        "model-capacity": models.caused("model-capacity"),
        "model-references": models.caused("model-references"),
        "model-admission": models.caused("model-admission"),
        "model-stalled": models.caused("model-stalled"),
        "model-ready": models.ready,
        "model-name": models.names,
        "network-policies": around.network_policies,
        "disruption-budgets": around.disruption_budgets,
        "keys-asked": gateway.keys_asked,
        "images": workloads.unpullable,
        "version-skew": around.version_skew,
    }
)


def judge(facts: Facts, *, before: bool = False) -> tuple[Result, ...]:
    """Every check that concerns this cluster, in order. ``before``: those of ``--pre``."""
    wanted = (When.PRE, When.BOTH) if before else (When.POST, When.BOTH)
    found = []
    for check in checks():
        if check.when not in wanted:
            continue
        ask = partial(platform.rights_read, before=before) if check.id == "rights-read" else JUDGES[check.id]
        verdict = ask(facts)
        if verdict is not None:
            found.append(Result(check, verdict))
    return tuple(found)


def problem(results: tuple[Result, ...]) -> bool:
    """Is anything not as it should be? Warnings, and what cannot be told, are none."""
    return any(one.verdict.mark is Mark.FAILED for one in results)
