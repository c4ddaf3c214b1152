"""The claims with LoRA adapters, which engines mount.

Models without `spec.adapters.claimNames` are rendered as they were, in every render version.
"""

from dataclasses import replace

from fairlead.adapters.resolution import ADAPTERS_FOLDER
from fairlead.api.spec.engine import EngineType
from fairlead.engines.containers.base import EngineContainer, InstancePod


def with_adapter_claims(pod: InstancePod, container: EngineContainer) -> EngineContainer:
    """Returns the container with the claims, each in a folder of its name and only to read.

    Simulated engines mount none: they read no weights.
    """
    adapters = pod.spec.adapters
    if adapters is None or not adapters.claim_names or pod.spec.engine.type is EngineType.SIM:
        return container
    volumes, mounts = list(container.extra_volumes), list(container.extra_mounts)
    for number, claim in enumerate(adapters.claim_names):
        name = f"adapters-{number}"
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}})
        mounts.append({"name": name, "mountPath": f"{ADAPTERS_FOLDER}/{claim}", "readOnly": True})
    return replace(container, extra_volumes=tuple(volumes), extra_mounts=tuple(mounts))
