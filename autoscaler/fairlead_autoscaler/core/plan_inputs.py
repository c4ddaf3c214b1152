"""Plan inputs that are only shown to users: the cost of a plan, and the slack of decode pools.

No decision uses them. Missing is not zero: a pool with replicas and without a price makes the
sum unknown.
"""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.decode_slack import DecodeLoad, decode_slack
from fairlead_autoscaler.core.types import ModelSpec, PoolObservation, PoolPlan, PoolSpec

_SLACK_INPUTS = ("level_replicas", "capacity_requests_per_second", "prompt_tokens", "output_tokens", "speed_factor")


def usd_per_hour(model: ModelSpec, counts: Mapping[str, int]) -> float | None:
    """Returns the cost of so many replicas of each pool; None if one of these pools has no
    price.
    """
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
    """Returns the plans with the hourly cost of each pool and of the model among their inputs.

    A sleeping replica keeps its accelerator, so it costs as much as one that serves.
    """
    counts = {name: plan.replicas + plan.asleep for name, plan in plans.items()}
    whole = DecisionInput(usd_per_hour(model, counts))
    priced = {}
    for name, plan in plans.items():
        cost = {"usd_per_hour": DecisionInput(usd_per_hour(model, {name: counts[name]})), "model_usd_per_hour": whole}
        priced[name] = replace(plan, inputs={**plan.inputs, **cost})
    return priced


def add_decode_slack(
    model: ModelSpec, plans: Mapping[str, PoolPlan], observed: Mapping[str, PoolObservation]
) -> dict[str, PoolPlan]:
    """Returns the plans with the slack of decode pools among their inputs.

    The inputs are `convertible_prompt_tokens` (the longest prompt) and
    `convertible_tokens_per_second` (of all ready engines). Nothing is added without a TPOT target,
    a profile, a ready replica or a known load.
    """
    return {
        name: _with_slack(model, pool, plans[name], observed[name])
        for pool in model.pools
        if (name := pool.name) in plans
    }


def _with_slack(model: ModelSpec, pool: PoolSpec, plan: PoolPlan, observed: PoolObservation) -> PoolPlan:
    known = [plan.inputs[name].value for name in _SLACK_INPUTS if name in plan.inputs]
    values = [value for value in known if value is not None]
    if pool.role is not Role.DECODE or model.itl_seconds is None or pool.profile is None or observed.ready < 1:
        return plan
    if len(values) < len(_SLACK_INPUTS):
        return plan
    level, capacity, prompt, output, slowdown = values
    load = DecodeLoad(level * capacity / observed.ready, output, prompt + output / 2.0)
    profile = pool.profile.sped_up(1.0 / max(1e-3, slowdown))
    slack = decode_slack(profile, load, itl_seconds=model.itl_seconds, ttft_seconds=model.ttft_seconds)
    inputs = {
        "convertible_prompt_tokens": DecisionInput(slack.prompt_tokens),
        "convertible_tokens_per_second": DecisionInput(slack.tokens_per_second * observed.ready),
    }
    return replace(plan, inputs={**plan.inputs, **inputs})
