"""The operator: is it there, does it lead, does it hear the cluster, may it do its work."""

from collections.abc import Sequence
from typing import Final

from fairlead.kube.resource import Manifest
from fairlead_cli.cluster.facts import OPERATOR, Facts
from fairlead_cli.cluster.judging import workloads
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import key, space, spec
from fairlead_cli.cluster.times import age, wall
from fairlead_cli.cluster.verdict import Verdict, failed, judged, unknown
from fairlead_operator.leading import LEASE
from fairlead_operator.pulse import SILENT_SECONDS

_MARGIN_SECONDS: Final = 5.0
"""Clocks of operator and API server differ, and the API server tells its own to a second only."""


def installed(facts: Facts) -> Verdict:
    """One for each namespace that is looked after."""
    found = facts.component(OPERATOR)
    if isinstance(found, Missing):
        return unknown(found)
    if not found:
        return failed("no Deployment has the labels of Fairlead's operator")
    clashes = [
        f"{key(one)} and {key(other)} both look after {where}"
        for position, one in enumerate(found)
        for other in found[position + 1 :]
        if (where := _both(one, other))
    ]
    return judged(clashes, note=", ".join(key(one) for one in found))


def _both(one: Manifest, other: Manifest) -> str:
    """Namespaces of two operators that are the same; empty for none."""
    first, second = set(workloads.watched(one)), set(workloads.watched(other))
    if not first or not second:
        return "all namespaces" if not first and not second else ", ".join(sorted(first or second))
    return ", ".join(sorted(first & second))


def ready(facts: Facts) -> Verdict | None:
    """Their pods."""
    return workloads.pods_ready(facts, OPERATOR)


@workloads.each(OPERATOR, ready=True)
def leader(facts: Facts, found: Sequence[Manifest]) -> Verdict:
    """By the lease, judged by the API server's clock."""
    bad: list[str] = []
    unsure: list[str] = []
    holders: list[str] = []
    for place in dict.fromkeys(space(one) for one in found):
        lease = facts.leases.get(place)
        if isinstance(lease, Missing) and lease.absent:
            bad.append(f"there is no Lease {place}/{LEASE}: none ever led")
        elif lease is None or isinstance(lease, Missing):
            unsure.append(f"{place}/{LEASE}: {lease.why if lease else 'it was not looked at'}")
        elif problem := _lapsed(lease, facts.now):
            bad.append(f"{place}/{LEASE}: {problem}")
        else:
            holders.append(str(spec(lease)["holderIdentity"]).partition("_")[0])
    return judged(bad, unsure, note=", ".join(holders))


def _lapsed(lease: Manifest, now: float) -> str:
    """Why nobody leads by it; empty when somebody does."""
    said = spec(lease)
    holder, renewed = str(said.get("holderIdentity") or ""), wall(said.get("renewTime"))
    if not holder:
        return "nobody holds it"
    lasts = float(said.get("leaseDurationSeconds") or 15)
    if renewed is None:
        return f"{holder} holds it and never renewed it"
    if now - renewed > lasts + _MARGIN_SECONDS:
        return f"{holder} holds it and last renewed it {age(renewed, now)} ago; it lasts {lasts:.0f} s"
    return ""


@workloads.each(OPERATOR, ready=True)
def watches(facts: Facts, _: Sequence[Manifest]) -> Verdict:
    """What the leader's metrics say."""
    told = facts.told.get(OPERATOR, ())
    pages = [(one.pod, one.metrics) for one in told if not isinstance(one.metrics, Missing)]
    leading = [(pod, page) for pod, page in pages if page.value("fairlead_operator_leading") == 1.0]
    if not leading:
        away = [one.metrics.why for one in told if isinstance(one.metrics, Missing)]
        return unknown(away[0] if away else "no pod that was asked says that it leads")
    bad, oldest = [], 0.0
    for pod, page in leading:
        for sample in page.all("fairlead_operator_watch_age_seconds"):
            oldest = max(oldest, sample.value)
            if sample.value > SILENT_SECONDS:
                bad.append(f"{pod} has heard nothing of {sample.labels.get('kind', '?')} for {sample.value:.0f} s")
    return judged(bad, note=f"of each within {oldest:.0f} s")


def rights(facts: Facts) -> Verdict | None:
    """As the API server decides."""
    return workloads.rights_whole(facts, OPERATOR)
