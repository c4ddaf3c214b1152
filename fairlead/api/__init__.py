"""The API of Fairlead: what is written in manifests, as types. See ``docs/reference/api.md``."""

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.metadata import Metadata
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec, CountRule, Toleration
from fairlead.api.spec.adapters import Adapters
from fairlead.api.spec.autoscaling import Autoscaling, ScalingMode, Schedule
from fairlead.api.spec.engine import Engine, EngineType
from fairlead.api.spec.environment import EnvironmentSource, EnvironmentVariable
from fairlead.api.spec.kv_cache import KvCache, Offload, OffloadType, PeerTransfer, Transfer
from fairlead.api.spec.model import ModelCache, ModelCredentials, ModelSource, SecretReference
from fairlead.api.spec.pools import ExternalEndpoint, Parallelism, PodSelector, PodTemplate, Pool, PoolRole
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
    "EngineType",
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
    "OffloadType",
    "Parallelism",
    "PeerTransfer",
    "PodSelector",
    "PodTemplate",
    "Pool",
    "PoolRole",
    "PoolStatus",
    "Profile",
    "Reason",
    "Rollout",
    "Routing",
    "RoutingPreset",
    "ScalingMode",
    "Schedule",
    "SecretReference",
    "Slo",
    "Toleration",
    "Transfer",
    "builtin_accelerators",
]
