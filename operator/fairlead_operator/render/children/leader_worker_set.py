"""The LeaderWorkerSet of a pool with multi-node instances: groups of pods that start and end
together.
"""

from typing import Final

from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest
from fairlead_operator.render.pool_context import PoolContext

ALL_GROUPS: Final = 4096
"""More groups than a pool has: as a partition, it protects all; as `maxUnavailable`, none."""


def leader_worker_set(pool: PoolContext, leader: Manifest, worker: Manifest) -> Manifest:
    """Returns the LeaderWorkerSet. A pod that restarts also restarts its group.

    Why: the other pods of the group would wait for the restarted one in vain.
    """
    rollout = pool.model.spec.rollout
    rolling: Manifest = {
        "maxSurge": rollout.max_surge,
        "maxUnavailable": 0,
        "partition": ALL_GROUPS if pool.is_paused else 0,
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
    child = pool.make_child(LEADER_WORKER_SETS, spec)
    child["metadata"]["annotations"] = pool.pin.annotations()
    return child
