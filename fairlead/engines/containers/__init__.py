"""Engine containers: what a container of each kind runs, needs and serves.

The code is pure; the operator's renderer makes pods of its results. Each kind has one module;
`weights`, `kv_offload` and `prestop_drain` are shared, and `additions` adds to
containers of every kind.
`fairlead.engines` does not import this package, so that gateways do not load the API types.
"""

from collections.abc import Mapping

from fairlead.api.spec.engine import EngineType
from fairlead.engines.containers.base import ContainerBuilder, EngineContainer, InstancePod, NodeRole
from fairlead.engines.containers.custom import custom_container
from fairlead.engines.containers.llama_cpp import llama_cpp_container
from fairlead.engines.containers.sglang import sglang_container
from fairlead.engines.containers.sim import sim_container
from fairlead.engines.containers.tensorrt_llm import tensorrt_llm_container
from fairlead.engines.containers.vllm import vllm_container

__all__ = ["EngineContainer", "InstancePod", "NodeRole", "container_builders"]


def container_builders() -> Mapping[EngineType, ContainerBuilder]:
    """Returns the builders by kind. `external` has none, since Fairlead starts nothing there."""
    return {
        EngineType.VLLM: vllm_container,
        EngineType.SGLANG: sglang_container,
        EngineType.LLAMA_CPP: llama_cpp_container,
        EngineType.TRTLLM: tensorrt_llm_container,
        EngineType.SIM: sim_container,
        EngineType.CUSTOM: custom_container,
    }
