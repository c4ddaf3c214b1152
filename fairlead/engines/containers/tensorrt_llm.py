"""The container of TensorRT-LLM: `trtllm-serve` with flags of its source at commit 44373a31ee62.

A test checks each flag against the options in that source.
"""

from typing import Final

from fairlead.api.spec.pools import PoolRole
from fairlead.engines.containers.base import HTTP_PORT, EngineContainer, HealthProbe, InstancePod, host_resources
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.engines.containers.weights import model_weights
from fairlead.errors import BadInput
from fairlead.fleet.labels import PodEngineInfo

_CONFIG_FILE: Final = "/tmp/trtllm-serve.yaml"
_START_SCRIPT: Final = f"""\
printf 'return_perf_metrics: true\\n' > {_CONFIG_FILE} && exec trtllm-serve serve "$@"
"""
"""Writes the configuration file, then becomes the server.

Why a file: releases up to 1.3.0rc22 have no switch that turns the metrics on.
"""


def tensorrt_llm_container(pod: InstancePod) -> EngineContainer:
    """Returns one pod's container. Raises BadInput for features that it does not offer.

    Why the fixed delay before SIGTERM: the gauges of load do not return to zero. At SIGTERM, the
    server takes no more connections and ends its requests.
    """
    _check_supported(pod)
    source, shape = pod.spec.model, pod.pool.parallelism
    weights = model_weights(source)
    cpu, memory = host_resources(pod, shape.ranks_per_pod)
    return EngineContainer(
        command=("sh", "-c", _START_SCRIPT, "trtllm-serve"),
        args=(weights.argument, *_flags(pod), *pod.spec.engine.args),
        env=weights.env,
        ports={"http": HTTP_PORT},
        pod_info=PodEngineInfo(port=HTTP_PORT, served_name=source.engine_name),
        health=HealthProbe(),
        drain=PreStopDrain(),
        weights=weights,
        cpu_millis=cpu,
        memory_bytes=memory,
        needs_shared_memory=True,
    )


def _check_supported(pod: InstancePod) -> None:
    source, shape, pool = pod.spec.model, pod.pool.parallelism, f"spec.pools[{pod.pool.name}]"
    if source.scheme in ("s3", "gs"):
        hint = "copy the weights to a claim and write pvc:CLAIM/PATH, or use hf:// or oci://"
        raise BadInput(f"TensorRT-LLM cannot load {source.scheme}:// weights", field="spec.model.uri", hint=hint)
    if pod.pool.role is not PoolRole.SERVE:
        message = "Fairlead does not split prefill from decode with TensorRT-LLM"
        raise BadInput(message, field=f"{pool}.role", hint="use the role Serve")
    if shape.nodes > 1 or shape.data > 1:
        message = "Fairlead runs one trtllm-serve on one node, without data-parallel copies"
        hint = "use more replicas, with tensor and pipeline on one node"
        raise BadInput(message, field=f"{pool}.parallelism", hint=hint)


def _flags(pod: InstancePod) -> list[str]:
    """Returns the flags. Short names of sizes and `--revision` exist in older releases, too."""
    shape, revision = pod.pool.parallelism, pod.spec.model.revision
    flags = [f"--served_model_name={pod.served_name}", f"--host={pod.host}", f"--port={HTTP_PORT}"]
    flags.append(f"--config={_CONFIG_FILE}")
    if revision is not None:
        flags.append(f"--revision={revision}")
    return flags + [
        f"--{name}_size={size}" for name, size in (("tp", shape.tensor), ("pp", shape.pipeline)) if size > 1
    ]
