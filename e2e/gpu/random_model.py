"""A Llama-shaped model with random weights, and LoRA adapters for it, without a download.

vLLM draws the weights of large shapes itself (`--load-format dummy`), so a model is three JSON
files. These weights are so small that many tokens are equally likely. Where answers are compared,
weights are written, and they are wide. The vocabulary is that of simulated engines: a word of a
replayed prompt (a space and three letters) is one token on both sides.
"""

import json
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from typing import Any, Final

from fairlead_sim.engine.tokenizer import CONTROL_TOKENS, Tokenizer

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
        """Width of one attention head."""
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
        """Bytes of one token in the KV cache."""
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
