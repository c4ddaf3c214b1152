"""KV that leaves the accelerator: the share of each engine process, and LMCache, which is told by environment variables."""

from dataclasses import dataclass
from typing import Any, Final

from fairlead import units
from fairlead.api import Offload, Parallelism
from fairlead.engines.pods.base import variable

LMCACHE_FOLDER: Final = "/var/lib/fairlead/lmcache"
_VOLUME: Final = "lmcache"
_GB: Final = 10**9


def engine_bytes(offload: Offload, shape: Parallelism) -> int:
    """Main memory of one engine core: all pods of an instance give theirs, and its data-parallel ranks share it."""
    return units.size_bytes(offload.memory) * shape.nodes // shape.data


def rank_bytes(size: str, shape: Parallelism) -> int:
    """What one device's process gets of a pod's memory or disk."""
    return units.size_bytes(size) // shape.ranks_per_pod


def lmcache_env(offload: Offload, shape: Parallelism) -> tuple[dict[str, Any], ...]:
    """LMCache counts in GB (10^9) and for each worker process."""
    env = [
        variable("PYTHONHASHSEED", "0"),  # its keys are hashes that scheduler and workers must agree on
        variable("LMCACHE_LOCAL_CPU", "True"),
        variable("LMCACHE_MAX_LOCAL_CPU_SIZE", f"{rank_bytes(offload.memory, shape) / _GB:.2f}"),
    ]
    if offload.disk is not None:
        env += [
            variable("LMCACHE_LOCAL_DISK", f"file://{LMCACHE_FOLDER}/"),
            variable("LMCACHE_MAX_LOCAL_DISK_SIZE", f"{rank_bytes(offload.disk, shape) / _GB:.2f}"),
        ]
    if offload.store is not None:
        env += [variable("LMCACHE_REMOTE_URL", offload.store), variable("LMCACHE_REMOTE_SERDE", "naive")]
    return tuple(env)


@dataclass(frozen=True, slots=True)
class Space:
    """What offloaded KV takes of a node, for one pod. ``disk_bytes`` None: no disk."""

    memory_bytes: int = 0
    disk_bytes: int | None = None
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()


def space_of(offload: Offload | None) -> Space:
    """Main memory, and scratch space of the node, mounted where LMCache finds it; nothing without offload."""
    if offload is None:
        return Space()
    memory = units.size_bytes(offload.memory)
    if offload.disk is None:
        return Space(memory)
    volume = {"name": _VOLUME, "emptyDir": {"sizeLimit": offload.disk}}
    mount = {"name": _VOLUME, "mountPath": LMCACHE_FOLDER}
    return Space(memory, units.size_bytes(offload.disk), (volume,), (mount,))
