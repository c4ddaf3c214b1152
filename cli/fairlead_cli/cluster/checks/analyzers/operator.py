"""Checks of the operator: installed, ready, leader, watches, permissions."""

from collections.abc import Sequence
from typing import Final

from fairlead.kube.conditions import parse_time
from fairlead.kube.resources import Manifest, key_of
from fairlead_cli.cluster import components
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.check import Verdict, failed, known, unknown, verdict_of
from fairlead_cli.cluster.components import OPERATOR
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue, format_age, namespace_name, spec_of
from fairlead_operator.health import MAX_SILENCE_SECONDS
from fairlead_operator.kube.leader_election import LEASE_NAME

_MARGIN_SECONDS: Final = 5.0
"""Clocks of operator and API server differ, and the API server's time is cut to a second."""


def check_installed(facts: ClusterFacts) -> Verdict:
    """Fails without an operator, and when two watch the same namespace."""
    operators = known(facts.component_deployments(OPERATOR))
    if not operators:
        return failed("no Deployment has the labels of Fairlead's operator")
    clashes = [
        f"{key_of(first)} and {key_of(other)} both look after {shared}"
        for position, first in enumerate(operators)
        for other in operators[position + 1 :]
        if (shared := _shared_namespaces(first, other))
    ]
    return verdict_of(clashes, note=", ".join(key_of(first) for first in operators))


def _shared_namespaces(first_operator: Manifest, second_operator: Manifest) -> str:
    """Returns the names of the namespaces that both operators watch, as text; empty for none."""
    first, second = (
        set(components.watched_namespaces(first_operator)),
        set(components.watched_namespaces(second_operator)),
    )
    if not first or not second:
        return "all namespaces" if not first and not second else ", ".join(sorted(first or second))
    return ", ".join(sorted(first & second))


@workloads.for_component(OPERATOR, ready=True)
def check_leader(facts: ClusterFacts, operators: Sequence[Manifest]) -> Verdict:
    """Fails unless the Lease of each operator's namespace has an active holder, by the API server's
    clock.
    """
    failures: list[str] = []
    doubts: list[str] = []
    holders: list[str] = []
    for namespace in dict.fromkeys(namespace_name(deployment) for deployment in operators):
        lease = facts.leases.get(namespace)
        if isinstance(lease, MissingValue) and lease.is_absent:
            failures.append(f"there is no Lease {namespace}/{LEASE_NAME}: none ever led")
        elif lease is None or isinstance(lease, MissingValue):
            doubts.append(f"{namespace}/{LEASE_NAME}: {lease.reason if lease else 'it was not read'}")
        elif problem := _lease_problem(lease, facts.now):
            failures.append(f"{namespace}/{LEASE_NAME}: {problem}")
        else:
            holders.append(str(spec_of(lease)["holderIdentity"]).partition("_")[0])
    return verdict_of(failures, doubts, note=", ".join(holders))


def _lease_problem(lease: Manifest, now: float) -> str:
    """Returns why the lease has no active holder; empty when it has one."""
    lease_spec = spec_of(lease)
    holder, renewed = str(lease_spec.get("holderIdentity") or ""), parse_time(lease_spec.get("renewTime"))
    if not holder:
        return "no operator holds it"
    duration = float(lease_spec.get("leaseDurationSeconds") or 15)
    if renewed is None:
        return f"{holder} holds it and never renewed it"
    if now - renewed > duration + _MARGIN_SECONDS:
        return f"{holder} holds it and last renewed it {format_age(renewed, now)} ago; it lasts {duration:.0f} s"
    return ""


@workloads.for_component(OPERATOR, ready=True)
def check_watches(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """Fails for watches of the leader that received nothing for MAX_SILENCE_SECONDS, by its
    metrics.
    """
    reports = facts.pod_reports.get(OPERATOR, ())
    pages = [(report.pod, report.metrics) for report in reports if not isinstance(report.metrics, MissingValue)]
    leading = [(pod, page) for pod, page in pages if page.value("fairlead_operator_leading") == 1.0]
    if not leading:
        reasons = [report.metrics.reason for report in reports if isinstance(report.metrics, MissingValue)]
        return unknown(reasons[0] if reasons else "no operator pod that answered is the leader")
    silent, oldest = [], 0.0
    for pod, page in leading:
        for sample in page.matching("fairlead_operator_watch_age_seconds"):
            oldest = max(oldest, sample.value)
            if sample.value > MAX_SILENCE_SECONDS:
                silent.append(
                    f"{pod} has received nothing about {sample.labels.get('kind', '?')} for {sample.value:.0f} s"
                )
    return verdict_of(silent, note=f"of each within {oldest:.0f} s")
