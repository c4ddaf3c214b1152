"""Checks of the gateways: installed, ready, Secrets, permissions, fresh fleet, Redis, index,
certificate.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fairlead.kube.resources import Manifest, key_of
from fairlead_cli.cluster import components
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.check import CheckOutcome, Verdict, failed, known, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import GATEWAY, REDIS
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue, arguments_of, format_age, namespace_name, pod_spec_of
from fairlead_cli.cluster.pod_http import PodReport, Readiness

_STALE_FLEET_NOTES: Final = ("cannot watch the cluster", "no fleet has been read yet")
_REDIS_NOTES: Final = ("Redis is away", "Redis refuses writes", "no Redis")
_INDEX_NOTES: Final = (" in quarantine: ", " do not report what they cache: ", " is not used, since ")
"""Parts of notes about the index; model names come before them."""
_EXPIRY_WARNING_SECONDS: Final = 14 * 86_400.0


def check_installed(facts: ClusterFacts) -> Verdict:
    """Fails when no gateway is installed."""
    deployments = known(facts.component_deployments(GATEWAY))
    return (
        passed(", ".join(key_of(deployment) for deployment in deployments))
        if deployments
        else failed("no Deployment has the labels of Fairlead's gateway")
    )


def check_fleet(facts: ClusterFacts) -> Verdict | None:
    return _by_notes(facts, _STALE_FLEET_NOTES, CheckOutcome.FAILED)


def check_index(facts: ClusterFacts) -> Verdict | None:
    return _warn_about_notes(facts, _is_index_note)


def check_notes(facts: ClusterFacts) -> Verdict | None:
    """Warns about the gateways' notes on anything but the fleet, Redis, the index and draining."""
    return _warn_about_notes(
        facts,
        lambda note: not note.startswith((*_STALE_FLEET_NOTES, *_REDIS_NOTES, "draining")) and not _is_index_note(note),
    )


@workloads.for_component(GATEWAY)
def check_redis(facts: ClusterFacts, deployments: Sequence[Manifest]) -> Verdict | None:
    """Fails when Redis does not serve the gateways; warns about several gateways without a Redis.

    Returns None when no gateway has a Redis and each runs alone.
    """
    without = [deployment for deployment in deployments if not components.has_redis(deployment)]
    alone = [
        f"{key_of(deployment)} has several gateways and no Redis"
        for deployment in without
        if components.desired_replicas(deployment) > 1
    ]
    if len(without) == len(deployments):
        return warned(*alone) if alone else None
    verdict = _by_notes(facts, _REDIS_NOTES[:2], CheckOutcome.FAILED)
    if verdict is None or verdict.outcome is not CheckOutcome.OK:
        return (
            verdict
            if verdict is None or verdict.outcome is not CheckOutcome.FAILED
            else failed(*verdict.lines, *_own_redis(facts))
        )
    pages = [
        deployment.metrics
        for deployment in facts.pod_reports.get(GATEWAY, ())
        if not isinstance(deployment.metrics, MissingValue)
    ]
    disconnected = [page for page in pages if page.value("fairlead_gateway_redis_connected") == 0.0]
    if disconnected:
        return failed(f"{len(disconnected)} of {len(pages)} gateways are not connected")
    return warned(*alone) if alone else passed()


def _own_redis(facts: ClusterFacts) -> Iterator[str]:
    """Yields why the chart's own Redis is not ready."""
    deployments = facts.component_deployments(REDIS)
    for deployment in () if isinstance(deployments, MissingValue) else deployments:
        if not workloads.ready_pods(facts, deployment):
            yield from workloads.not_ready_reasons(facts, deployment)


@workloads.for_component(GATEWAY)
def check_certificate(facts: ClusterFacts, deployments: Sequence[Manifest]) -> Verdict | None:
    """Fails for expired TLS certificates of gateways, and warns 14 days before they expire.

    Returns None when no gateway has a certificate from a Secret.
    """
    expired, expiring, unreadable, valid = [], [], [], []
    for deployment in deployments:
        for volume in pod_spec_of(deployment).get("volumes") or []:
            name = str((volume.get("secret") or {}).get("secretName", ""))
            if volume.get("name") != "tls" or not name:
                continue
            secret = facts.secrets.get((namespace_name(deployment), name))
            if secret is None or isinstance(secret, MissingValue) or secret.certificate_expires is None:
                unreadable.append(
                    f"{name}: {secret.reason if isinstance(secret, MissingValue) else 'its tls.crt cannot be read'}"
                )
            elif secret.certificate_expires <= facts.now:
                expired.append(f"that of {name} ran out {format_age(secret.certificate_expires, facts.now)} ago")
            elif secret.certificate_expires - facts.now < _EXPIRY_WARNING_SECONDS:
                expiring.append(f"that of {name} runs out in {format_age(facts.now, secret.certificate_expires)}")
            else:
                valid.append(f"{name}: {format_age(facts.now, secret.certificate_expires)}")
    if expired or unreadable:
        return verdict_of(expired, unreadable)
    return warned(*expiring) if expiring else passed(", ".join(valid)) if valid else None


@workloads.for_component(GATEWAY)
def check_authentication(_: ClusterFacts, deployments: Sequence[Manifest]) -> Verdict:
    """Warns about gateways that require no API key."""
    return verdict_of(
        (
            f"{key_of(deployment)} asks for no key"
            for deployment in deployments
            if "--insecure" in arguments_of(deployment)
        ),
        outcome=CheckOutcome.WARNING,
    )


def _is_index_note(note: str) -> bool:
    return any(marker in note for marker in _INDEX_NOTES)


def _warn_about_notes(facts: ClusterFacts, wanted: Callable[[str], bool]) -> Verdict | None:
    """Returns a warning with the wanted notes; None when no gateway can report any."""
    reports = facts.pod_reports.get(GATEWAY, ())
    if not reports or workloads.has_no_ready_pod(facts, GATEWAY):
        return None
    return verdict_of(_notes(reports, wanted), _unreached(reports), outcome=CheckOutcome.WARNING)


def _notes(reports: Sequence[PodReport], wanted: Callable[[str], bool]) -> list[str]:
    """Returns the wanted notes of all gateways that answered, each with its pod."""
    return [
        f"{report.pod}: {note}"
        for report in reports
        if isinstance(report.readiness, Readiness)
        for note in report.readiness.notes
        if wanted(note)
    ]


def _by_notes(facts: ClusterFacts, beginnings: tuple[str, ...], outcome: CheckOutcome) -> Verdict | None:
    reports = facts.pod_reports.get(GATEWAY, ())
    if not known(facts.component_deployments(GATEWAY)):
        return None
    if not reports:
        return unknown("no pod of the gateway was found")
    if workloads.has_no_ready_pod(facts, GATEWAY) and all(
        isinstance(report.readiness, MissingValue) for report in reports
    ):
        return unknown("no pod of the gateway is ready")
    notes = _notes(reports, lambda note: note.startswith(beginnings))
    return verdict_of(notes, _unreached(reports), outcome=outcome)


def _unreached(reports: Sequence[PodReport]) -> list[str]:
    """Returns why gateways did not answer; each reason once."""
    return list(
        dict.fromkeys(report.readiness.reason for report in reports if isinstance(report.readiness, MissingValue))
    )
