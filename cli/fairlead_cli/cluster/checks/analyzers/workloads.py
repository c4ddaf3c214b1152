"""What our components have in common: Deployments with pods, Secrets that these take, rights of their accounts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps

from fairlead.kube.resources import Manifest, is_deleting, is_ready, name_of
from fairlead_cli.cluster.access.access_reviews import Permission
from fairlead_cli.cluster.checks.verdict import Analyzer, CheckOutcome, Verdict, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import desired_replicas, secret_references
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import (
    conditions_of,
    object_key,
    shorten,
    waiting_reason,
)

_IMAGE_PULL_REASONS = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
)


def for_component(
    component: str, *, ready: bool = False
) -> Callable[[Callable[[ClusterFacts, Sequence[Manifest]], Verdict | None]], Analyzer]:
    """A judge of a component's Deployments: not known where they could not be read, silent where there are none.

    ``ready``: nor is it known while none of their pods is ready, since it is their pods that are asked.
    """

    def made(judge: Callable[[ClusterFacts, Sequence[Manifest]], Verdict | None]) -> Analyzer:
        @wraps(judge)
        def whole(facts: ClusterFacts) -> Verdict | None:
            found = facts.component_deployments(component)
            if isinstance(found, MissingValue):
                return unknown(found)
            if not found:
                return None
            if ready and has_no_ready_pod(facts, component):
                return unknown(f"no pod of the {component} is ready")
            return judge(facts, found)

        return whole

    return made


def ready_pods(facts: ClusterFacts, deployment: Manifest) -> Sequence[Manifest] | MissingValue:
    """Those of a Deployment that take work."""
    pods = facts.pods_of(deployment)
    return pods if isinstance(pods, MissingValue) else [one for one in pods if is_ready(one) and not is_deleting(one)]


def has_no_ready_pod(facts: ClusterFacts, component: str) -> bool:
    """Is it known that no pod of the component is ready? What asks them cannot tell anything then."""
    found = facts.component_deployments(component)
    if isinstance(found, MissingValue) or isinstance(facts.pods, MissingValue):
        return False
    return not any(ready_pods(facts, one) for one in found)


def check_pods_ready(facts: ClusterFacts, component: str) -> Verdict | None:
    """FAILED for a Deployment without any ready pod, a warning where some are missing."""
    return for_component(component)(_pods_ready)(facts)


def _pods_ready(facts: ClusterFacts, found: Sequence[Manifest]) -> Verdict:
    bad: list[str] = []
    short_of: list[str] = []
    count = wanted = 0
    for one in found:
        ready = ready_pods(facts, one)
        if isinstance(ready, MissingValue):
            return unknown(ready)
        asked = desired_replicas(one)
        count, wanted = count + len(ready), wanted + asked
        if len(ready) < max(1, asked):
            (short_of if ready else bad).extend(
                [f"{object_key(one)}: {len(ready)} of {asked} ready", *not_ready_reasons(facts, one)]
            )
    if bad:
        return Verdict(CheckOutcome.FAILED, tuple(bad))
    return warned(*short_of) if short_of else passed(f"{count} of {wanted}")


def not_ready_reasons(facts: ClusterFacts, deployment: Manifest) -> Iterator[str]:
    """What its pods wait for; what its controller says where there are none."""
    pods = facts.pods_of(deployment)
    if not isinstance(pods, MissingValue):
        for one in pods:
            if why := waiting_reason(one):
                yield f"pod {name_of(one)}: {why}"
    if desired_replicas(deployment) == 0:
        yield f"{name_of(deployment)} is scaled to 0"
    elif not pods:
        yield f"no pod of {name_of(deployment)} has been made"
    for said in conditions_of(deployment):
        if said.get("type") == "ReplicaFailure" and said.get("status") == "True":
            yield shorten(str(said.get("message", "")))


def check_images(facts: ClusterFacts) -> Verdict | None:
    """Images of the control plane's own pods."""
    if isinstance(facts.pods, MissingValue):
        return unknown(facts.pods)
    if not facts.pods:
        return None
    return verdict_of(
        f"pod {object_key(one)}: {why}"
        for one in facts.pods
        if (why := waiting_reason(one)).partition(":")[0].partition(" ")[0] in _IMAGE_PULL_REASONS
    )


def check_secrets(facts: ClusterFacts, component: str) -> Verdict | None:
    """Every Secret that the component's pods name is there, with the entries that they take."""
    return for_component(component)(_secrets_complete)(facts)


def _secrets_complete(facts: ClusterFacts, found: Sequence[Manifest]) -> Verdict:
    bad: list[str] = []
    unsure: list[str] = []
    for wanted in dict.fromkeys(
        one for deployment in found for one in secret_references(deployment) if not one.is_optional
    ):
        name, there = f"{wanted.namespace}/{wanted.name}", facts.secrets.get((wanted.namespace, wanted.name))
        if isinstance(there, MissingValue) and there.is_absent:
            bad.append(f"the Secret {name} does not exist; it should hold {', '.join(sorted(wanted.entries))}")
        elif there is None or isinstance(there, MissingValue):
            unsure.append(f"{name}: {there.reason if there else 'it was not looked at'}")
        elif lacks := sorted(wanted.entries - there.entries):
            bad.append(f"the Secret {name} has no {', '.join(lacks)}")
    return verdict_of(bad, unsure)


def check_permissions(facts: ClusterFacts, component: str) -> Verdict | None:
    """Every right of the component's chart, as the API server decides about its account."""
    asked = {where: found for (name, where), found in facts.account_rights.items() if name == component}
    if not asked:
        return None
    bad = [
        f"{component} of {where} may not {right}"
        for where, found in asked.items()
        for right in denied_permissions(found)
    ]
    unsure = [said.reason for found in asked.values() for said in found.values() if isinstance(said, MissingValue)]
    return verdict_of(bad, unsure, note=f"{sum(map(len, asked.values()))} rights")


def denied_permissions(found: Mapping[Permission, bool | MissingValue]) -> list[str]:
    """Those that are not there, verbs of one resource together."""
    grouped: dict[Permission, list[str]] = {}
    for right, said in found.items():
        if said is False:
            grouped.setdefault(Permission(right.group, right.resource, "", right.namespace, right.name), []).append(
                right.verb
            )
    return [
        str(Permission(one.group, one.resource, ", ".join(verbs), one.namespace, one.name))
        for one, verbs in grouped.items()
    ]
