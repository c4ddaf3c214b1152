"""The autoscaler's pure core: an observation and a state in, a plan with its reasons and the next state out."""

from fairlead_autoscaler.scaling.core import ScalingCore
from fairlead_autoscaler.scaling.decide import decide
from fairlead_autoscaler.scaling.replicas import Rule
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.state import CoreState
from fairlead_autoscaler.scaling.values import (
    GatewayTraffic,
    MixRequest,
    MixResult,
    ModelSpec,
    Observation,
    PoolCandidate,
    PoolObservation,
    PoolPlan,
    PoolSpec,
    ReplicaMetrics,
    ReplicaSchedule,
    ReplicaState,
    ScalingPlan,
    ShapeCount,
    SleepTier,
    WakeTiming,
)

__all__ = [
    "CoreState",
    "GatewayTraffic",
    "MixRequest",
    "MixResult",
    "ModelSpec",
    "Observation",
    "PoolCandidate",
    "PoolObservation",
    "PoolPlan",
    "PoolSpec",
    "ReplicaMetrics",
    "ReplicaSchedule",
    "ReplicaState",
    "Rule",
    "ScalingCore",
    "ScalingPlan",
    "ScalingSettings",
    "ShapeCount",
    "SleepTier",
    "WakeTiming",
    "decide",
]
