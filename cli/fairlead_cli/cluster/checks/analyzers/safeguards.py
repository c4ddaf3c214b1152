"""Checks of what protects the components, and of their versions."""

from collections.abc import Iterator, Sequence

from fairlead.kube.resources import Manifest, key_of
from fairlead_cli.cluster.access.permissions import COMPONENTS_WITH_PERMISSIONS
from fairlead_cli.cluster.checks.verdict import CheckOutcome, Verdict, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, VERSION_LABEL, desired_replicas
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import label_of, namespace_name, spec_of, status_of


def check_network_policies(facts: ClusterFacts) -> Verdict | None:
    """Warns about components that no NetworkPolicy selects."""
    if isinstance(facts.deployments, MissingValue):
        return unknown(facts.deployments)
    if isinstance(facts.network_policies, MissingValue):
        return unknown(facts.network_policies)
    if not facts.deployments:
        return None
    selected = {(namespace_name(object_), *_selected_component(object_)) for object_ in facts.network_policies}
    return verdict_of(
        (
            f"{key_of(object_)} has none"
            for object_ in facts.deployments
            if (namespace_name(object_), label_of(object_, RELEASE_LABEL), label_of(object_, COMPONENT_LABEL))
            not in selected
        ),
        outcome=CheckOutcome.WARNING,
    )


def check_disruption_budgets(facts: ClusterFacts) -> Verdict | None:
    """Warns about replicated components without a disruption budget, and budgets that allow no
    disruption now.
    """
    if isinstance(facts.deployments, MissingValue):
        return unknown(facts.deployments)
    if isinstance(facts.disruption_budgets, MissingValue):
        return unknown(facts.disruption_budgets)
    if not facts.deployments:
        return None
    return verdict_of(_budget_problems(facts.deployments, facts.disruption_budgets), outcome=CheckOutcome.WARNING)


def _budget_problems(deployments: Sequence[Manifest], budgets: Sequence[Manifest]) -> Iterator[str]:
    covered = {(namespace_name(object_), *_selected_component(object_)) for object_ in budgets}
    for object_ in deployments:
        if (
            desired_replicas(object_) > 1
            and (namespace_name(object_), label_of(object_, RELEASE_LABEL), label_of(object_, COMPONENT_LABEL))
            not in covered
        ):
            yield f"{key_of(object_)} has {desired_replicas(object_)} replicas and no budget"
    for object_ in budgets:
        budget_status = status_of(object_)
        if budget_status.get("expectedPods") and not budget_status.get("disruptionsAllowed"):
            healthy = (
                f"{budget_status.get('currentHealthy', 0)} of {budget_status.get('expectedPods')} pods are healthy"
            )
            yield f"{key_of(object_)} allows no disruption now: {healthy}"


def check_version_skew(facts: ClusterFacts) -> Verdict | None:
    """Warns when the components' versions, by their labels, differ from each other or from this
    command line.
    """
    if isinstance(facts.deployments, MissingValue):
        return unknown(facts.deployments)
    versions = {
        f"{label_of(deployment, COMPONENT_LABEL)} of {namespace_name(deployment)}": label_of(deployment, VERSION_LABEL)
        for deployment in facts.deployments
        if label_of(deployment, COMPONENT_LABEL) in COMPONENTS_WITH_PERMISSIONS
    }
    if not versions:
        return None
    if set(versions.values()) == {facts.our_version}:
        return passed(facts.our_version)
    component_lines = [f"{name} is {version or 'not known'}" for name, version in versions.items()]
    return warned(f"the command line is {facts.our_version}", *component_lines)


def _selected_component(policy: Manifest) -> tuple[str, str]:
    """Returns release and component that a policy or budget selects."""
    selector = spec_of(policy).get("podSelector") or spec_of(policy).get("selector") or {}
    labels = selector.get("matchLabels") or {}
    return str(labels.get(RELEASE_LABEL, "")), str(labels.get(COMPONENT_LABEL, ""))
