"""Lets a Deployment replace outdated pods that have not started, although no device is free. Pure.

Why: with `maxUnavailable: 0`, no pod ends before a new one is ready. Pods whose image does not
exist would keep their devices for ever.

The Deployment's controller ends pods that are not ready first, and all of them in one pass, long
before an engine gets ready. The next pass writes 0 again. A pod that is only unready for a moment
has started, and allows nothing.
"""

from collections.abc import Sequence

from fairlead.fleet.labels import FIELD_MANAGER, POD_REVISION_LABEL, POOL_LABEL
from fairlead.kube.resources import DEPLOYMENTS, Manifest, has_started, is_deleting, is_ready
from fairlead_operator.controller.field_ownership import replica_field_owner
from fairlead_operator.object_metadata import annotation, label


def replace_failed(wanted: Manifest, live: Manifest | None, pods: Sequence[Manifest]) -> Manifest:
    """Returns a rendered child. A Deployment may replace outdated pods, if any has not started."""
    spec = wanted.get("spec") or {}
    if wanted["kind"] != DEPLOYMENTS.kind or live is None or spec.get("paused"):
        return wanted
    pool, revision = label(wanted, POOL_LABEL), annotation(wanted, POD_REVISION_LABEL)
    current = [pod for pod in pods if label(pod, POOL_LABEL) == pool and not is_deleting(pod)]
    counted = live if replica_field_owner(live, FIELD_MANAGER) else wanted
    unready = int(counted["spec"].get("replicas", 1)) - sum(map(is_ready, current))
    if unready <= 0 or all(has_started(pod) or label(pod, POD_REVISION_LABEL) == revision for pod in current):
        return wanted
    rolling = {**spec["strategy"]["rollingUpdate"], "maxUnavailable": unready}
    return {**wanted, "spec": {**spec, "strategy": {**spec["strategy"], "rollingUpdate": rolling}}}
