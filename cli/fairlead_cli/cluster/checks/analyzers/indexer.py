"""Checks of the indexers: installed, ready, Secrets, permissions, leadership, connections."""

from collections.abc import Sequence

from fairlead.kube.resources import Manifest, key_of
from fairlead_cli.cluster import components
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.check import CheckOutcome, Verdict, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import GATEWAY, INDEXER
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue


def check_installed(facts: ClusterFacts) -> Verdict | None:
    """Warns about gateways with a Redis but no indexer. Those without a Redis need no indexer."""
    indexers, gateways = facts.component_deployments(INDEXER), facts.component_deployments(GATEWAY)
    if isinstance(indexers, MissingValue) or isinstance(gateways, MissingValue):
        return unknown(indexers if isinstance(indexers, MissingValue) else MissingValue("gateways could not be listed"))
    if indexers:
        return passed(", ".join(key_of(deployment) for deployment in indexers))
    unserved = [key_of(deployment) for deployment in gateways if components.has_redis(deployment)]
    return (
        warned(*(f"{name} has a Redis, and no indexer writes the index there" for name in unserved))
        if unserved
        else None
    )


@workloads.for_component(INDEXER, ready=True)
def check_leadership(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """Fails for models whose engines no indexer reads.

    The verdict is unknown if an indexer did not answer, because it may read them.
    """
    pages, unreached = workloads.metrics_pages(facts, INDEXER)
    leaders: dict[str, float] = {}
    for _pod, page in pages:
        for sample in page.matching("fairlead_indexer_leads"):
            model = sample.labels.get("model", "?")
            leaders[model] = max(sample.value, leaders.get(model, 0.0))
    unread = [f"no indexer reads the engines of {model}" for model, leads in sorted(leaders.items()) if not leads]
    if unreached:
        return unknown(unreached[0])
    return verdict_of(unread, note=f"{len(leaders)} of {len(leaders)}" if leaders else "no model yet")


@workloads.for_component(INDEXER, ready=True)
def check_connections(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """Warns about missing connections to Redis and engines; the known index stays in use."""
    pages, unreached = workloads.metrics_pages(facts, INDEXER)
    findings = [
        f"{pod} is not connected to Redis"
        for pod, page in pages
        if page.value("fairlead_indexer_redis_connected") == 0.0
    ]
    connected_count = expected_count = 0
    for pod, page in pages:
        connected = {
            sample.labels.get("model", "?"): sample.value for sample in page.matching("fairlead_indexer_connected")
        }
        for sample in page.matching("fairlead_indexer_instances"):
            model = sample.labels.get("model", "?")
            expected_count, connected_count = (
                expected_count + int(sample.value),
                connected_count + int(connected.get(model, 0.0)),
            )
            if connected.get(model, 0.0) < sample.value:
                findings.append(f"{pod} hears {connected.get(model, 0.0):.0f} of {sample.value:.0f} engines of {model}")
    return verdict_of(
        findings, unreached, outcome=CheckOutcome.WARNING, note=f"{connected_count} of {expected_count} engines"
    )
