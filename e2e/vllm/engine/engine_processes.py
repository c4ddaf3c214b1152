"""Real engines and a real gateway as processes: started, inspected, stopped, frozen and ended.

An engine has several processes (server, core, worker). A killed server leaves its core behind,
which keeps ports and memory. Therefore each engine is a process group and gets signals as one. All
end with this program.

KV connectors between two engines: unchanged NIXL, and Mooncake over sockets.

Mooncake's wheel without GPU libraries goes into a folder of its own (46 MB, once). It needs the
system's ``libibverbs1``, even for sockets alone. vLLM's connector asks for the number of the
accelerator at its start, and ends without one. Nothing else in it needs an accelerator, so a vLLM
plugin answers that call with 0 (``no_accelerator.py``). Mooncake's and vLLM's own code moves the
blocks, unchanged.
"""

import ctypes.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from e2e.vllm.engine.installation import HERE, Installation
from fairlead_testing.processes import start_ready, unused_port

BLOCK_TOKENS = 32
CONTEXT_TOKENS = 4_096
START_SECONDS = 600
_POLL_SECONDS = 0.25
_SPINNING = 0.15  # of a core, while nothing is asked and others want it, too
_SPIN_CHECK_SECONDS = 3.0
_LEAST = 19
_TAKEN_SECONDS = 30.0
_STOP_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")

MOONCAKE = "mooncake-transfer-engine-non-cuda==0.3.13.post1"
ABORT_SECONDS = 20  # limit of a waiting prefill or decode in Mooncake; 480 by default
_HOST = "127.0.0.1"
_LEASE_SECONDS = 30
_PLUGIN = "no_accelerator"
_TIER = "cpu_tier"
_LIBRARY = "libibverbs1"


def fetch(url: str, *, seconds: float = 10.0) -> bytes:
    """The body of a GET. Raises OSError when there is none in time."""
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        found: bytes = answer.read()
        return found


@dataclass(slots=True)
class EngineProcess:
    """One engine: a process group that listens on ``url`` and writes to ``log``."""

    name: str
    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    started_seconds: float = 0.0

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def await_health(self, seconds: float = START_SECONDS) -> None:
        """Wait until it answers. Raises RuntimeError when it ends or takes too long, with the end
        of its log."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            if self.process.poll() is not None:
                break
            with suppress(OSError):
                fetch(f"{self.url}/health", seconds=5.0)
                self.started_seconds = round(time.monotonic() - began, 1)
                return
            time.sleep(_POLL_SECONDS)
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{self.name} is not healthy after {time.monotonic() - began:.0f} s:\n{tail}")

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's series that have all of these labels; 0 when there are none."""
        total = 0.0
        for line in fetch(f"{self.url}/metrics", seconds=60.0).decode().splitlines():
            if re.match(rf"{re.escape(name)}[{{ ]", line) and all(
                f'{key}="{one}"' in line for key, one in labels.items()
            ):
                total += float(line.rpartition(" ")[2])
        return total

    def running(self) -> float:
        return self.metric("vllm:num_requests_running") + self.metric("vllm:num_requests_waiting")

    def lower_spinning_priority(self) -> int:
        """Put threads that burn a core while nothing is asked behind everything else; how many
        there are.

        Not behind all of it with ``SCHED_IDLE``: such a thread, when it holds a lock, holds up the
        engine for half a minute.
        """
        before = _thread_ticks(self.process.pid)
        time.sleep(_SPIN_CHECK_SECONDS)
        after = _thread_ticks(self.process.pid)
        busy = [
            one for one in after if after[one] - before.get(one, after[one]) > _SPINNING * _SPIN_CHECK_SECONDS * _TICKS
        ]
        for thread in busy:
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, thread, _LEAST)
        return len(busy)


def _thread_ticks(group: int) -> dict[int, int]:
    """Processor time of every thread of a process group."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*/task/[0-9]*"):
        with suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                found[int(folder.name)] = int(fields[11]) + int(fields[12])
    return found


@dataclass(slots=True)
class EngineStage:
    """Started engines and gateways, which end with the block."""

    installed: Installation
    folder: Path
    engines: list[EngineProcess] = field(default_factory=list)
    gateways: list["GatewayProcess"] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for gateway in self.gateways:
            gateway.stop()
        for engine in self.engines:
            engine.signal(signal.SIGCONT)
            engine.kill()

    def with_model(self, name: str) -> Self:
        """Returns a stage whose engines have another model; the caller makes it."""
        other = type(self.installed)(self.folder / name)
        other.folder.mkdir()
        (other.folder / "engine").symlink_to(self.installed.folder / "engine")
        return type(self)(other, self.folder, self.engines, self.gateways)

    def engine(
        self,
        name: str,
        *options: str,
        core: int = 0,
        environment: Mapping[str, str] | None = None,
        names: Sequence[str] = ("tiny",),
        port: int | None = None,
        nice: int = 10,
    ) -> EngineProcess:
        """Start an engine on the ``core``-th processor that is ours; it is not healthy yet.
        ``names``: of its model; ``options`` win over what all engines here have in common;
        ``nice``: how far it stands behind everything else."""
        cores = sorted(os.sched_getaffinity(0))
        port = port or unused_port()
        log = self.folder / f"{name}.log"
        command = [
            str(self.installed.engine_python.with_name("vllm")),
            *("serve", str(self.installed.model), "--served-model-name", *names),
            *(
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--dtype",
                "bfloat16",
                "--enforce-eager",
                "--max-model-len",
                str(CONTEXT_TOKENS),
            ),
            *("--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", "2048"),
            *("--enable-prompt-tokens-details", "--enable-request-id-headers", "--enable-server-load-tracking"),
            *options,
        ]
        alone = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(cores[core % len(cores)]),
        }
        engine = start_engine(name, command, port, log, environment={**alone, **(environment or {})}, nice=nice)
        self.engines.append(engine)
        return engine

    def gateway(
        self, fleet: Mapping[str, Any], *options: str, environment: Mapping[str, str] | None = None
    ) -> "GatewayProcess":
        """Start a gateway process before a fleet and wait until it serves."""
        file = self.folder / f"fleet-{len(self.gateways)}.yaml"
        file.write_text(json.dumps(fleet))
        log = self.folder / f"gateway-{len(self.gateways)}.log"
        gateway = start_gateway(file, log, *options, environment=environment)
        self.gateways.append(gateway)
        return gateway


@dataclass(slots=True)
class GatewayProcess:
    """A gateway process: its public URL, its management URL, and the fleet file that it follows."""

    url: str
    manage: str
    process: "subprocess.Popen[str]"
    fleet: Path
    log: Path

    def serve(self, fleet: Mapping[str, Any]) -> None:
        """Give it another fleet, and wait until it has taken it."""
        if json.loads(self.fleet.read_text()) == fleet:
            return
        version = self._version()
        beside = self.fleet.with_suffix(".new")
        beside.write_text(json.dumps(fleet))
        beside.rename(self.fleet)
        began = time.monotonic()
        while self._version() == version:
            if time.monotonic() - began > _TAKEN_SECONDS:
                raise RuntimeError(
                    f"the gateway does not take the new fleet: {fetch(f'{self.manage}/readyz').decode()}"
                )
            time.sleep(_POLL_SECONDS)

    def decision(self, request_id: str) -> dict[str, Any]:
        """Returns the decision of a request. Raises OSError once it is forgotten."""
        found: dict[str, Any] = json.loads(fetch(f"{self.manage}/api/decisions/{request_id}"))
        return found

    def stop(self) -> None:
        stop_process(self.process)

    def _version(self) -> object:
        return json.loads(fetch(f"{self.manage}/api/fleet")).get("version")


def start_engine(
    name: str, command: Sequence[str], port: int, log: Path, *, environment: Mapping[str, str], nice: int = 0
) -> EngineProcess:
    """Starts an engine as a process group of its own; it is not healthy yet.

    port: where ``command`` makes it listen.
    environment: in addition to ours, of which variables of Python, vLLM and Fairlead are left out.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env={**_plain_environment(), **environment},
            preexec_fn=partial(_yield_processors, nice),
        )
    return EngineProcess(name, f"http://127.0.0.1:{port}", process, log)


def _yield_processors(nice: int) -> None:
    """Lets this process stand behind others by ``nice``, and its session, too.

    Why: Linux shares processors between sessions first (autogroups, ``man 7 sched``), and compares
    the niceness of processes only within one. An engine is a session of its own. Without this it
    got half of each core, and a Redis under observation answered after 0.2 to 1.2 s.
    """
    os.nice(nice)
    with suppress(OSError):  # a kernel without autogroups
        Path("/proc/self/autogroup").write_text(str(nice))


def start_gateway(
    fleet: Path, log: Path, *options: str, environment: Mapping[str, str] | None = None
) -> GatewayProcess:
    """Starts a gateway process that follows a fleet file, and waits until it serves.

    Raises RuntimeError with its log if it ends instead.
    """
    arguments = ("--fleet", str(fleet), "--listen", "127.0.0.1:0", *options)
    environ = {**os.environ, **(environment or {})}
    process, line = start_ready("fairlead_gateway", *arguments, log=log, environ=environ)
    words = line.split()
    return GatewayProcess(words[1], words[3], process, fleet, log)


def stop_process(process: "subprocess.Popen[str]") -> None:
    """Sends SIGTERM to a process that runs, and kills it when it takes too long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def fleet_of(
    model: str, engines: Sequence[tuple[EngineProcess, str]], transfer: str | None = None, *, kind: str = "vllm"
) -> dict[str, Any]:
    instances = [{"id": engine.name, "url": engine.url, "role": role, "engine": kind} for engine, role in engines]
    return {"name": model, "instances": instances} | ({"kvTransfer": transfer} if transfer else {})


def _plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FAIRLEAD_", "VLLM_"))}


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
    if ctypes.util.find_library("ibverbs") is None and os.geteuid() == 0:
        for words in (("update",), ("install", "-y", "--no-install-recommends", _LIBRARY)):
            subprocess.run(["apt-get", "-qq", *words], check=False, stdout=sys.stderr)
    if ctypes.util.find_library("ibverbs") is None:
        raise RuntimeError(f"Mooncake's wheel needs the system's libibverbs.so.1 (Debian: {_LIBRARY})")
    folder = installed.folder / MOONCAKE.replace("==", "-")
    if not folder.exists():
        making = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = [str(installed.engine_python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, "--no-deps", "--target", str(making), MOONCAKE], check=True, stdout=sys.stderr)
        making.rename(folder)
    shutil.copy(HERE / f"{_PLUGIN}.py", folder)
    beside = folder / f"{_PLUGIN}-1.dist-info"
    beside.mkdir(exist_ok=True)
    (beside / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {_PLUGIN}\nVersion: 1\n")
    (beside / "entry_points.txt").write_text(f"[vllm.general_plugins]\n{_PLUGIN} = {_PLUGIN}:answer\n")
    version = {"mooncake": MOONCAKE.partition("==")[2]}
    return KvConnector("mooncake", "MooncakeConnector", {"mooncake_protocol": "tcp"}, folder, version)
