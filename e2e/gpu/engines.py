"""The engines of the GPU tests: vLLM on this machine's accelerators, or simulated ones in its
place.

Several engines may share an accelerator. Each gets a stated part of its memory, because engines
that start side by side would measure one another's memory as their own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from e2e.gpu.random_model import SHAPES, ModelShape, read_shape, write_model, write_weights
from e2e.vllm.engine.engine_processes import EngineProcess, fetch, start_engine
from fairlead_testing.ports import unused_port

MODEL: Final = "gpu-model"
MODEL_KEY: Final = f"default/{MODEL}"
BLOCK_TOKENS: Final = 16
MAX_PROMPT_TOKENS: Final = 32_768
MAX_SEQUENCES: Final = 256
FLEET_STEP_TOKENS, CURVE_STEP_TOKENS = 2_048, 8_192
"""Tokens of a step: of an engine that shares an accelerator, and of one that has it alone."""
START_SECONDS: Final = 180.0
COMPARED_SHAPE: Final = "tiny"
"""The shape whose weights are written, for comparisons of answers."""
SIMULATED_PROFILE: Final = "h100-llama8b"
_MEMORY_SHARE: Final = 0.9
_WORKSPACE_BYTES: Final = 4 * 10**9
"""Activations, graphs and the CUDA context of one engine."""
_GRAPH_SIZES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_ENVIRONMENT: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # caches can be emptied, and engines sleep
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU as its driver describes it."""

    name: str
    driver: str
    memory_bytes: int


def list_accelerators() -> list[Accelerator]:
    """Returns NVIDIA's GPUs; none where `nvidia-smi` is missing or fails."""
    found = []
    for line in _query_gpus("name,driver_version,memory.total"):
        name, driver, mebibytes = (field.strip() for field in line.split(","))
        found.append(Accelerator(name, driver, int(mebibytes) << 20))
    return found


def used_memory_bytes() -> int | None:
    """Returns the used memory of all GPUs together; None where there are none."""
    lines = _query_gpus("memory.used")
    return sum(int(line) for line in lines) << 20 if lines else None


def _query_gpus(fields: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    return []


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings that all engines of a run share.

    accelerators: none for simulated engines.
    model: folder or hub name of a real model; None: one with random weights.
    command: how vLLM is started.
    options: further options of vLLM.
    kv_bytes: of each engine's cache, where engines share an accelerator; None: computed.
    """

    accelerators: Sequence[Accelerator] = ()
    model: str | None = None
    command: Sequence[str] = ("vllm",)
    options: Sequence[str] = ()
    kv_bytes: int | None = None

    @property
    def is_simulated(self) -> bool:
        """Returns True if engines are simulated."""
        return not self.accelerators


@dataclass(slots=True)
class EngineSlot:
    """The place of one engine: its ports stay the same when it is started again."""

    number: int
    port: int = field(default_factory=unused_port)
    events: int = field(default_factory=unused_port)
    replay: int = field(default_factory=unused_port)
    starts: int = 0

    @property
    def name(self) -> str:
        """The instance's id."""
        return f"e-{self.number}"


class EngineGroup:
    """Engines of one model, which are killed at the end of the block.

    shape: of the random weights; a real model in a folder has its own.
    step_tokens: the most tokens that an engine computes in a step.
    """

    def __init__(
        self,
        settings: EngineSettings,
        folder: Path,
        *,
        count: int,
        shape: str = "1.5b",
        step_tokens: int = FLEET_STEP_TOKENS,
    ) -> None:
        self.settings = settings
        self.step_tokens = step_tokens
        given = settings.model
        self.shape: ModelShape = read_shape(Path(given)) if given and Path(given).is_dir() else SHAPES[shape]
        self.slots = [EngineSlot(number) for number in range(count)]
        self.engines: dict[int, EngineProcess] = {}
        self._folder = folder
        self._label = f"{shape}-{count}"
        self._model = settings.model
        self._draws_weights = settings.model is None and shape != COMPARED_SHAPE
        if settings.model is None and not settings.is_simulated:
            path = write_model(folder / f"model-{shape}", self.shape)
            self._model = str(path)
            if not self._draws_weights:
                write_weights(path, self.shape, seed=1)

    def __enter__(self) -> "EngineGroup":
        return self

    def __exit__(self, *_: object) -> None:
        for engine in self.engines.values():
            engine.kill()

    def start(self, number: int, *options: str, environment: dict[str, str] | None = None) -> EngineProcess:
        """Starts the engine of a place; it is not healthy yet. An engine that runs there is killed
        first.
        """
        if number in self.engines:
            self.engines[number].kill()
        slot = self.slots[number]
        slot.starts += 1
        simulated = self.settings.is_simulated
        command = self._simulated_command(slot, options) if simulated else self._vllm_command(slot, options)
        log = self._folder / f"engine-{self._label}-{number}-{slot.starts}.log"
        variables = {**_ENVIRONMENT, **self._placement(number), **(environment or {})}
        if simulated and "PYTHONPATH" in os.environ:
            variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
        engine = start_engine(slot.name, command, slot.port, log, environment=variables)
        self.engines[number] = engine
        return engine

    def start_all(self) -> float:
        """Starts every engine, waits until all are healthy; returns the seconds of the slowest."""
        for slot in self.slots:
            self.start(slot.number)
        for engine in self.engines.values():
            engine.await_health(START_SECONDS)
        return max(engine.started_seconds for engine in self.engines.values())

    def version(self) -> str:
        """Returns the release of an engine that runs, as it says itself."""
        engine = next(iter(self.engines.values()))
        return str(json.loads(fetch(f"{engine.url}/version"))["version"])

    def instances(self) -> list[dict[str, Any]]:
        """Returns the instances of a fleet file."""
        return [
            {
                "id": slot.name,
                "url": f"http://127.0.0.1:{slot.port}",
                "engine": "sim" if self.settings.is_simulated else "vllm",
                "kvEvents": f"tcp://127.0.0.1:{slot.events}",
                "kvReplay": f"tcp://127.0.0.1:{slot.replay}",
            }
            for slot in self.slots
        ]

    def _simulated_command(self, slot: EngineSlot, options: Sequence[str]) -> list[str]:
        return [
            *(sys.executable, "-m", "fairlead_sim", "engine", "--listen", f"127.0.0.1:{slot.port}"),
            *("--served-model-name", MODEL, "--profile", SIMULATED_PROFILE, "--dev-mode", "--runtime-lora"),
            *("--block-size", str(BLOCK_TOKENS), "--max-model-len", str(MAX_PROMPT_TOKENS)),
            *("--max-num-batched-tokens", str(self.step_tokens), "--max-num-seqs", str(MAX_SEQUENCES)),
            *("--kv-events", f"tcp://*:{slot.events}", "--kv-replay", f"tcp://*:{slot.replay}"),
            *("--enable-prompt-tokens-details", "--wake-seconds", "1"),
            *_simulated_options(options),
        ]

    def _vllm_command(self, slot: EngineSlot, options: Sequence[str]) -> list[str]:
        assert self._model is not None
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{slot.events}",
            "replay_endpoint": f"tcp://*:{slot.replay}",
        }
        weights = ("--load-format", "dummy") if self._draws_weights else ()
        return [
            *(*self.settings.command, "serve", self._model, "--served-model-name", MODEL),
            *("--host", "127.0.0.1", "--port", str(slot.port), "--dtype", "bfloat16", *weights),
            *("--block-size", str(BLOCK_TOKENS), "--max-model-len", str(MAX_PROMPT_TOKENS)),
            *("--max-num-batched-tokens", str(self.step_tokens), "--max-num-seqs", str(MAX_SEQUENCES)),
            *("--kv-events-config", json.dumps(events), "--prefix-caching-hash-algo", "sha256"),
            *("--enable-prompt-tokens-details", "--no-enable-log-requests"),
            *("--compilation-config", json.dumps(_quick_compilation()), *self._memory()),
            *(*self.settings.options, *options),
        ]

    def _memory(self) -> tuple[str, ...]:
        """Returns the options for an engine's part of its accelerator's memory."""
        sharing = self._engines_per_accelerator()
        share = _MEMORY_SHARE / sharing
        if sharing == 1:
            return ("--gpu-memory-utilization", str(share))
        kv_bytes = self.settings.kv_bytes
        if kv_bytes is None:
            memory = min(one.memory_bytes for one in self.settings.accelerators)
            kv_bytes = int(memory * share) - self.shape.weight_bytes - _WORKSPACE_BYTES
        # vLLM looks at the share before it starts, when its neighbours may have theirs already.
        return ("--gpu-memory-utilization", f"{share / 2:.3f}", "--kv-cache-memory-bytes", str(kv_bytes))

    def _placement(self, number: int) -> dict[str, str]:
        devices = len(self.settings.accelerators)
        return {"CUDA_VISIBLE_DEVICES": str(number % devices)} if devices > 1 else {}

    def _engines_per_accelerator(self) -> int:
        return -(-len(self.slots) // max(1, len(self.settings.accelerators)))


def _quick_compilation() -> dict[str, Any]:
    """Returns vLLM's settings for a start in seconds: no torch.compile, CUDA graphs for decoding
    alone.

    Why: with torch.compile a start takes a minute longer. Steps are a little slower without it.
    """
    return {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": _GRAPH_SIZES}


def _simulated_options(options: Sequence[str]) -> list[str]:
    """Returns the options that simulated engines have as well: those of KV transfer by NIXL."""
    if "--kv-transfer-config" not in options:
        return []
    transfer = json.loads(options[options.index("--kv-transfer-config") + 1])
    return ["--kv-connector", "nixl", "--kv-role", transfer["kv_role"]]
