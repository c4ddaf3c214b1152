"""KV connectors between two engines: unchanged NIXL, and Mooncake over sockets.

Mooncake's wheel without GPU libraries goes into a folder of its own (46 MB, once). It needs the
system's ``libibverbs1``, even for sockets alone. vLLM's connector asks for the number of the
accelerator at its start, and ends without one. Nothing else in it needs an accelerator, so a vLLM
plugin answers that call with 0 (``no_accelerator.py``). Mooncake's and vLLM's own code moves the
blocks, unchanged.
"""

import ctypes.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.vllm.engine.installation import HERE, Installation
from fairlead_testing.ports import unused_port

MOONCAKE = "mooncake-transfer-engine-non-cuda==0.3.13.post1"
ABORT_SECONDS = 20  # limit of a waiting prefill or decode in Mooncake; 480 by default
_HOST = "127.0.0.1"
_LEASE_SECONDS = 30
_PLUGIN = "no_accelerator"
_TIER = "cpu_tier"
_LIBRARY = "libibverbs1"


@dataclass(frozen=True, slots=True)
class KvConnector:
    """A connector. ``transfer`` is the gateway's word for it, ``kind`` vLLM's; ``path`` holds
    modules for the engine's processes."""

    transfer: str
    kind: str
    extra: Mapping[str, Any]
    path: Path | None = None
    numbers: Mapping[str, str] = field(default_factory=dict)

    def engine_arguments(self, role: str) -> str:
        """The engine's ``--kv-transfer-config``."""
        told = {
            "kv_connector": self.kind,
            "kv_role": role,
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": self.extra,
        }
        return json.dumps(told)

    def environment(self) -> tuple[dict[str, str], str | None]:
        """One engine's environment, with a port of its own, and the URL where a gateway asks for
        the engine's id."""
        port = unused_port()
        if self.path is None:
            host = {"VLLM_NIXL_SIDE_CHANNEL_HOST": _HOST, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
            return {"UCX_TLS": "tcp", **host}, None
        found = {
            "PYTHONPATH": str(self.path),
            "VLLM_HOST_IP": _HOST,
            "VLLM_MOONCAKE_BOOTSTRAP_PORT": str(port),
            "VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT": str(ABORT_SECONDS),
        }
        return found, f"http://{_HOST}:{port}"


def nixl() -> KvConnector:
    """Came with the engine."""
    return KvConnector("nixl", "NixlConnector", {"num_threads": 0, "kv_lease_duration": _LEASE_SECONDS})


def cpu_tier(folder: Path, size: int) -> KvConnector:
    """Returns a tier of so many bytes in each engine's memory.

    folder: gets the modules that its processes load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / f"{_TIER}.py", folder)
    extra = {"spec_name": "CopyingSpec", "spec_module_path": _TIER, "cpu_bytes_to_use": size}
    return KvConnector("", "OffloadingConnector", {**extra, "self_describing_kv_events": True}, folder)


def mooncake(installed: Installation) -> KvConnector:
    """Installed when it is not there yet, as root with the system's library.

    Raises RuntimeError where that library is missing.
    """
    _install_library()
    folder = installed.folder / MOONCAKE.replace("==", "-")
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [str(installed.engine_python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, "--no-deps", "--target", str(making), MOONCAKE], check=True, stdout=sys.stderr)
        making.rename(folder)
    _put_plugin(folder)
    version = {"mooncake": MOONCAKE.partition("==")[2]}
    return KvConnector("mooncake", "MooncakeConnector", {"mooncake_protocol": "tcp"}, folder, version)


def _install_library() -> None:
    """Installs Debian's ``libibverbs1`` where it is missing."""
    if ctypes.util.find_library("ibverbs") is None and os.geteuid() == 0:
        for words in (("update",), ("install", "-y", "--no-install-recommends", _LIBRARY)):
            subprocess.run(["apt-get", "-qq", *words], check=False, stdout=sys.stderr)
    if ctypes.util.find_library("ibverbs") is None:
        raise RuntimeError(f"Mooncake's wheel needs the system's libibverbs.so.1 (Debian: {_LIBRARY})")


def _put_plugin(folder: Path) -> None:
    """Writes plugin metadata, which vLLM looks for on the path."""
    shutil.copy(HERE / f"{_PLUGIN}.py", folder)
    beside = folder / f"{_PLUGIN}-1.dist-info"
    beside.mkdir(exist_ok=True)
    (beside / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PLUGIN}\nVersion: 1\n")
    (beside / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{_PLUGIN} = {_PLUGIN}:answer\n")
