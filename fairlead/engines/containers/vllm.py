"""vLLM in a pod: ``vllm serve`` with the switches of 0.32, each held against its own ``--help`` by a test."""

from typing import Any, Final

from fairlead.api import OffloadKind, PoolRole, Transfer
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
"""Mooncake keeps a prefill, and lets a decode wait for a dead one, for 480 s by default; the gateway has given up long before."""


def vllm_container(pod: InstancePod) -> EngineContainer:
    """One pod of a vLLM instance. Raises BadInput for a source with a cache that nothing would use."""
    loaded = model_weights(pod.spec.model)
    shape, cache = pod.pool.parallelism, pod.spec.kv_cache
    cpu, memory = host_resources(pod, shape.ranks_per_pod)
    space = offload_volumes(cache.offload)
    prefills_mooncake = cache.transfer is Transfer.MOONCAKE and pod.pool.role is PoolRole.PREFILL
    where = f"${LEADER_ADDRESS_VARIABLE}" if not pod.serves_http else "127.0.0.1"
    return EngineContainer(
        command=("vllm", "serve"),
        args=(loaded.argument, *_flags(pod, streamed=loaded.streamed), *pod.spec.engine.args),
        env=(*loaded.env, *_env(pod)),
        ports=network_ports(
            pod,
            bootstrap=prefills_mooncake,
            side_channel=cache.transfer is Transfer.NIXL,
            peers=pod.spec.peers is not None,
        ),
        pod_info=PodEngineInfo(
            port=HTTP_PORT,
            data_parallel=shape.data,
            transfer=cache.transfer.value.lower() if pod.transfers_kv else None,
            bootstrap_port=BOOTSTRAP_PORT if prefills_mooncake else None,
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=pod.spec.engine.served_model_name,
            kv_peers_port=KV_PEERS_PORT if pod.spec.peers is not None else None,
        ),
        health=HealthProbe() if pod.serves_http else None,
        drain=PreStopDrain(f"http://{where}:{HTTP_PORT}/metrics", LOAD_GAUGES),
        weights=loaded,
        cpu_millis=cpu,
        memory_bytes=memory + space.memory_bytes,
        disk_bytes=space.disk_bytes,
        needs_shared_memory=True,
        extra_volumes=space.volumes,
        extra_mounts=space.mounts,
    )


def _flags(pod: InstancePod, *, streamed: bool) -> list[str]:
    spec = pod.spec
    found: list[str] = []
    if pod.serves_http:
        found += [f"--served-model-name={pod.served_name}", f"--host={pod.host}", f"--port={HTTP_PORT}"]
        found += ["--enable-prompt-tokens-details"]
    if spec.model.revision is not None:
        found.append(f"--revision={spec.model.revision}")
    if streamed:
        found.append("--load-format=runai_streamer")
    found += _parallelism_flags(pod)
    found.append("--enable-prefix-caching")
    if spec.kv_cache.events:
        found.append(f"--kv-events-config={compact_json(kv_events_config())}")
    if spec.can_sleep:
        found.append(SLEEP_MODE_FLAG)
    if spec.adapters is not None:
        slots, rank = spec.adapters.slots, spec.adapters.max_rank
        found += ["--enable-lora", f"--max-loras={slots}", f"--max-lora-rank={rank}"]
    if (transfer := _transfer_config(pod)) is not None:
        found.append(f"--kv-transfer-config={compact_json(transfer)}")
    return found


def _parallelism_flags(pod: InstancePod) -> list[str]:
    """Over several nodes, vLLM works out by itself which ranks are whose; workers run no HTTP server."""
    shape = pod.pool.parallelism
    sizes = (("tensor", shape.tensor), ("pipeline", shape.pipeline), ("data", shape.data))
    found = [f"--{name}-parallel-size={size}" for name, size in sizes if size > 1]
    if pod.is_multi_node:
        found += [f"--nnodes={shape.nodes}", f"--node-rank=$({NODE_INDEX_VARIABLE})"]
        found += [f"--master-addr=$({LEADER_ADDRESS_VARIABLE})", f"--master-port={RENDEZVOUS_PORT}"]
        found += [] if pod.serves_http else ["--headless"]
    return found


def kv_events_config() -> dict[str, Any]:
    """Every rank binds the port of its number, and keeps what it said for those who come late."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
        "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
    }


def _transfer_config(pod: InstancePod) -> dict[str, Any] | None:
    """What moves KV: to a peer, to slower memory, or to both at once.

    ``recompute`` everywhere: with the default, a dead peer or a lost block becomes a client's error 500.
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
    if offload.kind is OffloadKind.LMCACHE:
        return {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    # Without self_describing_kv_events the index cannot tell which prompt a block in main memory belongs to.
    config: dict[str, Any] = {"cpu_bytes_to_use": bytes_per_engine(offload, pod.pool.parallelism)}
    if pod.spec.kv_cache.events:
        config["self_describing_kv_events"] = True
    if offload.peers is not None:
        tier = {"type": "p2p", "host": "$(POD_IP)", "port": KV_PEERS_PORT}
        config |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": config}


def _env(pod: InstancePod) -> list[dict[str, Any]]:
    spec = pod.spec
    found = [env_value("VLLM_NO_USAGE_STATS", "1")]
    if spec.can_sleep and pod.serves_http:
        found.append(env_value(*DEV_MODE_VARIABLE))
    if pod.transfers_kv or pod.is_multi_node or spec.peers is not None:
        # On a node with several networks, or behind a name that resolves to loopback, the engine would guess wrongly.
        found += [env_from_field("POD_IP", "status.podIP"), env_value("VLLM_HOST_IP", "$(POD_IP)")]
    if spec.kv_cache.transfer is Transfer.NIXL:
        found += [
            env_value("VLLM_NIXL_SIDE_CHANNEL_HOST", "$(POD_IP)"),
            env_value("VLLM_NIXL_SIDE_CHANNEL_PORT", str(SIDE_CHANNEL_PORT)),
        ]
    if spec.kv_cache.transfer is Transfer.MOONCAKE:
        found += [
            env_value("VLLM_MOONCAKE_BOOTSTRAP_PORT", str(BOOTSTRAP_PORT)),
            env_value("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", str(_ABORT_SECONDS)),
        ]
    if spec.adapters is not None:
        found.append(env_value("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1"))
    if spec.peers is not None:
        found.append(env_value("PYTHONHASHSEED", "0"))  # peers name blocks by hashes that they must agree on
    offload = spec.kv_cache.offload
    if offload is not None and offload.kind is OffloadKind.LMCACHE:
        found += lmcache_env(offload, pod.pool.parallelism)
    return found
