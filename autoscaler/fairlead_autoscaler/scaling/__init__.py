"""The autoscaler's pure core: an observation and a state in, a plan with its reasons and the next state out."""

from fairlead_autoscaler.scaling.values import (
    GatewaySeen,
    Observation,
    Plan,
    PoolFacts,
    PoolPlan,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
)

__all__ = [
    "GatewaySeen",
    "Observation",
    "Plan",
    "PoolFacts",
    "PoolPlan",
    "PoolSeen",
    "ReplicaSeen",
    "ReplicaState",
    "ScaledModel",
]
