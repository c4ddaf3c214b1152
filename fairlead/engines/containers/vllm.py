"""The container of vLLM: `vllm serve` with flags of 0.32. A test checks them against `--help`."""

from typing import Any, Final

from fairlead.api.spec.kv_cache import OffloadType, Transfer
from fairlead.api.spec.pools import PoolRole
from fairlead.engines.containers.base import (
    BOOTSTRAP_PORT,
    HTTP_PORT,
    KV_EVENTS_PORT,
    KV_PEERS_PORT,
    KV_REPLAY_PORT,
    LEADER_ADDRESS_VARIABLE,
    NODE_INDEX_VARIABLE,
    RENDEZVOUS_PORT,
    SIDE_CHANNEL_PORT,
    EngineContainer,
    HealthProbe,
    InstancePod,
    compact_json,
    env_from_field,
    env_value,
    host_resources,
    network_ports,
)
from fairlead.engines.containers.kv_offload import bytes_per_engine, lmcache_env, offload_volumes
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.engines.containers.weights import model_weights
from fairlead.engines.sleep_mode import DEV_MODE_VARIABLE, SLEEP_MODE_FLAG
from fairlead.fleet.labels import PodEngineInfo

LOAD_GAUGES: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_ABORT_SECONDS: Final = 30
"""Timeout of a Mooncake transfer.

Why: by default, Mooncake keeps a prefill, or waits for a dead one, for 480 s. The gateway gives up
long before.
"""


def vllm_container(pod: InstancePod) -> EngineContainer:
    """Returns one pod's container.

    Raises BadInput if the spec sets a weights cache that the model source does not use.
    """
    weights = model_weights(pod.spec.model)
    shape, cache = pod.pool.parallelism, pod.spec.kv_cache
    cpu, memory = host_resources(pod, shape.ranks_per_pod)
    offload = offload_volumes(cache.offload)
    is_mooncake_prefill = cache.transfer is Transfer.MOONCAKE and pod.pool.role is PoolRole.PREFILL
    host = f"${LEADER_ADDRESS_VARIABLE}" if not pod.serves_http else "127.0.0.1"
    return EngineContainer(
        command=("vllm", "serve"),
        args=(weights.argument, *_flags(pod, streamed=weights.streamed), *pod.spec.engine.args),
        env=(*weights.env, *_env(pod)),
        ports=network_ports(
            pod,
            bootstrap=is_mooncake_prefill,
            side_channel=cache.transfer is Transfer.NIXL,
            peers=pod.spec.peers is not None,
        ),
        pod_info=PodEngineInfo(
            port=HTTP_PORT,
            data_parallel=shape.data,
            transfer=cache.transfer.value.lower() if pod.transfers_kv else None,
            bootstrap_port=BOOTSTRAP_PORT if is_mooncake_prefill else None,
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=pod.spec.model.engine_name,
            kv_peers_port=KV_PEERS_PORT if pod.spec.peers is not None else None,
        ),
        health=HealthProbe() if pod.serves_http else None,
        drain=PreStopDrain(f"http://{host}:{HTTP_PORT}/metrics", LOAD_GAUGES),
        weights=weights,
        cpu_millis=cpu,
        memory_bytes=memory + offload.memory_bytes,
        disk_bytes=offload.disk_bytes,
        needs_shared_memory=True,
        extra_volumes=offload.volumes,
        extra_mounts=offload.mounts,
    )


def _flags(pod: InstancePod, *, streamed: bool) -> list[str]:
    spec = pod.spec
    flags: list[str] = []
    if pod.serves_http:
        flags += [f"--served-model-name={pod.served_name}", f"--host={pod.host}", f"--port={HTTP_PORT}"]
        flags += ["--enable-prompt-tokens-details"]
    if spec.model.revision is not None:
        flags.append(f"--revision={spec.model.revision}")
    if streamed:
        flags.append("--load-format=runai_streamer")
    flags += _parallelism_flags(pod)
    flags.append("--enable-prefix-caching")
    if spec.kv_cache.events:
        flags.append(f"--kv-events-config={compact_json(kv_events_config())}")
    if spec.can_sleep:
        flags.append(SLEEP_MODE_FLAG)
    if spec.adapters is not None:
        slots, rank = spec.adapters.slots, spec.adapters.max_rank
        flags += ["--enable-lora", f"--max-loras={slots}", f"--max-lora-rank={rank}"]
    if (transfer := _transfer_config(pod)) is not None:
        flags.append(f"--kv-transfer-config={compact_json(transfer)}")
    return flags


def _parallelism_flags(pod: InstancePod) -> list[str]:
    """Returns the parallelism flags.

    On several nodes, vLLM assigns the ranks itself; worker pods run no HTTP server.
    """
    shape = pod.pool.parallelism
    sizes = (("tensor", shape.tensor), ("pipeline", shape.pipeline), ("data", shape.data))
    flags = [f"--{name}-parallel-size={size}" for name, size in sizes if size > 1]
    if pod.is_multi_node:
        flags += [f"--nnodes={shape.nodes}", f"--node-rank=$({NODE_INDEX_VARIABLE})"]
        flags += [f"--master-addr=$({LEADER_ADDRESS_VARIABLE})", f"--master-port={RENDEZVOUS_PORT}"]
        flags += [] if pod.serves_http else ["--headless"]
    return flags


def kv_events_config() -> dict[str, Any]:
    """Returns the KV event settings.

    Rank r binds both ports plus r, and keeps events for replay.
    """
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
        "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
    }


def _transfer_config(pod: InstancePod) -> dict[str, Any] | None:
    """Returns the settings for moving KV to a peer, to slower memory, or both; None for neither.

    Why `recompute` everywhere: by default, a dead peer or a lost block causes a client error 500.
    """
    parts = [part for part in (_transfer_connector(pod), _offload_connector(pod)) if part is not None]
    if not parts:
        return None
    if len(parts) == 1:
        (only,) = parts
        return {**only, "kv_load_failure_policy": "recompute"}
    return {
        "kv_connector": "MultiConnector",
        "kv_role": pod.kv_role,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "connectors": [{**part, "kv_load_failure_policy": "recompute"} for part in parts]
        },
    }


def _transfer_connector(pod: InstancePod) -> dict[str, Any] | None:
    transfer = pod.spec.kv_cache.transfer
    if transfer is Transfer.NIXL:
        return {"kv_connector": "NixlConnector", "kv_role": pod.kv_role}
    if transfer is Transfer.MOONCAKE:
        protocol = "rdma" if pod.accelerator.rdma_resource is not None else "tcp"
        return {
            "kv_connector": "MooncakeConnector",
            "kv_role": pod.kv_role,
            "kv_connector_extra_config": {"mooncake_protocol": protocol},
        }
    return None


def _offload_connector(pod: InstancePod) -> dict[str, Any] | None:
    offload = pod.spec.kv_cache.offload
    if offload is None:
        return None
    if offload.type is OffloadType.LMCACHE:
        return {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    # Needed by the index to assign blocks in main memory to prompts.
    config: dict[str, Any] = {"cpu_bytes_to_use": bytes_per_engine(offload, pod.pool.parallelism)}
    if pod.spec.kv_cache.events:
        config["self_describing_kv_events"] = True
    if offload.peers is not None:
        tier = {"type": "p2p", "host": "$(POD_IP)", "port": KV_PEERS_PORT}
        config |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": config}


def _env(pod: InstancePod) -> list[dict[str, Any]]:
    spec = pod.spec
    variables = [env_value("VLLM_NO_USAGE_STATS", "1")]
    if spec.can_sleep and pod.serves_http:
        variables.append(env_value(*DEV_MODE_VARIABLE))
    if pod.transfers_kv or pod.is_multi_node or spec.peers is not None:
        # Engines guess wrongly on nodes with several networks or a name that resolves to loopback.
        variables += [env_from_field("POD_IP", "status.podIP"), env_value("VLLM_HOST_IP", "$(POD_IP)")]
    if spec.kv_cache.transfer is Transfer.NIXL:
        variables += [
            env_value("VLLM_NIXL_SIDE_CHANNEL_HOST", "$(POD_IP)"),
            env_value("VLLM_NIXL_SIDE_CHANNEL_PORT", str(SIDE_CHANNEL_PORT)),
        ]
    if spec.kv_cache.transfer is Transfer.MOONCAKE:
        variables += [
            env_value("VLLM_MOONCAKE_BOOTSTRAP_PORT", str(BOOTSTRAP_PORT)),
            env_value("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", str(_ABORT_SECONDS)),
        ]
    if spec.adapters is not None:
        variables.append(env_value("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1"))
    if spec.peers is not None:
        variables.append(env_value("PYTHONHASHSEED", "0"))  # peers must compute the same block hashes
    offload = spec.kv_cache.offload
    if offload is not None and offload.type is OffloadType.LMCACHE:
        variables += lmcache_env(offload, pod.pool.parallelism)
    return variables
