"""SGLang in a pod: ``python3 -m sglang.launch_server`` with the switches of 0.5.23, each held against its argument parser."""

from typing import Any, Final

from fairlead.api import OffloadKind, PoolRole, Transfer
from fairlead.cluster_labels import EngineNotes
from fairlead.engines.pods.base import (
    BOOTSTRAP_PORT,
    HTTP_PORT,
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    LEADER_ADDRESS,
    NODE_INDEX,
    RENDEZVOUS_PORT,
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
from fairlead.engines.pods.offload import lmcache_env, rank_bytes, space_of
from fairlead.engines.pods.sources import weights
from fairlead.errors import BadInput

GAUGES: Final = ("sglang:num_running_reqs", "sglang:num_queue_reqs")
_MODES: Final = {PoolRole.PREFILL: "prefill", PoolRole.DECODE: "decode"}
_GB: Final = 10**9


def sglang_container(member: Member) -> EngineContainer:
    """One pod of an SGLang instance. Raises BadInput for what SGLang cannot do."""
    _refuse(member)
    loaded = weights(member.spec.model)
    shape, cache = member.pool.parallelism, member.spec.kv_cache
    cpu, memory = host_share(member, shape.ranks_per_pod)
    space = space_of(cache.offload)
    split = member.pool.role in _MODES
    prefills = member.pool.role is PoolRole.PREFILL
    where = f"${LEADER_ADDRESS}" if not member.answers else "127.0.0.1"
    return EngineContainer(
        command=("python3", "-m", "sglang.launch_server"),
        args=(f"--model-path={loaded.argument}", *_switches(member, loaded.streamed), *member.spec.engine.args),
        env=(*loaded.env, *_env(member)),
        ports=network_ports(member, bootstrap=prefills, side_channel=False),
        notes=EngineNotes(
            port=HTTP_PORT,
            data_parallel=shape.data,
            transfer="sglang" if split else None,
            bootstrap_port=BOOTSTRAP_PORT if prefills else None,
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=member.spec.engine.served_model_name,
        ),
        # Its /health generates a token and takes a second at least, twenty before it says no.
        health=Health(period=10, timeout=25, liveness_failures=6) if member.answers else None,
        drain=Drain(f"http://{where}:{HTTP_PORT}/metrics", GAUGES),
        weights=loaded,
        cpu_millis=cpu,
        memory_bytes=memory + space.memory_bytes,
        disk_bytes=space.disk_bytes,
        shared_memory=True,
        more_volumes=space.volumes,
        more_mounts=space.mounts,
    )


def _refuse(member: Member) -> None:
    shape, offload = member.pool.parallelism, member.spec.kv_cache.offload
    if shape.nodes > 1 and (shape.data > 1 or (shape.tensor * shape.pipeline) % shape.nodes):
        message = "SGLang spreads tensor and pipeline ranks over nodes, but no data-parallel copies"
        hint = "use data: 1, with tensor × pipeline a multiple of nodes; several copies are several replicas"
        raise BadInput(message, field=f"spec.pools[{member.pool.name}].parallelism", hint=hint)
    if offload is not None and offload.kind is OffloadKind.NATIVE and rank_bytes(offload.memory, shape) < _GB:
        least = f"{shape.ranks_per_pod}Gi"
        message = f"SGLang offloads to whole gigabytes for each of a pod's {shape.ranks_per_pod} ranks"
        raise BadInput(message, field="spec.kvCache.offload.memory", hint=f"give at least {least}")


def _switches(member: Member, streamed: bool) -> list[str]:
    spec, shape = member.spec, member.pool.parallelism
    found = [f"--served-model-name={member.name}", f"--host={member.host}", f"--port={HTTP_PORT}"]
    found += ["--enable-metrics", "--enable-cache-report"]
    if spec.model.revision is not None:
        found.append(f"--revision={spec.model.revision}")
    if streamed:
        found.append("--load-format=runai_streamer")
    sizes = (("tp", shape.tensor), ("pp", shape.pipeline), ("dp", shape.data))
    found += [f"--{name}-size={size}" for name, size in sizes if size > 1]
    if member.spans_nodes:
        found += [f"--nnodes={shape.nodes}", f"--node-rank=$({NODE_INDEX})"]
        found.append(f"--dist-init-addr=$({LEADER_ADDRESS}):{RENDEZVOUS_PORT}")
    if spec.kv_cache.events:
        config = {
            "publisher": "zmq",
            "endpoint": f"tcp://*:{KV_EVENTS_PORT}",
            "replay_endpoint": f"tcp://*:{KV_REPLAY_PORT}",
        }
        found.append(f"--kv-events-config={compact_json(config)}")
    if spec.adapters is not None:
        slots, rank = spec.adapters.slots, spec.adapters.max_rank
        # One of its places in a batch is for requests without an adapter. Without target modules it wants adapters at start.
        found += ["--enable-lora", f"--max-loras-per-batch={slots + 1}", f"--max-lora-rank={rank}"]
        found.append("--lora-target-modules=all")
    return found + _offload(member) + _hand_over(member)


def _offload(member: Member) -> list[str]:
    offload = member.spec.kv_cache.offload
    if offload is None:
        return []
    if offload.kind is OffloadKind.LMCACHE:
        return ["--enable-lmcache"]
    # --hicache-size counts in GB (10^9) and for each rank.
    size = rank_bytes(offload.memory, member.pool.parallelism) // _GB
    return ["--enable-hierarchical-cache", f"--hicache-size={size}"]


def _hand_over(member: Member) -> list[str]:
    """Engines that serve alone cannot take what another prefilled: SGLang has a mode for each."""
    mode = _MODES.get(member.pool.role)
    if mode is None:
        return []
    backend = "nixl"
    if member.spec.kv_cache.transfer is Transfer.MOONCAKE:
        backend = "mooncake" if member.accelerator.rdma_resource is not None else "mooncake_tcp"
    found = [f"--disaggregation-mode={mode}", f"--disaggregation-transfer-backend={backend}"]
    if mode == "prefill":
        found.append(f"--disaggregation-bootstrap-port={BOOTSTRAP_PORT}")
    return found


def _env(member: Member) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if member.hands_over or member.spans_nodes:
        found += [from_pod("POD_IP", "status.podIP"), variable("SGLANG_HOST_IP", "$(POD_IP)")]
    offload = member.spec.kv_cache.offload
    if offload is not None and offload.kind is OffloadKind.LMCACHE:
        found += lmcache_env(offload, member.pool.parallelism)
    return found
