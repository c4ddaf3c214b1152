"""The API of Fairlead: what is written in manifests, as types. See ``docs/reference/api.md``."""

from fairlead.api.accelerators import builtin_accelerators
from fairlead.api.v1alpha1 import (
    API_VERSION,
    GROUP,
    VERSION,
    AcceleratorClass,
    AcceleratorClassSpec,
    Engine,
    EngineKind,
    EnvironmentVariable,
    Metadata,
    ModelDeployment,
    ModelDeploymentSpec,
    ModelSource,
    Pool,
    PoolRole,
    Replicas,
)
from fairlead.strict import Objectives, Profile, Routing, RoutingPreset

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "AcceleratorClass",
    "AcceleratorClassSpec",
    "Engine",
    "EngineKind",
    "EnvironmentVariable",
    "Metadata",
    "ModelDeployment",
    "ModelDeploymentSpec",
    "ModelSource",
    "Objectives",
    "Pool",
    "PoolRole",
    "Profile",
    "Replicas",
    "Routing",
    "RoutingPreset",
    "builtin_accelerators",
]
