"""Scale-down order: the replicas whose removal costs least come first. Pure.

Replicas that are not ready come first, the youngest of them before the others. Those that every
gateway has ejected come next. The other ready replicas follow by the number of blocks that only
they have cached and that recent prompts used (`index_unique_used_blocks`, docs/decisions/0028).
Among equals, the one with the least work in flight comes first, and then the youngest.

If the index has no number for any replica of a pool, only work in flight decides. If it has none
for some replicas, these count with the mean number of the others.
"""

from collections.abc import Sequence
from statistics import fmean

from fairlead_autoscaler.collector.observation import GatewaySnapshot, is_ejected
from fairlead_autoscaler.core import ReplicaState
from fairlead_autoscaler.target import Replica

_SERVING_STATES = (ReplicaState.PENDING, ReplicaState.WAKING, ReplicaState.READY)


def removal_order(key: str, replicas: Sequence[Replica], snapshot: GatewaySnapshot) -> tuple[str, ...]:
    """Returns the ids of all replicas that serve, start or wake, in the order of their removal."""
    present = [replica for replica in replicas if replica.state in _SERVING_STATES]
    unique = {replica.id: _unique_blocks(key, replica, snapshot) for replica in present}
    known = [blocks for blocks in unique.values() if blocks is not None]
    mean = fmean(known) if known else 0.0

    def order(replica: Replica) -> tuple[bool, bool, float, float, float, str]:
        blocks = unique[replica.id]
        return (
            replica.state is ReplicaState.READY,
            not is_ejected(key, replica, snapshot, 0.0),
            mean if blocks is None else blocks,
            _in_flight(key, replica, snapshot),
            replica.age_seconds,
            replica.id,
        )

    return tuple(replica.id for replica in sorted(present, key=order))


def _unique_blocks(key: str, replica: Replica, snapshot: GatewaySnapshot) -> float | None:
    """Returns the number of recently used blocks that only this replica has; None if unknown.

    The first gateway that reports it is enough, since all have it from the same index.
    """
    for gateway in snapshot.gateways:
        values = [gateway.gauges.get(("unique_used_blocks", key, instance)) for instance in replica.instances]
        known = [value for value in values if value is not None]
        if known:
            return sum(known)
    return None


def _in_flight(key: str, replica: Replica, snapshot: GatewaySnapshot) -> float:
    return sum(
        gateway.gauges.get(("in_flight", key, instance), 0.0)
        for gateway in snapshot.gateways
        for instance in replica.instances
    )
