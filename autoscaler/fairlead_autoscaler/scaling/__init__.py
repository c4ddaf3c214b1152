"""The autoscaler's pure core: an observation and a state in, a plan with its reasons and the next state out."""

from fairlead_autoscaler.scaling.core import Core
from fairlead_autoscaler.scaling.decide import decide
from fairlead_autoscaler.scaling.replicas import Rule
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.state import State
from fairlead_autoscaler.scaling.values import (
    Candidate,
    GatewaySeen,
    MixAsked,
    MixTold,
    Observation,
    Plan,
    PoolFacts,
    PoolPlan,
    PoolSeen,
    ReplicaSeen,
    ReplicaState,
    ScaledModel,
    Schedule,
    ShapeSeen,
    Tier,
    Woken,
)

__all__ = [
    "Candidate",
    "Core",
    "GatewaySeen",
    "MixAsked",
    "MixTold",
    "Observation",
    "Plan",
    "PoolFacts",
    "PoolPlan",
    "PoolSeen",
    "ReplicaSeen",
    "ReplicaState",
    "Rule",
    "ScaledModel",
    "ScalingSettings",
    "Schedule",
    "ShapeSeen",
    "State",
    "Tier",
    "Woken",
    "decide",
]
