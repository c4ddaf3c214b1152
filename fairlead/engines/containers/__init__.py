"""Engines in a pod: what a container of each kind runs, needs and answers. Pure; the operator's renderer makes pods of it.

One file per kind. Nothing here is imported by ``fairlead.engines`` itself, so that a gateway does not load the API types.
"""

from collections.abc import Mapping

from fairlead.api import EngineKind
from fairlead.engines.containers.base import ContainerBuilder, EngineContainer, InstancePod, NodeRole
from fairlead.engines.containers.custom import custom_container
from fairlead.engines.containers.sglang import sglang_container
from fairlead.engines.containers.sim import sim_container
from fairlead.engines.containers.vllm import vllm_container

__all__ = ["EngineContainer", "InstancePod", "NodeRole", "container_builders"]


def container_builders() -> Mapping[EngineKind, ContainerBuilder]:
    """By kind; ``external`` has none, since Fairlead starts nothing there."""
    return {
        EngineKind.VLLM: vllm_container,
        EngineKind.SGLANG: sglang_container,
        EngineKind.SIM: sim_container,
        EngineKind.CUSTOM: custom_container,
    }
