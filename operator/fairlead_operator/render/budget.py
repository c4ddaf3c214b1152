"""The PodDisruptionBudget of a pool: nodes are emptied one instance at a time."""

from fairlead.kube.resource import DISRUPTION_BUDGETS, Manifest
from fairlead_operator.render.children import Plan
from fairlead_operator.render.names import endpoint_selector


def budget(plan: Plan) -> Manifest:
    """Not a least number: with one instance that would keep its node from ever being emptied. Ill pods may always go."""
    spec: Manifest = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": endpoint_selector(plan.model, plan.pool)},
    }
    return plan.child(DISRUPTION_BUDGETS, spec)
