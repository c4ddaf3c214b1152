"""Accelerators that need no AcceleratorClass of one's own, so that the smallest manifest is one object.

Their profiles are rooflines of one typical model each (see ``fairlead/profile.py``): good enough to route and to simulate by
until an engine has been measured.
"""

from fairlead.api.v1alpha1 import API_VERSION, AcceleratorClass, AcceleratorClassSpec, Metadata
from fairlead.strict import Profile

_PRESETS = {
    "nvidia-l4": "l4-qwen8b",
    "nvidia-a100": "a100-qwen7b",
    "nvidia-h100": "h100-llama8b",
    "npu-910b4": "910b4",
    "cpu": "tiny-cpu",
}


def builtin_accelerators() -> dict[str, AcceleratorClass]:
    """By name; a file's own AcceleratorClass of the same name takes precedence."""
    return {
        name: AcceleratorClass(
            api_version=API_VERSION,
            kind="AcceleratorClass",
            metadata=Metadata(name=name),
            spec=AcceleratorClassSpec(profile=Profile(preset=preset)),
        )
        for name, preset in _PRESETS.items()
    }
