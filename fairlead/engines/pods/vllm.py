"""vLLM in a pod: ``vllm serve`` with the switches of 0.32, each held against its own ``--help`` by a test."""

from typing import Any, Final

from fairlead.api import OffloadKind, PoolRole, Transfer
from fairlead.cluster_labels import EngineNotes
from fairlead.engines.pods.base import (
    BOOTSTRAP_PORT,
    HTTP_PORT,
    KV_EVENTS_PORT,
    KV_PEERS_PORT,
    KV_REPLAY_PORT,
    LEADER_ADDRESS,
    NODE_INDEX,
    RENDEZVOUS_PORT,
    SIDE_CHANNEL_PORT,
    EngineContainer,
    Health,
    Member,
    compact_json,
    from_pod,
    host_share,
    network_ports,
    variable,
)
from fairlead.engines.pods.drain import Drain
from fairlead.engines.pods.offload import engine_bytes, lmcache_env, space_of
from fairlead.engines.pods.sources import weights
from fairlead.engines.sleep import DEV_MODE, SLEEP_SWITCH

GAUGES: Final = ("vllm:num_requests_running", "vllm:num_requests_waiting")
_ABORT_SECONDS: Final = 30
"""Mooncake keeps a prefill, and lets a decode wait for a dead one, for 480 s by default; the gateway has given up long before."""


def vllm_container(member: Member) -> EngineContainer:
    """One pod of a vLLM instance. Raises BadInput for a source with a cache that nothing would use."""
    loaded = weights(member.spec.model)
    shape, cache = member.pool.parallelism, member.spec.kv_cache
    cpu, memory = host_share(member, shape.ranks_per_pod)
    space = space_of(cache.offload)
    prefills_mooncake = cache.transfer is Transfer.MOONCAKE and member.pool.role is PoolRole.PREFILL
    where = f"${LEADER_ADDRESS}" if not member.answers else "127.0.0.1"
    return EngineContainer(
        command=("vllm", "serve"),
        args=(loaded.argument, *_switches(member, streamed=loaded.streamed), *member.spec.engine.args),
        env=(*loaded.env, *_env(member)),
        ports=network_ports(
            member,
            bootstrap=prefills_mooncake,
            side_channel=cache.transfer is Transfer.NIXL,
            peers=member.spec.peers is not None,
        ),
        notes=EngineNotes(
            port=HTTP_PORT,
            data_parallel=shape.data,
            transfer=cache.transfer.value.lower() if member.hands_over else None,
            bootstrap_port=BOOTSTRAP_PORT if prefills_mooncake else None,
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=member.spec.engine.served_model_name,
            kv_peers_port=KV_PEERS_PORT if member.spec.peers is not None else None,
        ),
        health=Health() if member.answers else None,
        drain=Drain(f"http://{where}:{HTTP_PORT}/metrics", GAUGES),
        weights=loaded,
        cpu_millis=cpu,
        memory_bytes=memory + space.memory_bytes,
        disk_bytes=space.disk_bytes,
        shared_memory=True,
        more_volumes=space.volumes,
        more_mounts=space.mounts,
    )


def _switches(member: Member, *, streamed: bool) -> list[str]:
    spec = member.spec
    found: list[str] = []
    if member.answers:
        found += [f"--served-model-name={member.name}", f"--host={member.host}", f"--port={HTTP_PORT}"]
        found += ["--enable-prompt-tokens-details"]
    if spec.model.revision is not None:
        found.append(f"--revision={spec.model.revision}")
    if streamed:
        found.append("--load-format=runai_streamer")
    found += _parallel(member)
    found.append("--enable-prefix-caching")
    if spec.kv_cache.events:
        found.append(f"--kv-events-config={compact_json(kv_events())}")
    if spec.sleeps:
        found.append(SLEEP_SWITCH)
    if spec.adapters is not None:
        slots, rank = spec.adapters.slots, spec.adapters.max_rank
        found += ["--enable-lora", f"--max-loras={slots}", f"--max-lora-rank={rank}"]
    if (transfer := _transfer(member)) is not None:
        found.append(f"--kv-transfer-config={compact_json(transfer)}")
    return found


def _parallel(member: Member) -> list[str]:
    """Over several nodes, vLLM works out by itself which ranks are whose; workers run no HTTP server."""
    shape = member.pool.parallelism
    sizes = (("tensor", shape.tensor), ("pipeline", shape.pipeline), ("data", shape.data))
    found = [f"--{name}-parallel-size={size}" for name, size in sizes if size > 1]
    if member.spans_nodes:
        found += [f"--nnodes={shape.nodes}", f"--node-rank=$({NODE_INDEX})"]
        found += [f"--master-addr=$({LEADER_ADDRESS})", f"--master-port={RENDEZVOUS_PORT}"]
        found += [] if member.answers else ["--headless"]
    return found


def kv_events() -> dict[str, Any]:
    """Every rank binds the port of its number, and keeps what it said for those who come late."""
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
        "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
    }


def _transfer(member: Member) -> dict[str, Any] | None:
    """What moves KV: to a peer, to slower memory, or to both at once.

    ``recompute`` everywhere: with the default, a dead peer or a lost block becomes a client's error 500.
    """
    parts = [part for part in (_peer(member), _slower(member)) if part is not None]
    if not parts:
        return None
    if len(parts) == 1:
        (only,) = parts
        return {**only, "kv_load_failure_policy": "recompute"}
    return {
        "kv_connector": "MultiConnector",
        "kv_role": member.side,
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "connectors": [{**part, "kv_load_failure_policy": "recompute"} for part in parts]
        },
    }


def _peer(member: Member) -> dict[str, Any] | None:
    transfer = member.spec.kv_cache.transfer
    if transfer is Transfer.NIXL:
        return {"kv_connector": "NixlConnector", "kv_role": member.side}
    if transfer is Transfer.MOONCAKE:
        protocol = "rdma" if member.accelerator.rdma_resource is not None else "tcp"
        return {
            "kv_connector": "MooncakeConnector",
            "kv_role": member.side,
            "kv_connector_extra_config": {"mooncake_protocol": protocol},
        }
    return None


def _slower(member: Member) -> dict[str, Any] | None:
    offload = member.spec.kv_cache.offload
    if offload is None:
        return None
    if offload.kind is OffloadKind.LMCACHE:
        return {"kv_connector": "LMCacheConnectorV1", "kv_role": "kv_both"}
    # Without self_describing_kv_events the index cannot tell which prompt a block in main memory belongs to.
    config: dict[str, Any] = {"cpu_bytes_to_use": engine_bytes(offload, member.pool.parallelism)}
    if member.spec.kv_cache.events:
        config["self_describing_kv_events"] = True
    if offload.peers is not None:
        tier = {"type": "p2p", "host": "$(POD_IP)", "port": KV_PEERS_PORT}
        config |= {"spec_name": "TieringOffloadingSpec", "secondary_tiers": [tier]}
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": config}


def _env(member: Member) -> list[dict[str, Any]]:
    spec = member.spec
    found = [variable("VLLM_NO_USAGE_STATS", "1")]
    if spec.sleeps and member.answers:
        found.append(variable(*DEV_MODE))
    if member.hands_over or member.spans_nodes or spec.peers is not None:
        # On a node with several networks, or behind a name that resolves to loopback, the engine would guess wrongly.
        found += [from_pod("POD_IP", "status.podIP"), variable("VLLM_HOST_IP", "$(POD_IP)")]
    if spec.kv_cache.transfer is Transfer.NIXL:
        found += [
            variable("VLLM_NIXL_SIDE_CHANNEL_HOST", "$(POD_IP)"),
            variable("VLLM_NIXL_SIDE_CHANNEL_PORT", str(SIDE_CHANNEL_PORT)),
        ]
    if spec.kv_cache.transfer is Transfer.MOONCAKE:
        found += [
            variable("VLLM_MOONCAKE_BOOTSTRAP_PORT", str(BOOTSTRAP_PORT)),
            variable("VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT", str(_ABORT_SECONDS)),
        ]
    if spec.adapters is not None:
        found.append(variable("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1"))
    if spec.peers is not None:
        found.append(variable("PYTHONHASHSEED", "0"))  # peers name blocks by hashes that they must agree on
    offload = spec.kv_cache.offload
    if offload is not None and offload.kind is OffloadKind.LMCACHE:
        found += lmcache_env(offload, member.pool.parallelism)
    return found
