"""The autoscaler's pure core: an observation and a state in, a plan with its reasons and the next state out."""

from fairlead_autoscaler.core.decide import decide
from fairlead_autoscaler.core.scaling_core import ScalingCore
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.sizing.replica_count import Rule
from fairlead_autoscaler.core.state import CoreState
from fairlead_autoscaler.core.types import (
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
