"""The values that the accelerator mix is worked out from, and what comes of it.

*Shapes* are buckets of requests by prompt and answer length, in any fixed order; rates and throughputs are tuples in that
order, in requests per second. A throughput of 0 says that the accelerator cannot serve the shape within the objectives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core import PoolCandidate

__all__ = ["AcceleratorMix", "MixSettings", "PoolCandidate"]


@dataclass(frozen=True, slots=True)
class MixSettings:
    """``hold_seconds``: how long a mix is expected to stay, over which the cost of starting is spread. ``change_share``:
    what each replica started or stopped is charged beside, as a share of its cost, so that equal mixes do not take turns.
    ``solve_seconds`` is the solver's time."""

    hold_seconds: float = 1_800.0
    change_share: float = 0.01
    solve_seconds: float = 0.8


@dataclass(frozen=True, slots=True)
class AcceleratorMix:
    """How many replicas of each pool, and which share (0..1) of each shape it takes (``shares[pool][shape]``).
    ``cost_per_hour`` is that of the replicas alone. ``unserved`` is the requests per second that no pool can take. ``rule``:
    ``milp`` (proven cheapest), ``milp-limit`` (best found in time), ``greedy-timeout``, ``greedy-infeasible``,
    ``greedy-failed`` (the solver gave nothing), ``idle``."""

    replicas: Mapping[str, int]
    shares: Mapping[str, tuple[float, ...]]
    cost_per_hour: float
    unserved: float
    rule: str
    reason: str
    inputs: Mapping[str, DecisionInput] = field(default_factory=dict)
