"""The PodDisruptionBudget of a pool: nodes are emptied one instance at a time."""

from fairlead.kube.resources import DISRUPTION_BUDGETS, Manifest
from fairlead_operator.render.names import endpoint_selector
from fairlead_operator.render.pool_context import PoolContext


def pod_disruption_budget(pool: PoolContext) -> Manifest:
    """Not a least number: with one instance that would keep its node from ever being emptied. Ill pods may always go."""
    spec: Manifest = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": endpoint_selector(pool.model, pool.pool)},
    }
    return pool.make_child(DISRUPTION_BUDGETS, spec)
