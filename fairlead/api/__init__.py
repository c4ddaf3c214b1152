"""The API of Fairlead: what is written in manifests, as types. See ``docs/reference/api.md``."""

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.metadata import Metadata
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec, CountRule, Toleration
from fairlead.api.spec.adapters import Adapters
from fairlead.api.spec.autoscaling import Autoscaling, ScalingMode, Schedule
from fairlead.api.spec.engine import Engine, EngineKind
from fairlead.api.spec.environment import EnvironmentSource, EnvironmentVariable
from fairlead.api.spec.kv_cache import KvCache, Offload, OffloadKind, PeerTransfer, Transfer
from fairlead.api.spec.model import ModelCache, ModelCredentials, ModelSource
from fairlead.api.spec.pools import ExternalEndpoint, Parallelism, PodSelector, PodTemplate, Pool, PoolRole, Replicas
from fairlead.api.spec.profile import Profile
from fairlead.api.spec.rollout import Rollout
from fairlead.api.spec.routing import Routing
from fairlead.api.spec.slo import Slo
from fairlead.api.status import Condition, ConditionStatus, ModelDeploymentStatus, PoolStatus
from fairlead.api.v1alpha1 import (
    API_VERSION,
    GROUP,
    VERSION,
    AcceleratorClass,
    ModelDeployment,
    ModelDeploymentSpec,
)
from fairlead.fleet.model import RoutingPreset

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "AcceleratorClass",
    "AcceleratorClassSpec",
    "Adapters",
    "Autoscaling",
    "Condition",
    "ConditionStatus",
    "ConditionType",
    "CountRule",
    "Engine",
    "EngineKind",
    "EnvironmentSource",
    "EnvironmentVariable",
    "ExternalEndpoint",
    "KvCache",
    "Metadata",
    "ModelCache",
    "ModelCredentials",
    "ModelDeployment",
    "ModelDeploymentSpec",
    "ModelDeploymentStatus",
    "ModelSource",
    "Offload",
    "OffloadKind",
    "Parallelism",
    "PeerTransfer",
    "PodSelector",
    "PodTemplate",
    "Pool",
    "PoolRole",
    "PoolStatus",
    "Profile",
    "Reason",
    "Replicas",
    "Rollout",
    "Routing",
    "RoutingPreset",
    "ScalingMode",
    "Schedule",
    "Slo",
    "Toleration",
    "Transfer",
    "builtin_accelerators",
]
