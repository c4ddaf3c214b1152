"""The Service of a pool, for clients other than gateways. Gateways connect to pods directly."""

from fairlead.kube.resources import SERVICES, Manifest
from fairlead_operator.render.names import LEADER_SUFFIX, endpoint_selector
from fairlead_operator.render.pool_context import PoolContext

_SERVICE_PORT = 80


def service(pool: PoolContext) -> Manifest:
    """Returns the Service. For multi-node instances its name has a suffix.

    Why: a LeaderWorkerSet creates a headless Service of the name without the suffix.
    """
    name = pool.name + LEADER_SUFFIX if pool.pool.parallelism.nodes > 1 else pool.name
    spec: Manifest = {
        "selector": endpoint_selector(pool.model, pool.pool),
        "ports": [{"name": "http", "port": _SERVICE_PORT, "targetPort": "http", "appProtocol": "http"}],
    }
    return pool.make_child(SERVICES, spec, name=name)
