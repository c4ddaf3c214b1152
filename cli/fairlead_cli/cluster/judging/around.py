"""Around the components: what guards them, and whether they fit together."""

from collections.abc import Iterator, Sequence

from fairlead.kube.resource import Manifest
from fairlead_cli.cluster.facts import COMPONENT, RELEASE, VERSION, Facts
from fairlead_cli.cluster.judging.workloads import replicas
from fairlead_cli.cluster.missing import Missing
from fairlead_cli.cluster.reading import key, label, space, spec, status
from fairlead_cli.cluster.rights import COMPONENTS
from fairlead_cli.cluster.verdict import Mark, Verdict, judged, ok, unknown, warned


def network_policies(facts: Facts) -> Verdict | None:
    """One that selects each component."""
    if isinstance(facts.deployments, Missing):
        return unknown(facts.deployments)
    if isinstance(facts.policies, Missing):
        return unknown(facts.policies)
    if not facts.deployments:
        return None
    guarded = {(space(one), *_selected(one)) for one in facts.policies}
    return judged(
        (
            f"{key(one)} has none"
            for one in facts.deployments
            if (space(one), label(one, RELEASE), label(one, COMPONENT)) not in guarded
        ),
        mark=Mark.WARNING,
    )


def disruption_budgets(facts: Facts) -> Verdict | None:
    """A budget for each that has several replicas, with room now."""
    if isinstance(facts.deployments, Missing):
        return unknown(facts.deployments)
    if isinstance(facts.budgets, Missing):
        return unknown(facts.budgets)
    if not facts.deployments:
        return None
    return judged(_budget_problems(facts.deployments, facts.budgets), mark=Mark.WARNING)


def _budget_problems(deployments: Sequence[Manifest], budgets: Sequence[Manifest]) -> Iterator[str]:
    covered = {(space(one), *_selected(one)) for one in budgets}
    for one in deployments:
        if replicas(one) > 1 and (space(one), label(one, RELEASE), label(one, COMPONENT)) not in covered:
            yield f"{key(one)} has {replicas(one)} replicas and no budget"
    for one in budgets:
        found = status(one)
        if found.get("expectedPods") and not found.get("disruptionsAllowed"):
            healthy = f"{found.get('currentHealthy', 0)} of {found.get('expectedPods')} pods are healthy"
            yield f"{key(one)} allows no disruption now: {healthy}"


def version_skew(facts: Facts) -> Verdict | None:
    """Components by their Deployments' labels, and this command line."""
    if isinstance(facts.deployments, Missing):
        return unknown(facts.deployments)
    found = {
        f"{label(one, COMPONENT)} of {space(one)}": label(one, VERSION)
        for one in facts.deployments
        if label(one, COMPONENT) in COMPONENTS
    }
    if not found:
        return None
    if set(found.values()) == {facts.our_version}:
        return ok(facts.our_version)
    listed = [f"{name} is {version or 'not known'}" for name, version in found.items()]
    return warned(f"the command line is {facts.our_version}", *listed)


def _selected(one: Manifest) -> tuple[str, str]:
    """Release and component that a policy or budget selects."""
    chosen = spec(one).get("podSelector") or spec(one).get("selector") or {}
    labels = chosen.get("matchLabels") or {}
    return str(labels.get(RELEASE, "")), str(labels.get(COMPONENT, ""))
