"""The indexers: are they there, have they what they need, does one read each model, do they hear engines."""

from collections.abc import Sequence

from fairlead.kube.resource import Manifest
from fairlead_cli.cluster.facts import GATEWAY, INDEXER, Facts
from fairlead_cli.cluster.judging import workloads
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.prometheus import Page
from fairlead_cli.cluster.reading import key
from fairlead_cli.cluster.verdict import Mark, Verdict, judged, ok, unknown, warned


def installed(facts: Facts) -> Verdict | None:
    """Where gateways look for an index; those without Redis make their own."""
    found, gateways = facts.component(INDEXER), facts.component(GATEWAY)
    if isinstance(found, Missing) or isinstance(gateways, Missing):
        return unknown(found if isinstance(found, Missing) else Missing("gateways could not be looked for"))
    if found:
        return ok(", ".join(key(one) for one in found))
    waiting = [key(one) for one in gateways if workloads.has_redis(one)]
    return warned(*(f"{name} has a Redis, and nobody writes the index there" for name in waiting)) if waiting else None


def ready(facts: Facts) -> Verdict | None:
    """Their pods."""
    return workloads.pods_ready(facts, INDEXER)


def secrets(facts: Facts) -> Verdict | None:
    """All that they name."""
    return workloads.secrets_complete(facts, INDEXER)


def rights(facts: Facts) -> Verdict | None:
    """Of those that follow the cluster."""
    return workloads.rights_whole(facts, INDEXER)


@workloads.each(INDEXER, ready=True)
def leads(facts: Facts, _: Sequence[Manifest]) -> Verdict:
    """Of each model that any of them knows; one that was not reached may be who does."""
    pages, unreached = _pages(facts)
    read: dict[str, float] = {}
    for _pod, page in pages:
        for one in page.all("fairlead_indexer_leads"):
            model = one.labels.get("model", "?")
            read[model] = max(one.value, read.get(model, 0.0))
    nobody = [f"no indexer reads the engines of {model}" for model, led in sorted(read.items()) if not led]
    if unreached:
        return unknown(unreached[0])
    return judged(nobody, note=f"{len(read)} of {len(read)}" if read else "no model yet")


@workloads.each(INDEXER, ready=True)
def hears(facts: Facts, _: Sequence[Manifest]) -> Verdict:
    """A warning for what is away: what is known goes on being used."""
    pages, unreached = _pages(facts)
    found = [
        f"{pod} is not connected to Redis"
        for pod, page in pages
        if page.value("fairlead_indexer_redis_connected") == 0.0
    ]
    heard = wanted = 0
    for pod, page in pages:
        connected = {one.labels.get("model", "?"): one.value for one in page.all("fairlead_indexer_connected")}
        for one in page.all("fairlead_indexer_instances"):
            model = one.labels.get("model", "?")
            wanted, heard = wanted + int(one.value), heard + int(connected.get(model, 0.0))
            if connected.get(model, 0.0) < one.value:
                found.append(f"{pod} hears {connected.get(model, 0.0):.0f} of {one.value:.0f} engines of {model}")
    return judged(found, unreached, mark=Mark.WARNING, note=f"{heard} of {wanted} engines")


def _pages(facts: Facts) -> tuple[list[tuple[str, Page]], list[str]]:
    """By pod what each tells; and why others do not, the same reason once."""
    told = facts.told.get(INDEXER, ())
    pages = [(one.pod, one.metrics) for one in told if not isinstance(one.metrics, Missing)]
    away = dict.fromkeys(one.metrics.why for one in told if isinstance(one.metrics, Missing))
    return pages, list(away) or ([] if told else ["no pod of the indexer was found"])
