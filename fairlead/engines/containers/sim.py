"""The container of the simulated engine: no accelerator, no weights, few resources."""

from typing import Final

from fairlead import units
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.spec.pools import PoolRole
from fairlead.engines.containers.base import (
    HTTP_PORT,
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    LEADER_ADDRESS_VARIABLE,
    EngineContainer,
    HealthProbe,
    InstancePod,
    env_from_field,
    network_ports,
)
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.engines.containers.vllm import LOAD_GAUGES
from fairlead.engines.sim import context_args, profile_argument
from fairlead.errors import BadInput
from fairlead.fleet.labels import PodEngineInfo

_CPU_MILLIS: Final = 50
_MEMORY_BYTES: Final = 128 * 2**20


def sim_container(pod: InstancePod) -> EngineContainer:
    """Returns one pod's container. In a multi-node instance, the first pod does all the work.

    Raises BadInput for data-parallel ranks on several nodes.

    Why: real engines publish events on each node; the simulator would publish all on the first.
    """
    if pod.is_multi_node and pod.pool.parallelism.data > 1:
        message = "data-parallel copies over several nodes are not simulated"
        raise BadInput(message, field=f"spec.pools[{pod.pool.name}].parallelism.data", hint="use data: 1 or nodes: 1")
    spec, cache = pod.spec, pod.spec.kv_cache
    is_prefill = pod.pool.role is PoolRole.PREFILL
    host = f"${LEADER_ADDRESS_VARIABLE}" if not pod.serves_http else "127.0.0.1"
    shares_kv = spec.peers is not None and pod.pool.parallelism.data == 1  # all ranks share one process and port
    has_bootstrap = is_prefill and cache.transfer is Transfer.MOONCAKE
    return EngineContainer(
        command=("python3", "-m", "fairlead_sim", "engine"),
        args=(*_flags(pod), *spec.engine.args),
        env=(env_from_field("POD_IP", "status.podIP"),) if pod.transfers_kv or spec.peers is not None else (),
        ports=network_ports(pod, bootstrap=False, side_channel=False),
        pod_info=PodEngineInfo(
            port=HTTP_PORT,
            data_parallel=pod.pool.parallelism.data,
            transfer=cache.transfer.value.lower() if pod.transfers_kv else None,
            bootstrap_port=HTTP_PORT
            if has_bootstrap
            else None,  # the simulator serves bootstrap queries on its HTTP port
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=pod.spec.model.engine_name,
            kv_peers_port=HTTP_PORT if shares_kv else None,
        ),
        health=HealthProbe(startup_period=1) if pod.serves_http else None,
        drain=PreStopDrain(f"http://{host}:{HTTP_PORT}/metrics", LOAD_GAUGES),
        cpu_millis=_CPU_MILLIS,
        memory_bytes=_MEMORY_BYTES,
        needs_devices=False,
        needs_home=False,
        read_only_root=True,
    )


def _flags(pod: InstancePod) -> list[str]:
    spec, cache = pod.spec, pod.spec.kv_cache
    host = f"[{pod.host}]" if ":" in pod.host else pod.host
    flags = [f"--listen={host}:{HTTP_PORT}", f"--model={spec.model.uri}", f"--served-model-name={pod.served_name}"]
    flags.append(f"--profile={profile_argument(pod.profile)}")
    context = context_args(pod.profile, spec.engine.args)
    flags += [f"{context[0]}={context[1]}"] if context else []
    if pod.pool.parallelism.data > 1:
        flags.append(f"--data-parallel-size={pod.pool.parallelism.data}")
    if cache.events:
        flags += [f"--kv-events=tcp://*:{KV_EVENTS_PORT}", f"--kv-replay=tcp://*:{KV_REPLAY_PORT}"]
    if spec.adapters is not None:
        flags.append(f"--max-loras={spec.adapters.slots}")
    if pod.transfers_kv:
        flags += [f"--kv-connector={cache.transfer.value.lower()}", f"--kv-role={pod.kv_role}"]
        flags += ["--kv-load-failure-policy=recompute", "--kv-host=$(POD_IP)"]
    elif spec.peers is not None:
        flags += ["--kv-connector=p2p", "--kv-load-failure-policy=recompute", "--kv-host=$(POD_IP)"]
        flags += [f"--kv-bytes-per-token={spec.peers.bytes_per_token}"]
        flags += [f"--kv-bytes-per-second={units.parse_size(spec.peers.bandwidth)}"]
    return flags
