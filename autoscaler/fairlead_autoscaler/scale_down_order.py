"""Who leaves first when a pool shrinks: the replica whose loss costs least. Pure.

First those that are not ready (what they were started for is over), the youngest first. Of the others the one that holds the fewest
blocks that nobody else holds and that were in prompts of the last minutes (``index_unique_used_blocks``, docs/decisions/0027); of
equals the one with the least work in flight, and then the youngest. Where the index says nothing of any replica of a pool, work
decides alone; one of which it says nothing among others counts as one that holds what they hold on average.
"""

from collections.abc import Sequence
from statistics import fmean

from fairlead_autoscaler.collector.observation import GatewaySnapshot
from fairlead_autoscaler.core import ReplicaState
from fairlead_autoscaler.target import Replica

_SERVING_STATES = (ReplicaState.PENDING, ReplicaState.WAKING, ReplicaState.READY)


def removal_order(key: str, replicas: Sequence[Replica], readings: GatewaySnapshot) -> tuple[str, ...]:
    """The ids of all replicas that serve or are about to, in the order in which they should leave."""
    there = [one for one in replicas if one.state in _SERVING_STATES]
    unique = {one.id: _unique_blocks(key, one, readings) for one in there}
    known = [value for value in unique.values() if value is not None]
    usual = fmean(known) if known else 0.0

    def order(one: Replica) -> tuple[bool, float, float, float, str]:
        blocks = unique[one.id]
        ready = one.state is ReplicaState.READY
        return ready, usual if blocks is None else blocks, _in_flight(key, one, readings), one.age_seconds, one.id

    return tuple(one.id for one in sorted(there, key=order))


def _unique_blocks(key: str, replica: Replica, readings: GatewaySnapshot) -> float | None:
    """As the first gateway tells it that knows: all have it from the same index."""
    for told in readings.gateways:
        found = [told.gauges.get(("unique_used_blocks", key, one)) for one in replica.instances]
        known = [value for value in found if value is not None]
        if known:
            return sum(known)
    return None


def _in_flight(key: str, replica: Replica, readings: GatewaySnapshot) -> float:
    return sum(told.gauges.get(("in_flight", key, one), 0.0) for told in readings.gateways for one in replica.instances)
