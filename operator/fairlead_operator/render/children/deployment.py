"""The Deployment of a pool whose instances are one pod each."""

from fairlead.kube.resources import DEPLOYMENTS, Manifest
from fairlead_operator.render.names import selector_labels
from fairlead_operator.render.pool_context import PoolContext

_PROGRESS_SECONDS = 2700
"""Longer than an engine may take to start, and its image to be pulled before."""


def deployment(pool: PoolContext, template: Manifest) -> Manifest:
    """New instances first: never fewer ready ones than asked for. A held one still follows numbers."""
    rollout = pool.model.spec.rollout
    spec: Manifest = {
        "replicas": pool.model.spec.desired_instances(pool.pool),
        "selector": {"matchLabels": selector_labels(pool.model, pool.pool)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": rollout.surge, "maxUnavailable": 0}},
        "progressDeadlineSeconds": _PROGRESS_SECONDS,
        "revisionHistoryLimit": 2,
        "paused": pool.is_paused,
        "template": template,
    }
    found = pool.make_child(DEPLOYMENTS, spec)
    found["metadata"]["annotations"] = pool.pin.annotations()
    return found
