"""KV offload: the memory of each engine process, and LMCache's environment variables."""

from dataclasses import dataclass
from typing import Any, Final

from fairlead import units
from fairlead.api.spec.kv_cache import Offload
from fairlead.api.spec.pools import Parallelism
from fairlead.engines.containers.base import env_value

LMCACHE_FOLDER: Final = "/var/lib/fairlead/lmcache"
_VOLUME: Final = "lmcache"
_GIB: Final = 2**30


def bytes_per_engine(offload: Offload, shape: Parallelism) -> int:
    """Returns the bytes of main memory for offloaded KV of one data-parallel rank.

    The memory of the pods of an instance adds up, and its data-parallel ranks share the sum.
    """
    return units.parse_size(offload.memory) * shape.nodes // shape.data


def bytes_per_rank(size: str, shape: Parallelism) -> int:
    """Returns the bytes that the process of one device gets of `size`, a pod's memory or disk."""
    return units.parse_size(size) // shape.ranks_per_pod


def lmcache_env(offload: Offload, shape: Parallelism) -> tuple[dict[str, Any], ...]:
    """Returns LMCache's environment variables.

    LMCache counts in GiB per worker process, whatever its documentation calls them.

    Source: `local_cpu_backend.py` and `local_disk_backend.py` of LMCache (`* 1024**3`).
    """
    env = [
        env_value("PYTHONHASHSEED", "0"),  # scheduler and workers must compute the same hashes
        env_value("LMCACHE_LOCAL_CPU", "True"),
        env_value("LMCACHE_MAX_LOCAL_CPU_SIZE", _format_gib(bytes_per_rank(offload.memory, shape))),
    ]
    if offload.disk is not None:
        env += [
            env_value("LMCACHE_LOCAL_DISK", f"file://{LMCACHE_FOLDER}/"),
            env_value("LMCACHE_MAX_LOCAL_DISK_SIZE", _format_gib(bytes_per_rank(offload.disk, shape))),
        ]
    if offload.store is not None:
        env += [env_value("LMCACHE_REMOTE_URL", offload.store), env_value("LMCACHE_REMOTE_SERDE", "naive")]
    return tuple(env)


def _format_gib(size: int) -> str:
    return f"{size * 100 // _GIB / 100:.2f}"  # rounded down: the pod has no more


@dataclass(frozen=True, slots=True)
class OffloadVolumes:
    """Resources of a pod for offloaded KV. `disk_bytes` is None without a disk."""

    memory_bytes: int = 0
    disk_bytes: int | None = None
    volumes: tuple[dict[str, Any], ...] = ()
    mounts: tuple[dict[str, Any], ...] = ()


def offload_volumes(offload: Offload | None) -> OffloadVolumes:
    """Returns a pod's main memory for offloaded KV, and the scratch disk mounted for LMCache.

    Both are empty without offload.
    """
    if offload is None:
        return OffloadVolumes()
    memory = units.parse_size(offload.memory)
    if offload.disk is None:
        return OffloadVolumes(memory)
    volume = {"name": _VOLUME, "emptyDir": {"sizeLimit": offload.disk}}
    mount = {"name": _VOLUME, "mountPath": LMCACHE_FOLDER}
    return OffloadVolumes(memory, units.parse_size(offload.disk), (volume,), (mount,))
