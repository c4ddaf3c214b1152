"""The input and output types of container builders."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.kv_cache import Transfer
from fairlead.api.spec.pools import Pool, PoolRole
from fairlead.api.v1alpha1 import ModelDeployment, ModelDeploymentSpec
from fairlead.engine_profile import EngineProfile
from fairlead.engines.containers.prestop_drain import PreStopDrain
from fairlead.fleet.labels import PodEngineInfo

HTTP_PORT: Final = 8000
KV_EVENTS_PORT: Final = 5500
SIDE_CHANNEL_PORT: Final = 5600
KV_REPLAY_PORT: Final = 5700
KV_PEERS_PORT: Final = 5800
"""The first port of peer transfers.

Each data-parallel rank uses the next port. A pool has at most 64 ranks, so the ranges are disjoint.
"""
BOOTSTRAP_PORT: Final = 8998
"""The default port of a prefill engine's bootstrap server, in vLLM and SGLang."""
RENDEZVOUS_PORT: Final = 29_501
"""The port where the nodes of one instance find each other."""

GIB_BYTES: Final = 2**30
LEADER_ADDRESS_VARIABLE: Final = "LWS_LEADER_ADDRESS"
NODE_INDEX_VARIABLE: Final = "LWS_WORKER_INDEX"
"""Set by LeaderWorkerSet in every container of a group. The leader has index 0."""


class NodeRole(StrEnum):
    """The role of a pod within its instance."""

    ALONE = "alone"
    LEADER = "leader"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class InstancePod:
    """A pod of an instance.

    host: the address to listen on: all addresses of the cluster's IP family.
    """

    model: ModelDeployment
    pool: Pool
    accelerator: AcceleratorClassSpec
    profile: EngineProfile
    node_role: NodeRole = NodeRole.ALONE
    host: str = "0.0.0.0"

    @property
    def spec(self) -> ModelDeploymentSpec:
        return self.model.spec

    @property
    def served_name(self) -> str:
        return self.spec.model.engine_name or self.model.metadata.name

    @property
    def transfers_kv(self) -> bool:
        """True if the pod sends or receives KV."""
        return self.spec.kv_cache.transfer is not Transfer.NONE

    @property
    def kv_role(self) -> str:
        sides = {PoolRole.PREFILL: "kv_producer", PoolRole.DECODE: "kv_consumer", PoolRole.SERVE: "kv_both"}
        return sides[self.pool.role]

    @property
    def is_multi_node(self) -> bool:
        """True if the instance has several pods."""
        return self.node_role is not NodeRole.ALONE

    @property
    def serves_http(self) -> bool:
        """True if the pod runs the HTTP server."""
        return self.node_role is not NodeRole.WORKER


@dataclass(frozen=True, slots=True)
class HealthProbe:
    """An HTTP health probe: GET `path` returns 200 once the engine serves. Times are in seconds.

    startup_period: interval of the probes until the first success; short for fast starts.
    liveness_failures: consecutive failures after which the container is restarted.
    """

    path: str = "/health"
    startup_period: int = 5
    period: int = 5
    timeout: int = 5
    liveness_failures: int = 12


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """The model argument for the engine, and what the pod needs to provide the weights."""

    argument: str
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()
    env: tuple[dict[str, Any], ...] = ()
    secret: str | None = None
    pull_secret: str | None = None
    streamed: bool = False


@dataclass(frozen=True, slots=True)
class EngineContainer:
    """An engine container.

    cpu_millis, memory_bytes, disk_bytes: resource requests; None requests nothing.
    health: None for a container without HTTP server.
    needs_devices: it needs the accelerator's devices.
    needs_shared_memory: its processes communicate through /dev/shm.
    needs_home: it writes below its home directory.
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
"""Builds a container. Raises BadInput, naming the field, for features that the engine lacks."""


def env_value(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value}


def env_from_field(name: str, path: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def network_ports(pod: InstancePod, *, bootstrap: bool, side_channel: bool, peers: bool = False) -> dict[str, int]:
    """Returns the ports of a vLLM-like container, by name."""
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
    """Returns a real engine's CPU (thousandths of a core) and memory (bytes), without KV offload.

    Why: there is one process for the API, one for the scheduler and one per device. Each device's
    process loads its part of the weights through main memory. NIXL's progress thread always uses a
    full core.
    """
    spare = 1 if pod.spec.kv_cache.transfer is Transfer.NIXL else 0
    return 1000 * (2 + devices + spare), 4 * GIB_BYTES * (1 + devices)


def compact_json(value: dict[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))
