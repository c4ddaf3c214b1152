"""What an engine's container is made from, and what it comes out as."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fairlead.api import AcceleratorClassSpec, ModelDeployment, ModelDeploymentSpec, Pool, PoolRole, Transfer
from fairlead.engine_profile import EngineProfile
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.fleet.labels import PodEngineInfo

HTTP_PORT: Final = 8000
KV_EVENTS_PORT: Final = 5500
SIDE_CHANNEL_PORT: Final = 5600
KV_REPLAY_PORT: Final = 5700
KV_PEERS_PORT: Final = 5800
"""Each data-parallel rank takes the next port, and a pool has at most 64 of them: the ranges do not meet."""
BOOTSTRAP_PORT: Final = 8998
"""Where the engines of both kinds look for a prefill engine's bootstrap server unless told otherwise."""
RENDEZVOUS_PORT: Final = 29_501
"""Where the nodes of one instance find one another."""

GIB_BYTES: Final = 2**30
LEADER_ADDRESS_VARIABLE: Final = "LWS_LEADER_ADDRESS"
NODE_INDEX_VARIABLE: Final = "LWS_WORKER_INDEX"
"""Set by LeaderWorkerSet in every container of a group; the leader's index is 0."""


class NodeRole(StrEnum):
    """Which of the pods of an instance."""

    ALONE = "alone"
    LEADER = "leader"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class InstancePod:
    """One pod of one instance. ``host`` is what it listens on, all addresses of the cluster's family."""

    model: ModelDeployment
    pool: Pool
    accelerator: AcceleratorClassSpec
    profile: EngineProfile
    node_role: NodeRole = NodeRole.ALONE
    host: str = "0.0.0.0"

    @property
    def spec(self) -> ModelDeploymentSpec:
        """The model's."""
        return self.model.spec

    @property
    def served_name(self) -> str:
        """What the engine is asked for: the gateway puts it in place of what a client wrote."""
        return self.spec.engine.served_model_name or self.model.metadata.name

    @property
    def transfers_kv(self) -> bool:
        """It gives or takes KV."""
        return self.spec.kv_cache.transfer is not Transfer.NONE

    @property
    def kv_role(self) -> str:
        """Its side of the hand-over in vLLM's words; an instance that serves alone can also take what was prefilled."""
        sides = {PoolRole.PREFILL: "kv_producer", PoolRole.DECODE: "kv_consumer", PoolRole.SERVE: "kv_both"}
        return sides[self.pool.role]

    @property
    def is_multi_node(self) -> bool:
        """It is one of several pods of an instance."""
        return self.node_role is not NodeRole.ALONE

    @property
    def serves_http(self) -> bool:
        """It has the HTTP server."""
        return self.node_role is not NodeRole.WORKER


@dataclass(frozen=True, slots=True)
class HealthProbe:
    """GET ``path`` answers 200 once the engine serves. Times in seconds.

    ``startup_period`` is short where starting is, so that an instance is not kept waiting for its first look.
    """

    path: str = "/health"
    startup_period: int = 5
    period: int = 5
    timeout: int = 5
    liveness_failures: int = 12


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """How the weights come into the container: what the engine is told to load, and what the pod needs for it."""

    argument: str
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    secret: str | None = None
    pull_secret: str | None = None
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class EngineContainer:
    """The engine's container. ``cpu_millis`` and ``memory_bytes`` are asked of the node; None asks for nothing.

    ``devices``: it needs those of the accelerator. ``shared_memory``: its processes speak through /dev/shm. ``home``: it writes
    below its home directory. ``health`` is None for a container that has no HTTP server.
    """

    command: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[dict[str, Any], ...]
    ports: Mapping[str, int]
    pod_info: PodEngineInfo
    health: HealthProbe | None
    drain: PreStopDrain | None
    weights: ModelWeights | None = None
    cpu_millis: int | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    needs_devices: bool = True
    needs_shared_memory: bool = False
    needs_home: bool = True
    read_only_root: bool = False
    extra_mounts: tuple[dict[str, Any], ...] = field(default=())
    extra_volumes: tuple[dict[str, Any], ...] = field(default=())


ContainerBuilder = Callable[[InstancePod], EngineContainer]
"""Raises BadInput, naming the field, for what an engine of its kind cannot do."""


def env_value(name: str, value: str) -> dict[str, Any]:
    """An environment variable with a text."""
    return {"name": name, "value": value}


def env_from_field(name: str, path: str) -> dict[str, Any]:
    """An environment variable with a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def network_ports(pod: InstancePod, *, bootstrap: bool, side_channel: bool, peers: bool = False) -> dict[str, int]:
    """The ports of a vLLM-like container, by name."""
    ports: dict[str, int] = {}
    if pod.serves_http:
        ports["http"] = HTTP_PORT
    if pod.spec.kv_cache.events:
        ports |= {"kv-events": KV_EVENTS_PORT, "kv-replay": KV_REPLAY_PORT}
    if side_channel:
        ports["kv-side-channel"] = SIDE_CHANNEL_PORT
    if peers:
        ports["kv-peers"] = KV_PEERS_PORT
    if bootstrap and pod.serves_http:
        ports["kv-bootstrap"] = BOOTSTRAP_PORT
    return ports


def host_resources(pod: InstancePod, devices: int) -> tuple[int, int]:
    """(CPU in thousandths, memory in bytes) that a real engine asks of its node beside its devices, offloading not counted.

    A process for the API, one for the scheduler and one a device; each device's process loads its part of the weights through
    main memory. NIXL's progress thread spins on a core of its own for as long as the engine lives.
    """
    spare = 1 if pod.spec.kv_cache.transfer is Transfer.NIXL else 0
    return 1000 * (2 + devices + spare), 4 * GIB_BYTES * (1 + devices)


def compact_json(value: dict[str, Any]) -> str:
    """As a switch of a command line takes it."""
    return json.dumps(value, separators=(",", ":"))
