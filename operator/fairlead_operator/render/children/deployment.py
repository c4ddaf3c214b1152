"""The Deployment of a pool with one pod per instance."""

from fairlead.kube.resources import DEPLOYMENTS, Manifest
from fairlead_operator.render.names import selector_labels
from fairlead_operator.render.pool_context import PoolContext

_PROGRESS_SECONDS = 2700
"""Longer than an engine may take to start, plus the pull of its image."""


def deployment(pool: PoolContext, template: Manifest) -> Manifest:
    """Returns the Deployment. It never has fewer ready instances than desired.

    A paused Deployment still follows changes of the replica count.
    """
    rollout = pool.model.spec.rollout
    spec: Manifest = {
        "replicas": pool.model.spec.desired_instances(pool.pool),
        "selector": {"matchLabels": selector_labels(pool.model, pool.pool)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": rollout.max_surge, "maxUnavailable": 0}},
        "progressDeadlineSeconds": _PROGRESS_SECONDS,
        "revisionHistoryLimit": 2,
        "paused": pool.is_paused,
        "template": template,
    }
    child = pool.make_child(DEPLOYMENTS, spec)
    child["metadata"]["annotations"] = pool.pin.annotations()
    return child
