"""Built-in accelerators, so that the smallest manifest needs no AcceleratorClass.

Their profiles are of one typical model each. Those of H100 and CPU were fitted to measurements,
that of H200 is scaled from the H100's, and the others are rooflines (`fairlead/engine_profile.py`).
They serve routing and simulation until an engine has been measured. They select no nodes, since
product labels differ between clusters. A cluster with several kinds of GPU needs its own classes.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from fairlead.api.spec.accelerator_class import AcceleratorClassSpec, TaintEffect, Toleration, TolerationOperator
from fairlead.api.spec.profile import Profile
from fairlead.api.v1alpha1 import API_VERSION, AcceleratorClass, Metadata

_NVIDIA_GPU, _AMD_GPU = "nvidia.com/gpu", "amd.com/gpu"
_GOOGLE_TPU, _INTEL_GAUDI = "google.com/tpu", "habana.ai/gaudi"
_BUILTIN: dict[str, tuple[str, str | None]] = {
    "nvidia-l4": ("l4-qwen8b", _NVIDIA_GPU),
    "nvidia-a100": ("a100-qwen7b", _NVIDIA_GPU),
    "nvidia-h100": ("h100-llama8b-fitted", _NVIDIA_GPU),
    "nvidia-h200": ("h200-llama8b-fitted", _NVIDIA_GPU),
    "nvidia-b200": ("b200-llama8b", _NVIDIA_GPU),
    "amd-mi300x": ("mi300x-llama8b", _AMD_GPU),
    "amd-mi325x": ("mi325x-llama8b", _AMD_GPU),
    "amd-mi355x": ("mi355x-llama8b", _AMD_GPU),
    "google-tpu-v5e": ("tpuv5e-llama3b", _GOOGLE_TPU),
    "google-tpu-v6e": ("tpuv6e-llama8b", _GOOGLE_TPU),
    "intel-gaudi2": ("gaudi2-llama8b", _INTEL_GAUDI),
    "intel-gaudi3": ("gaudi3-llama8b", _INTEL_GAUDI),
    "npu-910b4": ("910b4", "huawei.com/Ascend910"),
    "cpu": ("tiny-cpu", None),
}


@cache
def builtin_accelerators() -> Mapping[str, AcceleratorClass]:
    """Returns the built-in classes by name. A class of the same name in a file or cluster replaces
    it.
    """
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
    """Returns a toleration of the taint that nodes with this resource usually have.

    Empty for None. The key of the taint is the name of the resource.
    """
    if resource is None:
        return []
    return [Toleration(key=resource, operator=TolerationOperator.EXISTS, effect=TaintEffect.NO_SCHEDULE)]
