"""The container of SGLang: `python3 -m sglang.launch_server` with flags of 0.5.23.

A test checks each flag against SGLang's argument parser.
"""

from typing import Any, Final

from fairlead.api.spec.kv_cache import OffloadType, Transfer
from fairlead.api.spec.pools import PoolRole
from fairlead.engines.containers.base import (
    BOOTSTRAP_PORT,
    HTTP_PORT,
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    LEADER_ADDRESS_VARIABLE,
    NODE_INDEX_VARIABLE,
    RENDEZVOUS_PORT,
    EngineContainer,
    HealthProbe,
    InstancePod,
    compact_json,
    env_from_field,
    env_value,
    host_resources,
    network_ports,
)
from fairlead.engines.containers.kv_offload import bytes_per_rank, lmcache_env, offload_volumes
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.engines.containers.weights import model_weights
from fairlead.errors import BadInput
from fairlead.fleet.labels import PodEngineInfo

LOAD_GAUGES: Final = ("sglang:num_running_reqs", "sglang:num_queue_reqs")
_MODES: Final = {PoolRole.PREFILL: "prefill", PoolRole.DECODE: "decode"}
_GB: Final = 10**9


def sglang_container(pod: InstancePod) -> EngineContainer:
    """Returns one pod's container. Raises BadInput for features that SGLang lacks."""
    _check_supported(pod)
    weights = model_weights(pod.spec.model)
    shape, cache = pod.pool.parallelism, pod.spec.kv_cache
    cpu, memory = host_resources(pod, shape.ranks_per_pod)
    offload = offload_volumes(cache.offload)
    is_disaggregated = pod.pool.role in _MODES
    is_prefill = pod.pool.role is PoolRole.PREFILL
    host = f"${LEADER_ADDRESS_VARIABLE}" if not pod.serves_http else "127.0.0.1"
    return EngineContainer(
        command=("python3", "-m", "sglang.launch_server"),
        args=(f"--model-path={weights.argument}", *_flags(pod, weights.streamed), *pod.spec.engine.args),
        env=(*weights.env, *_env(pod)),
        ports=network_ports(pod, bootstrap=is_prefill, side_channel=False),
        pod_info=PodEngineInfo(
            port=HTTP_PORT,
            data_parallel=shape.data,
            transfer="sglang" if is_disaggregated else None,
            bootstrap_port=BOOTSTRAP_PORT if is_prefill else None,
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=pod.spec.model.engine_name,
        ),
        # /health generates a token: it takes at least a second, and twenty before it fails.
        health=HealthProbe(period=10, timeout=25, liveness_failures=6) if pod.serves_http else None,
        drain=PreStopDrain(f"http://{host}:{HTTP_PORT}/metrics", LOAD_GAUGES),
        weights=weights,
        cpu_millis=cpu,
        memory_bytes=memory + offload.memory_bytes,
        disk_bytes=offload.disk_bytes,
        needs_shared_memory=True,
        extra_volumes=offload.volumes,
        extra_mounts=offload.mounts,
    )


def _check_supported(pod: InstancePod) -> None:
    shape, offload = pod.pool.parallelism, pod.spec.kv_cache.offload
    if shape.nodes > 1 and (shape.data > 1 or (shape.tensor * shape.pipeline) % shape.nodes):
        message = "SGLang spreads tensor and pipeline ranks over nodes, but no data-parallel copies"
        hint = "use data: 1, with tensor × pipeline a multiple of nodes; several copies are several replicas"
        raise BadInput(message, field=f"spec.pools[{pod.pool.name}].parallelism", hint=hint)
    if offload is not None and offload.type is OffloadType.NATIVE and bytes_per_rank(offload.memory, shape) < _GB:
        minimum = f"{shape.ranks_per_pod}Gi"
        message = f"SGLang offloads to whole gigabytes for each of a pod's {shape.ranks_per_pod} ranks"
        raise BadInput(message, field="spec.kvCache.offload.memory", hint=f"give at least {minimum}")


def _flags(pod: InstancePod, streamed: bool) -> list[str]:
    spec, shape = pod.spec, pod.pool.parallelism
    flags = [f"--served-model-name={pod.served_name}", f"--host={pod.host}", f"--port={HTTP_PORT}"]
    flags += ["--enable-metrics", "--enable-cache-report"]
    if spec.model.revision is not None:
        flags.append(f"--revision={spec.model.revision}")
    if streamed:
        flags.append("--load-format=runai_streamer")
    sizes = (("tp", shape.tensor), ("pp", shape.pipeline), ("dp", shape.data))
    flags += [f"--{name}-size={size}" for name, size in sizes if size > 1]
    if pod.is_multi_node:
        flags += [f"--nnodes={shape.nodes}", f"--node-rank=$({NODE_INDEX_VARIABLE})"]
        flags.append(f"--dist-init-addr=$({LEADER_ADDRESS_VARIABLE}):{RENDEZVOUS_PORT}")
    if spec.kv_cache.events:
        config = {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
            "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
        }
        flags.append(f"--kv-events-config={compact_json(config)}")
    if spec.adapters is not None:
        slots, rank = spec.adapters.slots, spec.adapters.max_rank
        # One slot serves requests without an adapter. SGLang requires adapters at start unless
        # there are target modules.
        flags += ["--enable-lora", f"--max-loras-per-batch={slots + 1}", f"--max-lora-rank={rank}"]
        flags.append("--lora-target-modules=all")
    return flags + _offload_flags(pod) + _disaggregation_flags(pod)


def _offload_flags(pod: InstancePod) -> list[str]:
    offload = pod.spec.kv_cache.offload
    if offload is None:
        return []
    if offload.type is OffloadType.LMCACHE:
        return ["--enable-lmcache"]
    # --hicache-size is in GB (10^9) per rank.
    size = bytes_per_rank(offload.memory, pod.pool.parallelism) // _GB
    return ["--enable-hierarchical-cache", f"--hicache-size={size}"]


def _disaggregation_flags(pod: InstancePod) -> list[str]:
    """Returns the flags for prefill and decode engines.

    SGLang has a mode for each role; engines in role Serve cannot receive prefilled KV.
    """
    mode = _MODES.get(pod.pool.role)
    if mode is None:
        return []
    backend = "nixl"
    if pod.spec.kv_cache.transfer is Transfer.MOONCAKE:
        backend = "mooncake" if pod.accelerator.rdma_resource is not None else "mooncake_tcp"
    flags = [f"--disaggregation-mode={mode}", f"--disaggregation-transfer-backend={backend}"]
    if mode == "prefill":
        flags.append(f"--disaggregation-bootstrap-port={BOOTSTRAP_PORT}")
    return flags


def _env(pod: InstancePod) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = []
    if pod.transfers_kv or pod.is_multi_node:
        variables += [env_from_field("POD_IP", "status.podIP"), env_value("SGLANG_HOST_IP", "$(POD_IP)")]
    offload = pod.spec.kv_cache.offload
    if offload is not None and offload.type is OffloadType.LMCACHE:
        variables += lmcache_env(offload, pod.pool.parallelism)
    return variables
