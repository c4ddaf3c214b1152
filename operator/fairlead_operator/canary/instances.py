"""The instances of a canary: further pools of the model, with the new revision. Pure."""

from collections.abc import Iterable, Mapping
from math import ceil

from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.labels import CANARY_POOL_SUFFIX, POOL_LABEL
from fairlead.kube.resources import Manifest, is_deleting
from fairlead_operator.object_metadata import (
    MODEL_REVISION_ANNOTATION,
    WORKLOAD_KINDS,
    annotation,
    generation_of,
    is_of_canary,
    label,
)


def canary_model(model: ModelDeployment, workloads: Iterable[Manifest], weight: int) -> ModelDeployment:
    """Returns a model whose pools are those of its canary.

    model: with the spec of the canary.
    workloads: that run the model now. A pool of the canary has the same share of their instances
        as of the conversations, and at least one.
    """
    running = {
        label(workload, POOL_LABEL): int((workload.get("spec") or {}).get("replicas") or 0)
        for workload in workloads
        if not is_of_canary(workload)
    }
    pools = [_canary_pool(pool, running.get(pool.name, pool.min_replicas), weight) for pool in model.spec.pools]
    return model.model_copy(update={"spec": model.spec.model_copy(update={"pools": pools, "replicas": None})})


def _canary_pool(pool: Pool, running: int, weight: int) -> Pool:
    count = max(1, ceil(running * weight / 100))
    return pool.model_copy(
        update={"name": f"{pool.name}{CANARY_POOL_SUFFIX}", "min_replicas": count, "max_replicas": count}
    )


def is_canary_ready(children: Iterable[Manifest], hash: str) -> bool:
    """Returns True if all instances of a canary have its revision and are ready."""
    workloads = [child for child in children if child["kind"] in WORKLOAD_KINDS and is_of_canary(child)]
    return bool(workloads) and all(_has_replaced(workload, hash) for workload in workloads)


def is_replaced(children: Iterable[Manifest], hash: str) -> bool:
    """Returns True if all instances of a model, without a canary's, have a revision and are
    ready.
    """
    return all(
        _has_replaced(child, hash)
        for child in children
        if child["kind"] in WORKLOAD_KINDS and not is_of_canary(child) and not is_deleting(child)
    )


def _has_replaced(workload: Manifest, hash: str) -> bool:
    status: Mapping[str, object] = workload.get("status") or {}
    if annotation(workload, MODEL_REVISION_ANNOTATION) != hash:
        return False
    if int(str(status.get("observedGeneration") or 0)) < generation_of(workload):
        return False
    desired = (workload.get("spec") or {}).get("replicas", 1)
    counts = {status.get(name) or 0 for name in ("replicas", "updatedReplicas", "readyReplicas")}
    return counts == {desired}
