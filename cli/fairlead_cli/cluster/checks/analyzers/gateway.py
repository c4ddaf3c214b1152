"""The gateways: are they there, have they what they need, is their fleet fresh, does Redis answer them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster import components
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.verdict import CheckOutcome, Verdict, failed, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import GATEWAY, REDIS
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import arguments_of, namespace_name, object_key, pod_spec_of
from fairlead_cli.cluster.pod_http import PodReport, Readiness
from fairlead_cli.cluster.timestamps import format_age

_STALE_FLEET_NOTES: Final = ("the cluster cannot be followed", "no fleet has been read yet")
_REDIS_NOTES: Final = ("Redis is away", "Redis refuses writes", "no Redis")
_INDEX_NOTES: Final = (" in quarantine: ", " not kept up: ", " do not tell what they hold: ")
"""Within notes about the index; the models' names come before."""
_EXPIRY_WARNING_SECONDS: Final = 14 * 86_400.0


def check_installed(facts: ClusterFacts) -> Verdict:
    """Any at all."""
    found = facts.component_deployments(GATEWAY)
    if isinstance(found, MissingValue):
        return unknown(found)
    return (
        passed(", ".join(object_key(one) for one in found))
        if found
        else failed("no Deployment has the labels of Fairlead's gateway")
    )


def check_ready(facts: ClusterFacts) -> Verdict | None:
    """Their pods."""
    return workloads.check_pods_ready(facts, GATEWAY)


def check_secrets(facts: ClusterFacts) -> Verdict | None:
    """All Secrets that they name; a pod that starts needs each."""
    return workloads.check_secrets(facts, GATEWAY)


def check_permissions(facts: ClusterFacts) -> Verdict | None:
    """Of those that follow the cluster."""
    return workloads.check_permissions(facts, GATEWAY)


def check_fleet(facts: ClusterFacts) -> Verdict | None:
    """By their own notes: they say since when they have heard nothing."""
    return _by_notes(facts, _STALE_FLEET_NOTES, CheckOutcome.FAILED)


def check_index(facts: ClusterFacts) -> Verdict | None:
    """By their own notes."""
    return _warn_about_notes(facts, _is_index_note)


def check_notes(facts: ClusterFacts) -> Verdict | None:
    """Whatever else they say."""
    return _warn_about_notes(
        facts,
        lambda note: not note.startswith((*_STALE_FLEET_NOTES, *_REDIS_NOTES, "draining")) and not _is_index_note(note),
    )


@workloads.for_component(GATEWAY)
def check_redis(facts: ClusterFacts, found: Sequence[Manifest]) -> Verdict | None:
    """As each gateway has it; a gateway that was given none decides alone."""
    without = [one for one in found if not components.has_redis(one)]
    alone = [
        f"{object_key(one)} has several gateways and no Redis"
        for one in without
        if components.desired_replicas(one) > 1
    ]
    if len(without) == len(found):
        return warned(*alone) if alone else None
    bad = _by_notes(facts, _REDIS_NOTES[:2], CheckOutcome.FAILED)
    if bad is None or bad.outcome is not CheckOutcome.OK:
        return bad if bad is None or bad.outcome is not CheckOutcome.FAILED else failed(*bad.lines, *_own_redis(facts))
    pages = [one.metrics for one in facts.told.get(GATEWAY, ()) if not isinstance(one.metrics, MissingValue)]
    away = [page for page in pages if page.value("fairlead_gateway_redis_connected") == 0.0]
    if away:
        return failed(f"{len(away)} of {len(pages)} gateways are not connected")
    return warned(*alone) if alone else passed()


def _own_redis(facts: ClusterFacts) -> Iterator[str]:
    """What keeps the chart's own Redis from being ready."""
    found = facts.component_deployments(REDIS)
    for one in () if isinstance(found, MissingValue) else found:
        if not workloads.ready_pods(facts, one):
            yield from workloads.not_ready_reasons(facts, one)


@workloads.for_component(GATEWAY)
def check_certificate(facts: ClusterFacts, found: Sequence[Manifest]) -> Verdict | None:
    """Of gateways that speak TLS themselves."""
    bad, soon, unsure, shown = [], [], [], []
    for one in found:
        for volume in pod_spec_of(one).get("volumes") or []:
            name = str((volume.get("secret") or {}).get("secretName", ""))
            if volume.get("name") != "tls" or not name:
                continue
            there = facts.secrets.get((namespace_name(one), name))
            if there is None or isinstance(there, MissingValue) or there.certificate_expires is None:
                unsure.append(
                    f"{name}: {there.reason if isinstance(there, MissingValue) else 'its tls.crt cannot be read'}"
                )
            elif there.certificate_expires <= facts.now:
                bad.append(f"that of {name} ran out {format_age(there.certificate_expires, facts.now)} ago")
            elif there.certificate_expires - facts.now < _EXPIRY_WARNING_SECONDS:
                soon.append(f"that of {name} runs out in {format_age(facts.now, there.certificate_expires)}")
            else:
                shown.append(f"{name}: {format_age(facts.now, there.certificate_expires)}")
    if bad or unsure:
        return verdict_of(bad, unsure)
    return warned(*soon) if soon else passed(", ".join(shown)) if shown else None


@workloads.for_component(GATEWAY)
def check_authentication(_: ClusterFacts, found: Sequence[Manifest]) -> Verdict:
    """A warning for those that ask nobody."""
    return verdict_of(
        (f"{object_key(one)} asks nobody for a key" for one in found if "--insecure" in arguments_of(one)),
        mark=CheckOutcome.WARNING,
    )


def _is_index_note(note: str) -> bool:
    return any(words in note for words in _INDEX_NOTES)


def _warn_about_notes(facts: ClusterFacts, wanted: Callable[[str], bool]) -> Verdict | None:
    """A warning with those notes; nothing where no gateway can have any."""
    told = facts.told.get(GATEWAY, ())
    if not told or workloads.has_no_ready_pod(facts, GATEWAY):
        return None
    return verdict_of(_notes(told, wanted), _unreached(told), mark=CheckOutcome.WARNING)


def _notes(told: Sequence[PodReport], wanted: Callable[[str], bool]) -> list[str]:
    """Those notes of the gateways that were reached, each with its pod."""
    return [
        f"{one.pod}: {note}"
        for one in told
        if isinstance(one.readiness, Readiness)
        for note in one.readiness.notes
        if wanted(note)
    ]


def _by_notes(facts: ClusterFacts, beginnings: tuple[str, ...], mark: CheckOutcome) -> Verdict | None:
    told, there = facts.told.get(GATEWAY, ()), facts.component_deployments(GATEWAY)
    if isinstance(there, MissingValue):
        return unknown(there)
    if not there:
        return None
    if not told:
        return unknown("no pod of the gateway was found")
    if workloads.has_no_ready_pod(facts, GATEWAY) and all(isinstance(one.readiness, MissingValue) for one in told):
        return unknown("no pod of the gateway is ready")
    found = _notes(told, lambda note: note.startswith(beginnings))
    return verdict_of(found, _unreached(told), mark=mark)


def _unreached(told: Sequence[PodReport]) -> list[str]:
    """Why some were not reached; the same reason once."""
    return list(dict.fromkeys(one.readiness.reason for one in told if isinstance(one.readiness, MissingValue)))
