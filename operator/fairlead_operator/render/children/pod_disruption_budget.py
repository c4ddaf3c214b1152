"""The PodDisruptionBudget of a pool: nodes are drained one instance at a time."""

from fairlead.kube.resources import DISRUPTION_BUDGETS, Manifest
from fairlead_operator.render.names import endpoint_selector
from fairlead_operator.render.pool_context import PoolContext


def pod_disruption_budget(pool: PoolContext) -> Manifest:
    """Returns the budget. Unhealthy pods may always be evicted.

    Why no minimum: with a single instance, it would keep the node from ever being drained.
    """
    spec: Manifest = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": endpoint_selector(pool.model, pool.pool)},
    }
    return pool.make_child(DISRUPTION_BUDGETS, spec)
