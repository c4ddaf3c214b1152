"""Parameters, bytes of weights and bytes of KV of a model, from the figures of its config.json.

Norms and biases are not counted: they are less than 0.1 % of the weights. Nor are layers for
multi-token prediction, which engines leave out unless they speculate.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead.errors import BadInput
from fairlead_cli.catalog.entry import CatalogEntry, ModelConfig
from fairlead_cli.catalog.roofline import ModelCost

KV_VALUE_BYTES: Final = 2
"""Bytes of a value in the KV cache: engines keep it in the model's 16-bit type by default."""
TYPE_BYTES: Final = {"bfloat16": 2, "float16": 2, "float32": 4}
QUANTIZED_BYTES: Final = {"fp8": 1.0, "mxfp4": 4.25 / 8}
"""Bytes of a quantized parameter. MXFP4 has 4 bits, and 8 bits of scale for each 32 of them."""
_WINDOW_SLACK_TOKENS: Final = 16_384
"""Tokens beyond its window that a layer keeps during prefill: those of one step.

Source: vLLM 0.32 takes 16,384 on devices of 160 GiB and more, and less on others.
"""


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Parameters of a model by their place.

    experts: of routed experts; `active_experts` of them take part in a token.
    layers: of attention, dense layers, shared experts and routers.
    embeddings: of the table of tokens, and of the output unless they share it.
    vision: of the part that reads images.
    """

    layers: int
    experts: int
    active_experts: int
    embeddings: int
    vision: int

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return self.layers + self.experts + self.embeddings + self.vision


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Returns the parameters of a model. Each feed-forward layer has three matrices."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    moe_layers = _moe_layers(config)
    dense_size = config.intermediate_size_mlp or config.intermediate_size
    expert = 3 * hidden * (config.moe_intermediate_size or config.intermediate_size)
    dense = (layers - moe_layers) * 3 * hidden * dense_size
    experts, shared = expert_count(config), config.n_shared_experts
    if config.model_type.startswith("llama4"):
        shared = 1
    vision = config.vision_config
    return ParameterCounts(
        layers=layers * _attention_parameters(config) + dense + moe_layers * (shared * expert + experts * hidden),
        experts=moe_layers * experts * expert,
        active_experts=moe_layers * config.num_experts_per_tok * expert,
        embeddings=config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2),
        vision=0
        if vision is None
        else vision.num_hidden_layers * vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size),
    )


def expert_count(config: ModelConfig) -> int:
    """Returns the routed experts of a layer; 0 for a dense model."""
    return config.num_experts or config.num_local_experts or config.n_routed_experts


def _moe_layers(config: ModelConfig) -> int:
    if not expert_count(config):
        return 0
    return (config.num_hidden_layers - config.first_k_dense_replace) // config.interleave_moe_layer_step


def head_size(config: ModelConfig) -> int:
    """Returns the values of an attention head."""
    return config.head_dim or config.hidden_size // config.num_attention_heads


def _attention_parameters(config: ModelConfig) -> int:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if config.kv_lora_rank is None:
        return 2 * hidden * head_size(config) * (heads + config.num_key_value_heads)
    query_size = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    rank = config.q_lora_rank
    query = hidden * query_size if rank is None else rank * (hidden + query_size)
    compressed = hidden * (config.kv_lora_rank + config.qk_rope_head_dim)
    expanded = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + compressed + expanded + heads * config.v_head_dim * hidden


def weight_bytes(config: ModelConfig) -> int:
    """Returns the bytes of all weights.

    FP8 quantizes the layers; MXFP4, as gpt-oss has it, the experts alone.
    """
    counts, plain = count_parameters(config), TYPE_BYTES[config.torch_dtype]
    quantization = config.quantization_config
    if quantization is None:
        return counts.total * plain
    small = QUANTIZED_BYTES[quantization.quant_method]
    layer_bytes = plain if quantization.quant_method == "mxfp4" else small
    return int(
        counts.layers * layer_bytes + counts.experts * small + (counts.embeddings + counts.vision) * plain,
    )


def kv_bytes_per_device(config: ModelConfig, tokens: int, devices: int, *, has_windows: bool) -> int:
    """Returns the bytes of KV that one request of so many tokens takes on each device.

    Heads are divided among devices. Where there are fewer heads than devices, several devices hold
    the same one. Compressed KV (MLA) is whole on each device.

    has_windows: the engine frees tokens outside a layer's window.
    """
    per_layer_token = kv_values_per_layer(config, devices) * KV_VALUE_BYTES
    layers = config.num_hidden_layers
    if config.sliding_window is None or not has_windows:
        return layers * tokens * per_layer_token
    full = layers if config.full_attention_layers is None else config.full_attention_layers
    windowed_tokens = min(tokens, config.sliding_window + _WINDOW_SLACK_TOKENS)
    return (full * tokens + (layers - full) * windowed_tokens) * per_layer_token


def kv_values_per_layer(config: ModelConfig, devices: int) -> int:
    """Returns the values of K and V that a token takes in one layer on each device."""
    if config.kv_lora_rank is not None:
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * head_size(config) * -(-config.num_key_value_heads // devices)


def is_valid_split(config: ModelConfig, devices: int) -> bool:
    """Returns True if engines can split each layer of the model over so many devices."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % devices or (config.kv_lora_rank is None and kv_heads % devices and devices % kv_heads):
        return False
    quantization = config.quantization_config
    if quantization is None or not quantization.weight_block_size:
        return True
    sizes = [config.moe_intermediate_size or config.intermediate_size]
    return all(size % (devices * quantization.weight_block_size[0]) == 0 for size in sizes)


def model_cost(config: ModelConfig, devices: int) -> ModelCost:
    """Returns what an instance on so many devices has to compute and to read."""
    counts, quantization = count_parameters(config), config.quantization_config
    is_fp8 = quantization is not None and quantization.quant_method == "fp8"
    output = config.vocab_size * config.hidden_size
    return ModelCost(
        weight_bytes=weight_bytes(config),
        active_parameters=counts.layers + counts.active_experts + output,
        attention_flops=4.0 * config.num_hidden_layers * config.num_attention_heads * _attended_size(config),
        kv_bytes=devices * config.num_hidden_layers * kv_values_per_layer(config, devices) * KV_VALUE_BYTES,
        data_type="fp8" if is_fp8 else "bf16",
    )


def _attended_size(config: ModelConfig) -> float:
    """Returns the mean of the sizes of a head's query and value."""
    if config.kv_lora_rank is None:
        return head_size(config)
    return (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) / 2


SIZED_TYPES: Final = frozenset(
    {
        *("deepseek_v3", "gemma3_text", "glm4_moe", "gpt_oss", "kimi_k2", "llama", "llama4_text", "mistral", "phi3"),
        *("qwen2", "qwen3", "qwen3_moe"),
    }
)
"""The `model_type`s whose parameters `architecture` counts, each held to an entry by a test."""
MAX_CONFIG_BYTES: Final = 2**20
_FIELD: Final = "--config"


def read_config_entry(path: str, repository: str) -> CatalogEntry:
    """Returns an entry without parsers from a config.json. Raises BadInput and OSError.

    repository: of the model on Hugging Face. Its last part names the entry.
    """
    with Path(path).open("rb") as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise BadInput(f"{path} is longer than {MAX_CONFIG_BYTES:,} bytes", field=_FIELD)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{path} is not JSON", field=_FIELD) from error
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not a config.json: it holds no object", field=_FIELD)
    name = re.sub(r"[^a-z0-9.-]+", "-", repository.rpartition("/")[2].lower()).strip("-.")
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", repository) or not name:
        raise BadInput(
            f"{repository!r} is not a repository", field="MODEL", hint="with --config, write it like Qwen/Qwen3-8B"
        )
    return CatalogEntry(name, repository, parse_config(content), [path])


def parse_config(content: Mapping[str, Any]) -> ModelConfig:
    """Returns the figures of a config.json. Raises BadInput where the sum would be wrong."""
    text = content.get("text_config")
    text = content if not isinstance(text, dict) else text
    kind = text.get("model_type", content.get("model_type"))
    if kind not in SIZED_TYPES:
        message = f"the memory of models of type {kind!r} is not known"
        raise BadInput(message, field=_FIELD, hint=f"known: {', '.join(sorted(SIZED_TYPES))}")
    figures = {name: text[name] for name in ModelConfig.__struct_fields__ if text.get(name) is not None}
    data_type = next(
        (found for part in (text, content) for key in ("torch_dtype", "dtype") if (found := part.get(key))), "bfloat16"
    )
    figures |= {"model_type": kind, "torch_dtype": data_type, **_windows(text)}
    for name in ("quantization_config", "vision_config"):
        figures.pop(name, None)
        if isinstance(content.get(name), dict):
            figures[name] = content[name]
    if text.get("full_attention_layers") is None and "full_attention_layers" not in _windows(text):
        figures.pop("sliding_window", None)  # without its layers, all count as whole
    try:
        config = msgspec.convert(figures, ModelConfig)
    except msgspec.ValidationError as error:
        raise BadInput(f"config.json cannot be read: {error}", field=_FIELD) from error
    _check_types(config)
    return config


def _windows(text: Mapping[str, Any]) -> dict[str, int]:
    """Returns the number of layers without a window, where the file says it."""
    layer_types, pattern = text.get("layer_types"), text.get("sliding_window_pattern")
    if isinstance(layer_types, list):
        return {"full_attention_layers": sum(kind == "full_attention" for kind in layer_types)}
    if isinstance(pattern, int) and pattern > 0:
        return {"full_attention_layers": int(text.get("num_hidden_layers") or 0) // pattern}
    return {}


def _check_types(config: ModelConfig) -> None:
    quantization = config.quantization_config
    if quantization is not None and quantization.quant_method not in QUANTIZED_BYTES:
        message = f"the size of weights quantized by {quantization.quant_method} is not known"
        raise BadInput(message, field=_FIELD, hint=f"known: {', '.join(sorted(QUANTIZED_BYTES))}")
    if config.torch_dtype not in TYPE_BYTES:
        message = f"the size of {config.torch_dtype} is not known"
        raise BadInput(message, field=_FIELD, hint=f"known: {', '.join(sorted(TYPE_BYTES))}")
    if not _has_valid_sizes(config):
        raise BadInput("config.json has a size that is too small", field=_FIELD)
    if not is_valid_split(config, devices=1):
        message = "an intermediate size is no multiple of weight_block_size, so engines cannot load the weights"
        raise BadInput(message, field=_FIELD, hint="check the sizes of config.json")


def _has_valid_sizes(config: ModelConfig) -> bool:
    sizes = [value for value in msgspec.structs.asdict(config).values() if isinstance(value, int)]
    positive = [config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads]
    positive += [config.vocab_size, config.intermediate_size, config.max_position_embeddings]
    positive.append(config.interleave_moe_layer_step)
    if config.quantization_config is not None:
        positive += config.quantization_config.weight_block_size
    if min(sizes) < 0 or min(positive) < 1 or config.first_k_dense_replace > config.num_hidden_layers:
        return False
    return head_size(config) >= 1 and kv_values_per_layer(config, 1) >= 1
