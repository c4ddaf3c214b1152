"""The indexers: are they there, have they what they need, does one read each model, do they hear engines."""

from collections.abc import Sequence

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster import components
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.verdict import CheckOutcome, Verdict, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import GATEWAY, INDEXER
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.metrics_page import MetricsPage
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import object_key


def check_installed(facts: ClusterFacts) -> Verdict | None:
    """Where gateways look for an index; those without Redis make their own."""
    found, gateways = facts.component_deployments(INDEXER), facts.component_deployments(GATEWAY)
    if isinstance(found, MissingValue) or isinstance(gateways, MissingValue):
        return unknown(found if isinstance(found, MissingValue) else MissingValue("gateways could not be looked for"))
    if found:
        return passed(", ".join(object_key(one) for one in found))
    waiting = [object_key(one) for one in gateways if components.has_redis(one)]
    return warned(*(f"{name} has a Redis, and nobody writes the index there" for name in waiting)) if waiting else None


def check_ready(facts: ClusterFacts) -> Verdict | None:
    """Their pods."""
    return workloads.check_pods_ready(facts, INDEXER)


def check_secrets(facts: ClusterFacts) -> Verdict | None:
    """All that they name."""
    return workloads.check_secrets(facts, INDEXER)


def check_permissions(facts: ClusterFacts) -> Verdict | None:
    """Of those that follow the cluster."""
    return workloads.check_permissions(facts, INDEXER)


@workloads.for_component(INDEXER, ready=True)
def check_leadership(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """Of each model that any of them knows; one that was not reached may be who does."""
    pages, unreached = _pages(facts)
    read: dict[str, float] = {}
    for _pod, page in pages:
        for one in page.matching("fairlead_indexer_leads"):
            model = one.labels.get("model", "?")
            read[model] = max(one.value, read.get(model, 0.0))
    nobody = [f"no indexer reads the engines of {model}" for model, led in sorted(read.items()) if not led]
    if unreached:
        return unknown(unreached[0])
    return verdict_of(nobody, note=f"{len(read)} of {len(read)}" if read else "no model yet")


@workloads.for_component(INDEXER, ready=True)
def check_connections(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """A warning for what is away: what is known goes on being used."""
    pages, unreached = _pages(facts)
    found = [
        f"{pod} is not connected to Redis"
        for pod, page in pages
        if page.value("fairlead_indexer_redis_connected") == 0.0
    ]
    heard = wanted = 0
    for pod, page in pages:
        connected = {one.labels.get("model", "?"): one.value for one in page.matching("fairlead_indexer_connected")}
        for one in page.matching("fairlead_indexer_instances"):
            model = one.labels.get("model", "?")
            wanted, heard = wanted + int(one.value), heard + int(connected.get(model, 0.0))
            if connected.get(model, 0.0) < one.value:
                found.append(f"{pod} hears {connected.get(model, 0.0):.0f} of {one.value:.0f} engines of {model}")
    return verdict_of(found, unreached, mark=CheckOutcome.WARNING, note=f"{heard} of {wanted} engines")


def _pages(facts: ClusterFacts) -> tuple[list[tuple[str, MetricsPage]], list[str]]:
    """By pod what each tells; and why others do not, the same reason once."""
    told = facts.told.get(INDEXER, ())
    pages = [(one.pod, one.metrics) for one in told if not isinstance(one.metrics, MissingValue)]
    away = dict.fromkeys(one.metrics.reason for one in told if isinstance(one.metrics, MissingValue))
    return pages, list(away) or ([] if told else ["no pod of the indexer was found"])
