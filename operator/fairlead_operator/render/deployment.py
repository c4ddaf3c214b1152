"""The Deployment of a pool whose instances are one pod each."""

from fairlead.kube.resource import DEPLOYMENTS, Manifest
from fairlead_operator.render.children import Plan
from fairlead_operator.render.names import selector_labels

_PROGRESS_SECONDS = 2700
"""Longer than an engine may take to start, and its image to be pulled before."""


def deployment(plan: Plan, template: Manifest) -> Manifest:
    """New instances first: never fewer ready ones than asked for. A held one still follows numbers."""
    rollout = plan.model.spec.rollout
    spec: Manifest = {
        "replicas": plan.model.spec.instances(plan.pool),
        "selector": {"matchLabels": selector_labels(plan.model, plan.pool)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": rollout.surge, "maxUnavailable": 0}},
        "progressDeadlineSeconds": _PROGRESS_SECONDS,
        "revisionHistoryLimit": 2,
        "paused": plan.held,
        "template": template,
    }
    found = plan.child(DEPLOYMENTS, spec)
    found["metadata"]["annotations"] = plan.pin.annotations()
    return found
