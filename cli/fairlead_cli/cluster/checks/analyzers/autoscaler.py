"""Checks of the autoscalers: installed, ready, Secrets, permissions, leader, gateways."""

from collections.abc import Sequence
from typing import Final

from fairlead.kube.resources import Manifest, key_of
from fairlead_cli.cluster.checks.analyzers import workloads
from fairlead_cli.cluster.checks.check import CheckOutcome, Verdict, failed, known, passed, unknown, verdict_of, warned
from fairlead_cli.cluster.components import AUTOSCALER
from fairlead_cli.cluster.facts import ClusterFacts
from fairlead_cli.cluster.object_fields import spec_of

_SCALING_MODES: Final = ("Auto", "Advise")


def check_installed(facts: ClusterFacts) -> Verdict | None:
    """Warns about models that want an autoscaler where none is installed."""
    autoscalers = known(facts.component_deployments(AUTOSCALER))
    if autoscalers:
        return passed(", ".join(key_of(deployment) for deployment in autoscalers))
    unserved = [
        f"{key_of(model)} has autoscaling.mode {mode}, and no autoscaler is installed"
        for model in known(facts.models)
        if (mode := (spec_of(model).get("autoscaling") or {}).get("mode")) in _SCALING_MODES
    ]
    return warned(*unserved) if unserved else None


@workloads.for_component(AUTOSCALER, ready=True)
def check_leader(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """Fails when no autoscaler leads, and warns while scaling is frozen.

    The verdict is unknown if an autoscaler did not answer, because it may lead.
    """
    pages, unreached = workloads.metrics_pages(facts, AUTOSCALER)
    leaders = [(pod, page) for pod, page in pages if page.value("fairlead_autoscaler_leads") == 1.0]
    if not leaders:
        return unknown(unreached[0]) if unreached else failed("no autoscaler leads: no replica count is written")
    frozen = [pod for pod, page in leaders if page.value("fairlead_autoscaler_frozen") == 1.0]
    if frozen:
        return warned(*(f"{pod} is frozen: it decides, and writes nothing" for pod in frozen))
    return passed(", ".join(pod for pod, _page in leaders))


@workloads.for_component(AUTOSCALER, ready=True)
def check_gateways(facts: ClusterFacts, _: Sequence[Manifest]) -> Verdict:
    """Warns when an autoscaler knows no gateway, or one does not answer it."""
    pages, unreached = workloads.metrics_pages(facts, AUTOSCALER)
    findings = []
    known = missing = 0
    for pod, page in pages:
        gateways = int(page.value("fairlead_autoscaler_gateways") or 0)
        silent = int(page.value("fairlead_autoscaler_gateways_missing") or 0)
        known, missing = known + gateways, missing + silent
        if not gateways:
            findings.append(f"{pod} knows no gateway")
        elif silent:
            findings.append(f"{silent} of {gateways} gateways do not answer {pod}")
    return verdict_of(
        findings, unreached, outcome=CheckOutcome.WARNING, note=f"{known - missing} of {known} gateway answers"
    )
