"""Values of the accelerator mix.

Shapes are buckets of requests by prompt and output length, in any fixed order. Rates and
throughputs are tuples in that order, in requests per second. A throughput of 0 means that the
accelerator cannot serve the shape within the targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core import PoolCandidate

__all__ = ["AcceleratorMix", "MixSettings", "PoolCandidate"]


@dataclass(frozen=True, slots=True)
class MixSettings:
    """Settings of the solver.

    hold_seconds: the expected lifetime of a mix, over which the cost of starts is spread.
    change_share: the price of each start or stop, as a share of the replica's cost; without it,
        equal mixes would alternate.
    solve_seconds: the time limit of the solver.
    """

    hold_seconds: float = 1_800.0
    change_share: float = 0.01
    solve_seconds: float = 0.8


@dataclass(frozen=True, slots=True)
class AcceleratorMix:
    """The replicas of each pool, and `shares[pool][shape]`, the share (0..1) of each shape that it
    takes.

    cost_per_hour: of the replicas, without starts.
    unserved: requests per second that no pool takes.
    rule: `milp` (proven cheapest), `milp-limit` (best found in time), `greedy-timeout`,
        `greedy-infeasible`, `greedy-failed` (no result of the solver), `idle`.
    """

    replicas: Mapping[str, int]
    shares: Mapping[str, tuple[float, ...]]
    cost_per_hour: float
    unserved: float
    rule: str
    reason: str
    inputs: Mapping[str, DecisionInput] = field(default_factory=dict)
