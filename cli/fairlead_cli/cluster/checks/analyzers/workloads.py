"""Checks that components share: pods of Deployments, Secrets, rights of service accounts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps

from fairlead.kube.resources import Manifest, is_deleting, is_ready, key_of, name_of
from fairlead_cli.cluster.access.permissions import Permission
from fairlead_cli.cluster.checks.check import (
    Analyzer,
    CheckOutcome,
    Verdict,
    known,
    passed,
    unknown,
    verdict_of,
    warned,
)
from fairlead_cli.cluster.components import desired_replicas, secret_references
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import MissingValue, conditions_of, shorten, waiting_reason
from fairlead_cli.cluster.pod_http import MetricsPage

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
    """Returns a decorator that makes an analyzer of a component's Deployments.

    The verdict is unknown when the Deployments cannot be read, and None when there are none.

    ready: the verdict is also unknown while no pod is ready, because the check queries the pods.
    """

    def decorate(analyzer: Callable[[ClusterFacts, Sequence[Manifest]], Verdict | None]) -> Analyzer:
        @wraps(analyzer)
        def analyze(facts: ClusterFacts) -> Verdict | None:
            deployments = known(facts.component_deployments(component))
            if not deployments:
                return None
            if ready and has_no_ready_pod(facts, component):
                return unknown(f"no pod of the {component} is ready")
            return analyzer(facts, deployments)

        return analyze

    return decorate


def ready_pods(facts: ClusterFacts, deployment: Manifest) -> Sequence[Manifest] | MissingValue:
    pods = facts.pods_of(deployment)
    return pods if isinstance(pods, MissingValue) else [pod for pod in pods if is_ready(pod) and not is_deleting(pod)]


def has_no_ready_pod(facts: ClusterFacts, component: str) -> bool:
    """Whether it is certain that no pod of the component is ready."""
    deployments = facts.component_deployments(component)
    if isinstance(deployments, MissingValue) or isinstance(facts.pods, MissingValue):
        return False
    return not any(ready_pods(facts, deployment) for deployment in deployments)


def check_pods_ready(facts: ClusterFacts, deployments: Sequence[Manifest]) -> Verdict:
    """Fails for a Deployment without a ready pod, warns when some are missing."""
    failing: list[str] = []
    incomplete: list[str] = []
    ready_count = wanted_count = 0
    for deployment in deployments:
        ready = known(ready_pods(facts, deployment))
        desired = desired_replicas(deployment)
        ready_count, wanted_count = ready_count + len(ready), wanted_count + desired
        if len(ready) < max(1, desired):
            (incomplete if ready else failing).extend(
                [f"{key_of(deployment)}: {len(ready)} of {desired} ready", *not_ready_reasons(facts, deployment)]
            )
    if failing:
        return Verdict(CheckOutcome.FAILED, tuple(failing))
    return warned(*incomplete) if incomplete else passed(f"{ready_count} of {wanted_count}")


def not_ready_reasons(facts: ClusterFacts, deployment: Manifest) -> Iterator[str]:
    """Yields why a Deployment is not ready: the reasons of its pods, no pods, or a failure to
    create them.
    """
    pods = facts.pods_of(deployment)
    if not isinstance(pods, MissingValue):
        for pod in pods:
            if reason := waiting_reason(pod):
                yield f"pod {name_of(pod)}: {reason}"
    if desired_replicas(deployment) == 0:
        yield f"{name_of(deployment)} is scaled to 0"
    elif not pods:
        yield f"no pod of {name_of(deployment)} has been made"
    for condition in conditions_of(deployment):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            yield shorten(str(condition.get("message", "")))


def check_images(facts: ClusterFacts) -> Verdict | None:
    """Fails for pods of the control plane whose image cannot be pulled."""
    pods = known(facts.pods)
    if not pods:
        return None
    return verdict_of(
        f"pod {key_of(pod)}: {reason}"
        for pod in pods
        if (reason := waiting_reason(pod)).partition(":")[0].partition(" ")[0] in _IMAGE_PULL_REASONS
    )


def check_secrets(facts: ClusterFacts, deployments: Sequence[Manifest]) -> Verdict:
    """Checks that every Secret of the component exists, with all entries that its pods use."""
    failing: list[str] = []
    doubts: list[str] = []
    for reference_ in dict.fromkeys(
        reference
        for deployment in deployments
        for reference in secret_references(deployment)
        if not reference.is_optional
    ):
        name, secret = (
            f"{reference_.namespace}/{reference_.name}",
            facts.secrets.get((reference_.namespace, reference_.name)),
        )
        if isinstance(secret, MissingValue) and secret.is_absent:
            failing.append(f"the Secret {name} does not exist; it should hold {', '.join(sorted(reference_.entries))}")
        elif secret is None or isinstance(secret, MissingValue):
            doubts.append(f"{name}: {secret.reason if secret else 'it was not read'}")
        elif missing := sorted(reference_.entries - secret.entries):
            failing.append(f"the Secret {name} has no {', '.join(missing)}")
    return verdict_of(failing, doubts)


def check_permissions(facts: ClusterFacts, component: str) -> Verdict | None:
    """Fails for each permission of the chart that a service account of the component lacks."""
    reviewed = {
        namespace: answers for (name, namespace), answers in facts.account_permissions.items() if name == component
    }
    if not reviewed:
        return None
    denied = [
        f"{component} of {namespace} may not {right}"
        for namespace, answers in reviewed.items()
        for right in denied_permissions(answers)
    ]
    doubts = [
        answer.reason
        for answers in reviewed.values()
        for answer in answers.values()
        if isinstance(answer, MissingValue)
    ]
    return verdict_of(denied, doubts, note=f"{sum(map(len, reviewed.values()))} rights")


def denied_permissions(answers: Mapping[Permission, bool | MissingValue]) -> list[str]:
    """Returns the denied permissions as text, verbs of one resource together."""
    grouped: dict[Permission, list[str]] = {}
    for permission_, answer in answers.items():
        if answer is False:
            grouped.setdefault(
                Permission(permission_.group, permission_.resource, "", permission_.namespace, permission_.name), []
            ).append(permission_.verb)
    return [
        str(Permission(permission.group, permission.resource, ", ".join(verbs), permission.namespace, permission.name))
        for permission, verbs in grouped.items()
    ]


def metrics_pages(facts: ClusterFacts, component: str) -> tuple[list[tuple[str, MetricsPage]], list[str]]:
    """Returns the metrics pages with their pods, and why other pods did not answer, each reason
    once.
    """
    reports = facts.pod_reports.get(component, ())
    pages = [(report.pod, report.metrics) for report in reports if not isinstance(report.metrics, MissingValue)]
    reasons = dict.fromkeys(report.metrics.reason for report in reports if isinstance(report.metrics, MissingValue))
    return pages, list(reasons) or ([] if reports else [f"no pod of the {component} was found"])
