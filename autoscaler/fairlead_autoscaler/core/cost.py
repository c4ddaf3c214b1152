"""What a model costs an hour, in dollars, for people: nothing is decided by it. Missing is not zero: a pool without a price that has
replicas makes the sum unknown."""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.types import ModelSpec, PoolPlan


def usd_per_hour(model: ModelSpec, counts: Mapping[str, int]) -> float | None:
    """What so many replicas of the model's pools cost together; None where one of those that has any has no price."""
    total = 0.0
    for pool in model.pools:
        count = counts.get(pool.name, 0)
        if not count:
            continue
        if pool.usd_per_hour is None:
            return None
        total += count * pool.usd_per_hour
    return total


def add_cost(model: ModelSpec, plans: Mapping[str, PoolPlan]) -> dict[str, PoolPlan]:
    """``plans`` with what each pool and the whole model cost as planned. Who sleeps keeps its accelerator, and costs as much."""
    counts = {name: plan.replicas + plan.asleep for name, plan in plans.items()}
    whole = DecisionInput(usd_per_hour(model, counts))
    found = {}
    for name, plan in plans.items():
        cost = {"usd_per_hour": DecisionInput(usd_per_hour(model, {name: counts[name]})), "model_usd_per_hour": whole}
        found[name] = replace(plan, inputs={**plan.inputs, **cost})
    return found
