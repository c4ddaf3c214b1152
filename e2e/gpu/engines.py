"""The engines of the GPU tests: vLLM on this machine's accelerators, or simulated ones in its
place.

Several engines may share an accelerator. Each gets a stated part of its memory, because engines
that start side by side would measure one another's memory as their own.

A Llama-shaped model with random weights, and LoRA adapters for it, without a download.

vLLM draws the weights of large shapes itself (`--load-format dummy`), so a model is three JSON
files. These weights are so small that many tokens are equally likely. Where answers are compared,
weights are written, and they are wide. The vocabulary is that of simulated engines: a word of a
replayed prompt (a space and three letters) is one token on both sides.
"""

import json
import os
import struct
import subprocess
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from random import Random
from typing import Any, Final

from e2e.vllm.engine.engine_processes import EngineProcess, fetch, start_engine
from fairlead_sim.engine.tokenizer import CONTROL_TOKENS, Tokenizer
from fairlead_testing.processes import unused_port

CONTEXT_TOKENS: Final = 131_072
ADAPTER_RANK: Final = 8
_ADAPTER_SPREAD: Final = 4.0
"""Why: vLLM draws weights so small that an answer depends on the last token alone. An adapter of
0.2 changes none.
"""
_WEIGHT_EXPONENT: Final = 124
"""Exponent of the written weights in bfloat16: their absolute values are from 0.125 to 0.25."""
_BFLOAT16_ONE: Final = b"\x80\x3f"
_CHAT_TEMPLATE: Final = (
    "<|begin|>{% for message in messages %}<|{{ message.role }}|>{{ '\\n' }}{{ message.content or '' }}"
    "{% if not (loop.last and continue_final_message) %}<|end|>{{ '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{{ '\\n' }}{% endif %}"
)
"""The template of simulated engines."""

MODEL: Final = "gpu-model"
MODEL_KEY: Final = f"default/{MODEL}"
BLOCK_TOKENS: Final = 16
MAX_PROMPT_TOKENS: Final = 32_768
MAX_SEQUENCES: Final = 256

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
class ModelShape:
    """The sizes of a Llama-shaped model in bfloat16."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    inner_width: int
    vocabulary: int
    ties_embeddings: bool = True

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        layer = attention + 3 * self.width * self.inner_width
        tables = self.width * self.vocabulary * (1 if self.ties_embeddings else 2)
        return 2 * (self.layers * layer + tables)

    @property
    def kv_bytes(self) -> int:
        return 2 * 2 * self.layers * self.kv_heads * self.head_width


SHAPES: Final = {
    "tiny": ModelShape(2, 512, 8, 4, 1_024, 36_820, ties_embeddings=False),
    "1.5b": ModelShape(28, 1_536, 12, 2, 8_960, 36_820),
    "8b": ModelShape(32, 4_096, 32, 8, 14_336, 128_256, ties_embeddings=False),
}
"""Shapes by name. tiny is for comparisons of answers. 1.5b has the sizes of Qwen2.5-1.5B with a
smaller vocabulary, and 8b those of Llama 3.1 8B.
"""


def write_model(folder: Path, shape: ModelShape) -> Path:
    """Writes configuration and tokenizer into a folder, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "tokenizer.json", _tokenizer())
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT_TOKENS}
    _write_json(
        folder / "tokenizer_config.json",
        {**settings, **special, "chat_template": _CHAT_TEMPLATE, "clean_up_tokenization_spaces": False},
    )
    return folder


def read_shape(folder: Path) -> ModelShape:
    """Returns the sizes of a model with the configuration of a Llama. Raises KeyError if one is
    missing.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return ModelShape(
        config["num_hidden_layers"],
        config["hidden_size"],
        config["num_attention_heads"],
        config.get("num_key_value_heads", config["num_attention_heads"]),
        config["intermediate_size"],
        config["vocab_size"],
        config.get("tie_word_embeddings", False),
    )


def write_weights(folder: Path, shape: ModelShape, seed: int) -> None:
    """Writes random weights into a model's folder: answers then depend on every token of a
    prompt.
    """
    draw = Random(seed)
    low = bytes((_WEIGHT_EXPONENT & 1) << 7 | value & 0x7F for value in range(256))
    high = bytes((value & 1) << 7 | _WEIGHT_EXPONENT >> 1 for value in range(256))

    def tensor(name: str, size: Sequence[int]) -> bytes:
        count = prod(size)
        if name.endswith("norm.weight"):
            return _BFLOAT16_ONE * count
        values = bytearray(2 * count)
        values[::2], values[1::2] = draw.randbytes(count).translate(low), draw.randbytes(count).translate(high)
        return bytes(values)

    _write_safetensors(
        folder / "model.safetensors", "BF16", ((name, size, tensor(name, size)) for name, size in _weight_sizes(shape))
    )


def write_adapter(folder: Path, shape: ModelShape, seed: int) -> Path:
    """Writes a LoRA adapter of queries and values, wide enough to change answers, and returns its
    folder.
    """
    draw = Random(seed)
    outputs = {"q_proj": shape.width, "v_proj": shape.head_width * shape.kv_heads}

    def tensors() -> Iterator[tuple[str, Sequence[int], bytes]]:
        for layer in range(shape.layers):
            for name, output in outputs.items():
                for part, size in (("A", (ADAPTER_RANK, shape.width)), ("B", (output, ADAPTER_RANK))):
                    values = array("f", (draw.uniform(-_ADAPTER_SPREAD, _ADAPTER_SPREAD) for _ in range(prod(size))))
                    key = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_{part}.weight"
                    yield key, size, values.tobytes()

    folder.mkdir(parents=True, exist_ok=True)
    _write_safetensors(folder / "adapter_model.safetensors", "F32", tensors())
    _write_json(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "r": ADAPTER_RANK,
            "lora_alpha": 2 * ADAPTER_RANK,
            "target_modules": sorted(outputs),
            "bias": "none",
            "task_type": "CAUSAL_LM",
        },
    )
    return folder


def _weight_sizes(shape: ModelShape) -> Iterator[tuple[str, Sequence[int]]]:
    """Yields the names and sizes of a Llama's tensors, with an output table of its own."""
    heads, kv_heads = shape.head_width * shape.heads, shape.head_width * shape.kv_heads
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (shape.width,)
        yield f"{prefix}.post_attention_layernorm.weight", (shape.width,)
        yield f"{prefix}.self_attn.q_proj.weight", (heads, shape.width)
        yield f"{prefix}.self_attn.k_proj.weight", (kv_heads, shape.width)
        yield f"{prefix}.self_attn.v_proj.weight", (kv_heads, shape.width)
        yield f"{prefix}.self_attn.o_proj.weight", (shape.width, heads)
        yield f"{prefix}.mlp.gate_proj.weight", (shape.inner_width, shape.width)
        yield f"{prefix}.mlp.up_proj.weight", (shape.inner_width, shape.width)
        yield f"{prefix}.mlp.down_proj.weight", (shape.width, shape.inner_width)
    yield "model.norm.weight", (shape.width,)
    yield "lm_head.weight", (shape.vocabulary, shape.width)


def _write_safetensors(path: Path, data_type: str, tensors: Iterable[tuple[str, Sequence[int], bytes]]) -> None:
    """Writes tensors of one type. Source: the safetensors format, an 8-byte length, a JSON header
    and the data.
    """
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name, size, data in tensors:
        header[name] = {"dtype": data_type, "shape": size, "data_offsets": [end, end + len(data)]}
        parts.append(data)
        end += len(data)
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.writelines([struct.pack("<Q", len(head)), head, *parts])


def _config(shape: ModelShape) -> dict[str, Any]:
    """Returns the configuration that transformers calls LlamaConfig."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.width,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.inner_width,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": shape.ties_embeddings,
        "bos_token_id": Tokenizer.bos,
        "eos_token_id": Tokenizer.eos,
        "pad_token_id": Tokenizer.pad,
        "initializer_range": 0.02,
    }


def _tokenizer() -> dict[str, Any]:
    """Returns the simulated engines' vocabulary as a file of the tokenizers library."""
    simulated = Tokenizer()
    vocabulary = {simulated.printable_piece(token): token for token in range(simulated.vocab_size)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": " ?[a-z]{1,3}"}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": text, **flags} for number, text in enumerate(CONTROL_TOKENS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, byte_level]},
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


FLEET_STEP_TOKENS, CURVE_STEP_TOKENS = 2_048, 8_192
"""Tokens of a step: of an engine that shares an accelerator, and of one that has it alone."""


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
        sharing = -(-len(self.slots) // max(1, len(self.settings.accelerators)))
        share = _MEMORY_SHARE / sharing
        if sharing == 1:
            return ("--gpu-memory-utilization", str(share))
        kv_bytes = self.settings.kv_bytes
        if kv_bytes is None:
            memory = min(accelerator.memory_bytes for accelerator in self.settings.accelerators)
            kv_bytes = int(memory * share) - self.shape.weight_bytes - _WORKSPACE_BYTES
        # vLLM looks at the share before it starts, when its neighbours may have theirs already.
        return ("--gpu-memory-utilization", f"{share / 2:.3f}", "--kv-cache-memory-bytes", str(kv_bytes))

    def _placement(self, number: int) -> dict[str, str]:
        devices = len(self.settings.accelerators)
        return {"CUDA_VISIBLE_DEVICES": str(number % devices)} if devices > 1 else {}


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
