"""Pure scaling core: an observation and a state in, a plan with its reasons and the next state out.

    signals -> workload -> performance -> sizing -> limits

- `types`, `settings`: the values of the core, and its settings.
- `signals/`: valid and consistent signals of one tick.
- `performance/`: what a replica carries; `workload/`: what arrives.
- `sizing/`: how many replicas each pool needs.
- `limits/`: corrections across pools; replicas that sleep; replacements of ejected ones.
- `decide`: all of this for one tick; `learning`, `state`: what is remembered.
"""

from fairlead_autoscaler.core.decide import ScalingCore, decide
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
