"""Group demand: the replicas that a group's arrivals need, counted in those of its first pool."""

import math
from dataclasses import replace
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing.group_inputs import GroupInputs
from fairlead_autoscaler.core.sizing.load_conditions import waiting_requests
from fairlead_autoscaler.core.sizing.replicas_needed import (
    Backlog,
    Demand,
    DemandInputs,
    estimate_demand,
    relative_needs,
)
from fairlead_autoscaler.core.state import CoreState, GroupMemory
from fairlead_autoscaler.core.workload.arrivals import ArrivalHistory, keep_last_ticks
from fairlead_autoscaler.core.workload.load_forecast import (
    BinPrice,
    LoadLevel,
    change_point_ticks,
    estimate_level,
    forecast_deviation,
    recurring_burst_level,
)
from fairlead_autoscaler.core.workload.mean_request import output_growth, prompt_growth

RECUR_SHARE: Final = 3.0
"""Bursts recur within this multiple of startup time and window."""


def estimate_group_demand(
    state: CoreState, memory: GroupMemory, tick: Tick, inputs: GroupInputs
) -> tuple[CoreState, GroupMemory, Demand | None]:
    """Returns the next state and memory, and the demand.

    The demand is None before the first complete interval of arrivals.
    """
    settings = tick.settings
    price = inputs.bin_price(tick, has_settled_prompts=state.lengths.settled_prompt is not None)
    bin_end = memory.past_at
    memory = _learn_bursts(state.load, memory, tick, inputs, price)
    load, level = _load_level(state.load, memory, inputs, price)
    state = replace(state, load=load)
    if level is None:
        return state, memory, None
    outputs = prompts = 1.0
    if inputs.group.role is not Role.PREFILL:
        outputs = output_growth(state.lengths, load, inputs.ahead_seconds)
    if level.slope <= 0.0:
        prompts = prompt_growth(load, inputs.ahead_seconds)
    expected = replace(
        inputs.mean_request,
        prompt_tokens=inputs.mean_request.prompt_tokens * prompts,
        output_tokens=inputs.mean_request.output_tokens * outputs,
    )
    patience = math.inf if tick.model.patience_seconds is None else tick.model.patience_seconds
    demand_inputs = DemandInputs(
        level=level,
        deviation=settings.deviation_guess if memory.deviation is None else memory.deviation,
        bursts=memory.bursts,
        capacity=inputs.capacity,
        replica=replace(inputs.replica_model(inputs.first_pool), request=expected),
        ahead_seconds=inputs.ahead_seconds,
        backlog=Backlog(
            waiting_requests(tick, inputs.group),
            inputs.ready_replicas(tick),
            inputs.desired_replicas(tick),
            min(inputs.ahead_seconds, patience),
        ),
    )
    demand = estimate_demand(demand_inputs, settings)
    if demand.replicas > 0.0 and (memory.past_at > bin_end or not memory.other_needs):
        others = relative_needs(demand_inputs, demand, inputs.other_goals)
        memory = replace(memory, other_needs=others)
    shown = {name: DecisionInput(need * demand.replicas) for name, need in memory.other_needs.items()}
    growth = {"output_growth": DecisionInput(outputs), "prompt_growth": DecisionInput(prompts)}
    return state, memory, replace(demand, inputs={**growth, **demand.inputs, **shown})


def _learn_bursts(
    load: ArrivalHistory, memory: GroupMemory, tick: Tick, inputs: GroupInputs, price: BinPrice
) -> GroupMemory:
    """Returns the memory with bursts and errors of the past, which change when a bin closes."""
    settings = tick.settings
    if not load.past or load.past[-1].at <= memory.past_at:
        return memory
    within = RECUR_SHARE * (inputs.startup_seconds + settings.window_seconds)
    request_seconds = 1.0 / inputs.capacity.requests_per_second
    return replace(
        memory,
        bursts=recurring_burst_level(load, price, within, request_seconds, settings),
        deviation=forecast_deviation(load, price, inputs.ahead_seconds, request_seconds, settings),
        past_at=load.past[-1].at,
    )


def _load_level(
    load: ArrivalHistory, memory: GroupMemory, inputs: GroupInputs, price: BinPrice
) -> tuple[ArrivalHistory, LoadLevel | None]:
    """Returns the arrivals since the last change point, and their level."""
    request_seconds = 1.0 / inputs.capacity.requests_per_second
    level = estimate_level(load, price, request_seconds)
    if level is None:
        return load, None
    ticks = change_point_ticks(load, level, price, request_seconds, memory.bursts > 0.0)
    if not ticks:
        return load, level
    load = keep_last_ticks(load, ticks)
    after = estimate_level(load, price, request_seconds)
    if after is not None and after.current > level.current:
        after = replace(after, floor=level.expected(inputs.ahead_seconds))
    return load, after
