"""Around the components: what guards them, and whether they fit together."""

from collections.abc import Iterator, Sequence

from fairlead.kube.resources import Manifest
from fairlead_cli.cluster.access.permissions import COMPONENTS_WITH_PERMISSIONS
from fairlead_cli.cluster.checks.verdict import CheckOutcome, Verdict, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import COMPONENT_LABEL, RELEASE_LABEL, VERSION_LABEL, desired_replicas
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import label_of, namespace_name, object_key, spec_of, status_of


def check_network_policies(facts: ClusterFacts) -> Verdict | None:
    """One that selects each component."""
    if isinstance(facts.deployments, MissingValue):
        return unknown(facts.deployments)
    if isinstance(facts.policies, MissingValue):
        return unknown(facts.policies)
    if not facts.deployments:
        return None
    guarded = {(namespace_name(one), *_selected_component(one)) for one in facts.policies}
    return verdict_of(
        (
            f"{object_key(one)} has none"
            for one in facts.deployments
            if (namespace_name(one), label_of(one, RELEASE_LABEL), label_of(one, COMPONENT_LABEL)) not in guarded
        ),
        mark=CheckOutcome.WARNING,
    )


def check_disruption_budgets(facts: ClusterFacts) -> Verdict | None:
    """A budget for each that has several replicas, with room now."""
    if isinstance(facts.deployments, MissingValue):
        return unknown(facts.deployments)
    if isinstance(facts.budgets, MissingValue):
        return unknown(facts.budgets)
    if not facts.deployments:
        return None
    return verdict_of(_budget_problems(facts.deployments, facts.budgets), mark=CheckOutcome.WARNING)


def _budget_problems(deployments: Sequence[Manifest], budgets: Sequence[Manifest]) -> Iterator[str]:
    covered = {(namespace_name(one), *_selected_component(one)) for one in budgets}
    for one in deployments:
        if (
            desired_replicas(one) > 1
            and (namespace_name(one), label_of(one, RELEASE_LABEL), label_of(one, COMPONENT_LABEL)) not in covered
        ):
            yield f"{object_key(one)} has {desired_replicas(one)} replicas and no budget"
    for one in budgets:
        found = status_of(one)
        if found.get("expectedPods") and not found.get("disruptionsAllowed"):
            healthy = f"{found.get('currentHealthy', 0)} of {found.get('expectedPods')} pods are healthy"
            yield f"{object_key(one)} allows no disruption now: {healthy}"


def check_version_skew(facts: ClusterFacts) -> Verdict | None:
    """Components by their Deployments' labels, and this command line."""
    if isinstance(facts.deployments, MissingValue):
        return unknown(facts.deployments)
    found = {
        f"{label_of(one, COMPONENT_LABEL)} of {namespace_name(one)}": label_of(one, VERSION_LABEL)
        for one in facts.deployments
        if label_of(one, COMPONENT_LABEL) in COMPONENTS_WITH_PERMISSIONS
    }
    if not found:
        return None
    if set(found.values()) == {facts.our_version}:
        return passed(facts.our_version)
    listed = [f"{name} is {version or 'not known'}" for name, version in found.items()]
    return warned(f"the command line is {facts.our_version}", *listed)


def _selected_component(one: Manifest) -> tuple[str, str]:
    """Release and component that a policy or budget selects."""
    chosen = spec_of(one).get("podSelector") or spec_of(one).get("selector") or {}
    labels = chosen.get("matchLabels") or {}
    return str(labels.get(RELEASE_LABEL, "")), str(labels.get(COMPONENT_LABEL, ""))
