"""Terms of a planned number of replicas as text: what each step of a decision adds, and its price.
Pure.

The terms go from the load to the plan and add up to it. In a group of several pools, demand is
counted in replicas of the first one and then divided. There the terms end at the demand.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fairlead_autoscaler.core import ModelSpec, PoolPlan, PoolSpec
from fairlead_cli.scaling.decision_inputs import LABEL_WIDTH

_MIN_SHOWN: Final = 0.005
"""A term that two decimals do not show."""


@dataclass(frozen=True, slots=True)
class DecisionTerm:
    """Replicas that one step of a decision adds; negative: that it takes away."""

    label: str
    replicas: float


def usd_per_demand_replica(model: ModelSpec, pool: str) -> float | None:
    """Returns the hourly price of a replica that the demand of `pool` counts.

    None without a price, and where several pools divide the demand: their prices differ.
    """
    group = _group(model, pool)
    return group[0].usd_per_hour if len(group) == 1 else None


def decision_terms(plan: PoolPlan, *, shares_demand: bool = False) -> list[DecisionTerm]:
    """Returns the terms of a plan; empty where its load is not known.

    shares_demand: several pools divide the demand, so the terms end at it.
    """
    values = {name: shown.value for name, shown in plan.inputs.items()}
    names = ("level_replicas", "certain_replicas", "need_replicas", "window_max_replicas", "target_replicas")
    level, certain, need, held, target = (values.get(name) for name in names)
    if level is None or certain is None or need is None or held is None or target is None:
        return []
    waiting = min(values.get("backlog_replicas") or 0.0, max(0.0, held - need))
    is_asleep = values.get("whole_replicas") is not None
    terms = [
        DecisionTerm("load now", level),
        DecisionTerm("forecast", certain - level),
        DecisionTerm("errors of the forecast", need - certain),
        DecisionTerm("waiting requests", waiting),
        DecisionTerm("window, less asleep" if is_asleep else "window", held - need - waiting),
    ]
    if shares_demand:
        return terms
    hedged, replacing = values.get("hedged_replicas") or 0.0, values.get("replacement_replicas") or 0.0
    return [
        *terms,
        DecisionTerm("rounding", target - held),
        DecisionTerm("rules and bounds", plan.replicas - hedged - replacing - target),
        DecisionTerm("replacements", replacing),
        DecisionTerm("hedged starts", hedged),
        DecisionTerm("asleep", float(plan.asleep)),
    ]


def render_terms(model: ModelSpec, pool: str, plan: PoolPlan) -> Iterator[str]:
    """Yields a line for each term that is not zero, with its price where that is known."""
    group = _group(model, pool)
    terms = decision_terms(plan, shares_demand=len(group) > 1)
    price = usd_per_demand_replica(model, pool)
    if terms:
        yield "  of which" if len(group) < 2 else f"  demand, in replicas of pool {group[0].name}"
    for number, term in enumerate(terms):
        if number and abs(term.replicas) < _MIN_SHOWN:
            continue
        sign = "+" if number else ""
        money = "" if price is None else f"  {_dollars(term.replicas * price)}"
        yield f"    {term.label:<{LABEL_WIDTH}} {term.replicas:{sign}8.2f}{money}"


def _group(model: ModelSpec, pool: str) -> tuple[PoolSpec, ...]:
    """Returns the pools that share the demand of `pool`, those of its role."""
    roles = {spec.role for spec in model.pools if spec.name == pool}
    return tuple(spec for spec in model.pools if spec.role in roles)


def _dollars(value: float) -> str:
    return f"{'−' if value < 0.0 else ''}${abs(value):,.2f} an hour"
