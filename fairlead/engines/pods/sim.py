"""The simulated engine in a pod: no accelerator, no weights, little of everything."""

from typing import Final

from fairlead import units
from fairlead.api import PoolRole, Transfer
from fairlead.cluster_labels import EngineNotes
from fairlead.engines.pods.base import (
    HTTP_PORT,
    KV_EVENTS_PORT,
    KV_REPLAY_PORT,
    LEADER_ADDRESS,
    EngineContainer,
    Health,
    Member,
    from_pod,
    network_ports,
)
from fairlead.engines.pods.drain import Drain
from fairlead.engines.pods.vllm import GAUGES
from fairlead.engines.sim import context, profile_argument
from fairlead.errors import BadInput

_CPU_MILLIS: Final = 50
_MEMORY_BYTES: Final = 128 * 2**20


def sim_container(member: Member) -> EngineContainer:
    """One pod of a simulated instance. The first of several nodes does it all; the others are engines that nobody asks.

    Raises BadInput for data-parallel copies over several nodes: those of real engines publish on each node.
    """
    if member.spans_nodes and member.pool.parallelism.data > 1:
        message = "data-parallel copies over several nodes are not simulated"
        raise BadInput(
            message, field=f"spec.pools[{member.pool.name}].parallelism.data", hint="use data: 1 or nodes: 1"
        )
    spec, cache = member.spec, member.spec.kv_cache
    prefills = member.pool.role is PoolRole.PREFILL
    where = f"${LEADER_ADDRESS}" if not member.answers else "127.0.0.1"
    lends = spec.peers is not None and member.pool.parallelism.data == 1  # all ranks are one process with one port
    meets = prefills and cache.transfer is Transfer.MOONCAKE
    return EngineContainer(
        command=("python3", "-m", "fairlead_sim", "engine"),
        args=(*_switches(member), *spec.engine.args),
        env=(from_pod("POD_IP", "status.podIP"),) if member.hands_over or spec.peers is not None else (),
        ports=network_ports(member, bootstrap=False, side_channel=False),
        notes=EngineNotes(
            port=HTTP_PORT,
            data_parallel=member.pool.parallelism.data,
            transfer=cache.transfer.value.lower() if member.hands_over else None,
            bootstrap_port=HTTP_PORT if meets else None,  # it answers for that on its own port
            kv_events_port=KV_EVENTS_PORT if cache.events else None,
            kv_replay_port=KV_REPLAY_PORT if cache.events else None,
            served_name=member.spec.engine.served_model_name,
            kv_peers_port=HTTP_PORT if lends else None,
        ),
        health=Health(startup_period=1) if member.answers else None,
        drain=Drain(f"http://{where}:{HTTP_PORT}/metrics", GAUGES),
        cpu_millis=_CPU_MILLIS,
        memory_bytes=_MEMORY_BYTES,
        devices=False,
        home=False,
        read_only_root=True,
    )


def _switches(member: Member) -> list[str]:
    spec, cache = member.spec, member.spec.kv_cache
    host = f"[{member.host}]" if ":" in member.host else member.host
    found = [f"--listen={host}:{HTTP_PORT}", f"--model={spec.model.source}", f"--served-model-name={member.name}"]
    found.append(f"--profile={profile_argument(member.profile)}")
    told = context(member.profile, spec.engine.args)
    found += [f"{told[0]}={told[1]}"] if told else []
    if member.pool.parallelism.data > 1:
        found.append(f"--data-parallel-size={member.pool.parallelism.data}")
    if cache.events:
        found += [f"--kv-events=tcp://*:{KV_EVENTS_PORT}", f"--kv-replay=tcp://*:{KV_REPLAY_PORT}"]
    if spec.adapters is not None:
        found.append(f"--max-loras={spec.adapters.slots}")
    if member.hands_over:
        found += [f"--kv-connector={cache.transfer.value.lower()}", f"--kv-role={member.side}"]
        found += ["--kv-load-failure-policy=recompute", "--kv-host=$(POD_IP)"]
    elif spec.peers is not None:
        found += ["--kv-connector=p2p", "--kv-load-failure-policy=recompute", "--kv-host=$(POD_IP)"]
        found += [f"--kv-bytes-per-token={spec.peers.bytes_per_token}"]
        found += [f"--kv-bytes-per-second={units.size_bytes(spec.peers.bandwidth)}"]
    return found
