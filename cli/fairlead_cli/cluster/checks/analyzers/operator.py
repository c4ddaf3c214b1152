"""The operator: is it there, does it lead, does it hear the cluster, may it do its work."""

from collections.abc import Sequence
from typing import Final

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster import components
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.verdict import Verdict, failed, unknown, verdict_of
from fairlead_cli.cluster.components import OPERATOR
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import namespace_name, object_key, spec_of
from fairlead_cli.cluster.timestamps import format_age, parse_time
from fairlead_operator.health import MAX_SILENCE_SECONDS
from fairlead_operator.kube.leader_election import LEASE_NAME

_MARGIN_SECONDS: Final = 5.0
"""Clocks of operator and API server differ, and the API server tells its own to a second only."""


def check_installed(facts: ClusterFacts) -> Verdict:
    """One for each namespace that is looked after."""
    found = facts.component_deployments(OPERATOR)
    if isinstance(found, MissingValue):
        return unknown(found)
    if not found:
        return failed("no Deployment has the labels of Fairlead's operator")
    clashes = [
        f"{object_key(one)} and {object_key(other)} both look after {where}"
        for position, one in enumerate(found)
        for other in found[position + 1 :]
        if (where := _shared_namespaces(one, other))
    ]
    return verdict_of(clashes, note=", ".join(object_key(one) for one in found))


def _shared_namespaces(one: Manifest, other: Manifest) -> str:
    """Namespaces of two operators that are the same; empty for none."""
    first, second = set(components.watched_namespaces(one)), set(components.watched_namespaces(other))
    if not first or not second:
        return "all namespaces" if not first and not second else ", ".join(sorted(first or second))
    return ", ".join(sorted(first & second))


def check_ready(facts: ClusterFacts) -> Verdict | None:
    """Their pods."""
    return workloads.check_pods_ready(facts, OPERATOR)


@workloads.for_component(OPERATOR, ready=True)
def check_leader(facts: ClusterFacts, found: Sequence[Manifest]) -> Verdict:
    """By the lease, judged by the API server's clock."""
    bad: list[str] = []
    unsure: list[str] = []
    holders: list[str] = []
    for place in dict.fromkeys(namespace_name(one) for one in found):
        lease = facts.leases.get(place)
        if isinstance(lease, MissingValue) and lease.is_absent:
            bad.append(f"there is no Lease {place}/{LEASE_NAME}: none ever led")
        elif lease is None or isinstance(lease, MissingValue):
            unsure.append(f"{place}/{LEASE_NAME}: {lease.reason if lease else 'it was not looked at'}")
        elif problem := _lease_problem(lease, facts.now):
            bad.append(f"{place}/{LEASE_NAME}: {problem}")
        else:
            holders.append(str(spec_of(lease)["holderIdentity"]).partition("_")[0])
    return verdict_of(bad, unsure, note=", ".join(holders))


def _lease_problem(lease: Manifest, now: float) -> str:
    """Why nobody leads by it; empty when somebody does."""
    said = spec_of(lease)
    holder, renewed = str(said.get("holderIdentity") or ""), parse_time(said.get("renewTime"))
    if not holder:
        return "nobody holds it"
    lasts = float(said.get("leaseDurationSeconds") or 15)
    if renewed is None:
        return f"{holder} holds it and never renewed it"
    if now - renewed > lasts + _MARGIN_SECONDS:
        return f"{holder} holds it and last renewed it {format_age(renewed, now)} ago; it lasts {lasts:.0f} s"
    return ""


@workloads.for_component(OPERATOR, ready=True)
def check_watches(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """What the leader's metrics say."""
    told = facts.told.get(OPERATOR, ())
    pages = [(one.pod, one.metrics) for one in told if not isinstance(one.metrics, MissingValue)]
    leading = [(pod, page) for pod, page in pages if page.value("fairlead_operator_leading") == 1.0]
    if not leading:
        away = [one.metrics.reason for one in told if isinstance(one.metrics, MissingValue)]
        return unknown(away[0] if away else "no pod that was asked says that it leads")
    bad, oldest = [], 0.0
    for pod, page in leading:
        for sample in page.matching("fairlead_operator_watch_age_seconds"):
            oldest = max(oldest, sample.value)
            if sample.value > MAX_SILENCE_SECONDS:
                bad.append(f"{pod} has heard nothing of {sample.labels.get('kind', '?')} for {sample.value:.0f} s")
    return verdict_of(bad, note=f"of each within {oldest:.0f} s")


def check_permissions(facts: ClusterFacts) -> Verdict | None:
    """As the API server decides."""
    return workloads.check_permissions(facts, OPERATOR)
