"""Accelerators that need no AcceleratorClass of one's own, so that the smallest manifest is one object.

Their profiles are rooflines of one typical model each (see ``fairlead/engine_profile.py``): good enough to route and to simulate by
until an engine has been measured. They select no nodes, since names of products differ between clusters: where a cluster has
several kinds of GPU, a class of one's own says which nodes have which.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from fairlead.api.metadata import Metadata
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec, TaintEffect, Toleration, TolerationOperator
from fairlead.api.spec.profile import Profile
from fairlead.api.v1alpha1 import API_VERSION, AcceleratorClass

_NVIDIA_GPU = "nvidia.com/gpu"
_BUILTIN: dict[str, tuple[str, str | None]] = {
    "nvidia-l4": ("l4-qwen8b", _NVIDIA_GPU),
    "nvidia-a100": ("a100-qwen7b", _NVIDIA_GPU),
    "nvidia-h100": ("h100-llama8b", _NVIDIA_GPU),
    "npu-910b4": ("910b4", "huawei.com/Ascend910"),
    "cpu": ("tiny-cpu", None),
}


@cache
def builtin_accelerators() -> Mapping[str, AcceleratorClass]:
    """By name; a file's or cluster's own AcceleratorClass of the same name takes precedence."""
    return MappingProxyType(
        {
            name: AcceleratorClass(
                api_version=API_VERSION,
                kind="AcceleratorClass",
                metadata=Metadata(name=name),
                spec=AcceleratorClassSpec(
                    profile=Profile(preset=preset), resource=resource, tolerations=_tolerations(resource)
                ),
            )
            for name, (preset, resource) in _BUILTIN.items()
        }
    )


def _tolerations(resource: str | None) -> list[Toleration]:
    """Nodes with devices are commonly tainted with the name of the resource."""
    if resource is None:
        return []
    return [Toleration(key=resource, operator=TolerationOperator.EXISTS, effect=TaintEffect.NO_SCHEDULE)]
