"""The LeaderWorkerSet of a pool whose instances span nodes: each instance is a group of pods that start and end together."""

from typing import Final

from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest
from fairlead_operator.render.pool_context import PoolContext

ALL_GROUPS_PARTITION: Final = 4096
"""No pool has more instances: a partition of this holds all of them at the revision that they have."""


def leader_worker_set(pool: PoolContext, leader: Manifest, worker: Manifest) -> Manifest:
    """A pod that restarts takes its whole group with it, since the others wait for it in vain."""
    rollout = pool.model.spec.rollout
    rolling: Manifest = {
        "maxSurge": rollout.surge,
        "maxUnavailable": 0,
        "partition": ALL_GROUPS_PARTITION if pool.is_paused else 0,
    }
    spec: Manifest = {
        "replicas": pool.model.spec.desired_instances(pool.pool),
        "startupPolicy": "LeaderCreated",
        "rolloutStrategy": {"type": "RollingUpdate", "rollingUpdateConfiguration": rolling},
        "leaderWorkerTemplate": {
            "size": pool.pool.parallelism.nodes,
            "restartPolicy": "RecreateGroupOnPodRestart",
            "leaderTemplate": leader,
            "workerTemplate": worker,
        },
    }
    found = pool.make_child(LEADER_WORKER_SETS, spec)
    found["metadata"]["annotations"] = pool.pin.annotations()
    return found
