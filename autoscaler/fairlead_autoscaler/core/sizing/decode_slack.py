"""Beside the number of a decode pool: which prompts its engines could compute themselves just now, and how many
(``roles.slack``).

It follows from what the plan was made from: the level of the load, what a replica carries, how long requests are and how
fast the engines are. Nothing is sized by it; what they did compute, as gateways counted it, is sized for as theirs (``need``)."""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import ModelSpec, PoolObservation, PoolPlan, PoolSpec
from fairlead_autoscaler.roles import DecodeLoad, decode_slack

_REQUIRED_INPUTS = ("level_replicas", "capacity_requests_per_second", "prompt_tokens", "output_tokens", "speed_factor")


def add_decode_slack(
    model: ModelSpec, plans: Mapping[str, PoolPlan], seen: Mapping[str, PoolObservation]
) -> dict[str, PoolPlan]:
    """``plans`` with ``convertible_prompt_tokens`` (the longest prompt) and ``convertible_tokens_per_second`` (of all
    ready engines) among the inputs of decode pools. Without an inter-token objective, a profile or a level nothing is
    said."""
    return {
        name: _with_slack_inputs(model, pool, plans[name], seen[name])
        for pool in model.pools
        if (name := pool.name) in plans
    }


def _with_slack_inputs(model: ModelSpec, pool: PoolSpec, plan: PoolPlan, seen: PoolObservation) -> PoolPlan:
    known = [plan.inputs[name].value for name in _REQUIRED_INPUTS if name in plan.inputs]
    values = [value for value in known if value is not None]
    if pool.role is not Role.DECODE or model.itl_seconds is None or pool.profile is None or seen.ready < 1:
        return plan
    if len(values) < len(_REQUIRED_INPUTS):
        return plan
    level, carries, prompt, output, factor = values
    decoding = DecodeLoad(level * carries / seen.ready, output, prompt + output / 2.0)
    profile = pool.profile.sped_up(1.0 / max(1e-3, factor))
    found = decode_slack(profile, decoding, itl_seconds=model.itl_seconds, ttft_seconds=model.ttft_seconds)
    told = {
        "convertible_prompt_tokens": DecisionInput(found.prompt_tokens),
        "convertible_tokens_per_second": DecisionInput(found.tokens_per_second * seen.ready),
    }
    return replace(plan, inputs={**plan.inputs, **told})
