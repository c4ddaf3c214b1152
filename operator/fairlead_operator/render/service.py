"""The Service of a pool: for people and other systems. Fairlead's gateways speak with pods."""

from fairlead.kube.resource import SERVICES, Manifest
from fairlead_operator.render.children import Plan
from fairlead_operator.render.names import LEADER_SUFFIX, endpoint_selector

_PORT = 80


def service(plan: Plan) -> Manifest:
    """A LeaderWorkerSet makes a headless Service of its own name, so that of its leaders has another."""
    name = plan.name + LEADER_SUFFIX if plan.pool.parallelism.nodes > 1 else plan.name
    spec: Manifest = {
        "selector": endpoint_selector(plan.model, plan.pool),
        "ports": [{"name": "http", "port": _PORT, "targetPort": "http", "appProtocol": "http"}],
    }
    return plan.child(SERVICES, spec, name=name)
