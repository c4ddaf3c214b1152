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
QUANTIZED_BYTES: Final = {"fp8": 1.0, "mxfp4": 4.25 / 8, "int4": 4.5 / 8}
"""Bytes of a quantized parameter: 4 bits have a scale for each 32, of 8 (MXFP4) or 16 bits."""
_QUANTIZED_EXPERTS: Final = ("mxfp4", "int4")
"""Types that quantize routed experts alone."""
_STATE_VALUE_BYTES: Final = 4
"""Bytes of a value in the state of linear attention: `mamba_ssm_dtype` is float32."""
_WINDOW_SLACK_TOKENS: Final = 16_384
"""Tokens beyond its window that a layer keeps during prefill: those of one step.

Source: vLLM 0.32 takes 16,384 on devices of 160 GiB and more, and less on others.
"""

SIZED_TYPES: Final = frozenset(
    {
        *("deepseek_v3", "deepseek_v32", "gemma3_text", "gemma4_text", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa"),
        *("gpt_oss", "kimi_k2", "llama", "llama4_text", "minimax_m2", "mistral", "mistral4", "phi3"),
        *("qwen2", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe"),
    }
)
"""The `model_type`s whose parameters `architecture` counts, each held to an entry by a test."""
MAX_CONFIG_BYTES: Final = 2**20
_FIELD: Final = "--config"
_UNCOUNTED_FIELDS: Final = ("hidden_size_per_layer_input", "num_kv_shared_layers")
"""Fields of the small Gemma 4 models, whose embeddings per layer and shared KV are not counted."""


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
        return self.layers + self.experts + self.embeddings + self.vision


def count_parameters(config: ModelConfig) -> ParameterCounts:
    """Returns the parameters of a model. Each feed-forward layer has three matrices."""
    hidden, layers = config.hidden_size, config.num_hidden_layers
    moe_layers = _moe_layers(config)
    # Each layer of Gemma 4 has experts and a dense part.
    dense_layers = layers if config.enable_moe_block else layers - moe_layers
    dense = dense_layers * 3 * hidden * (config.intermediate_size_mlp or config.intermediate_size)
    expert_size = config.moe_intermediate_size or config.intermediate_size
    expert, experts = 3 * hidden * expert_size, expert_count(config)
    shared_size = config.shared_expert_intermediate_size or config.n_shared_experts * expert_size
    if config.model_type.startswith("llama4"):
        shared_size = expert_size
    vision = config.vision_config
    return ParameterCounts(
        layers=_attention_parameters(config) + dense + moe_layers * hidden * (3 * shared_size + experts),
        experts=moe_layers * experts * expert,
        active_experts=moe_layers * (config.num_experts_per_tok or config.top_k_experts) * expert,
        embeddings=config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2),
        vision=0
        if vision is None
        else vision.num_hidden_layers * vision.hidden_size * (4 * vision.hidden_size + 3 * vision.intermediate_size),
    )


def expert_count(config: ModelConfig) -> int:
    return config.num_experts or config.num_local_experts or config.n_routed_experts


def _moe_layers(config: ModelConfig) -> int:
    if not expert_count(config):
        return 0
    return (config.num_hidden_layers - config.first_k_dense_replace) // config.interleave_moe_layer_step


def head_size(config: ModelConfig) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


def full_attention_layers(config: ModelConfig) -> int:
    return config.num_hidden_layers if config.full_attention_layers is None else config.full_attention_layers


def full_kv_heads(config: ModelConfig) -> int:
    return config.num_global_key_value_heads or config.num_key_value_heads


def _full_head_size(config: ModelConfig) -> int:
    return config.global_head_dim or head_size(config)


def indexer_layers(config: ModelConfig) -> int:
    """Returns the layers with an indexer, which chooses the tokens of sparse attention."""
    if not config.index_n_heads:
        return 0
    return config.num_hidden_layers if config.indexer_layers is None else config.indexer_layers


def _attention_parameters(config: ModelConfig) -> int:
    """Returns the parameters of attention in all layers."""
    hidden, full = config.hidden_size, full_attention_layers(config)
    if config.kv_lora_rank is not None:
        return config.num_hidden_layers * _compressed_attention(config) + indexer_layers(config) * _indexer(config)
    # Models with linear attention have a gate for each query.
    queries = config.num_attention_heads * (3 if config.linear_num_value_heads else 2)
    full_kv = full_kv_heads(config) * (1 if config.attention_k_eq_v else 2)
    other = hidden * head_size(config) * (queries + 2 * config.num_key_value_heads)
    if config.linear_num_value_heads:
        other = _linear_attention(config)
    return full * hidden * _full_head_size(config) * (queries + full_kv) + (config.num_hidden_layers - full) * other


def _compressed_attention(config: ModelConfig) -> int:
    hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.q_lora_rank
    kv_rank = config.kv_lora_rank or 0
    query_size = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    query = hidden * query_size if rank is None else rank * (hidden + query_size)
    compressed = hidden * (kv_rank + config.qk_rope_head_dim)
    expanded = kv_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + compressed + expanded + heads * config.v_head_dim * hidden


def _indexer(config: ModelConfig) -> int:
    queries = (config.q_lora_rank or config.hidden_size) * config.index_n_heads * config.index_head_dim
    return queries + config.hidden_size * (config.index_head_dim + config.index_n_heads)


def _linear_attention(config: ModelConfig) -> int:
    """Returns the parameters of a Gated DeltaNet layer: Q, K, V, gate, output and convolution."""
    values = config.linear_num_value_heads * config.linear_value_head_dim
    rates = 2 * config.linear_num_value_heads
    channels = _convolution_channels(config)
    return config.hidden_size * (channels + 2 * values + rates) + channels * config.linear_conv_kernel_dim


def _convolution_channels(config: ModelConfig) -> int:
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    return 2 * keys + config.linear_num_value_heads * config.linear_value_head_dim


def weight_bytes(config: ModelConfig) -> int:
    """Returns the bytes of all weights.

    FP8 quantizes the layers; MXFP4, as gpt-oss has it, and INT4, as Kimi has it, the experts alone.
    """
    counts, plain = count_parameters(config), TYPE_BYTES[config.torch_dtype]
    quantization = config.quantization_config
    if quantization is None:
        return counts.total * plain
    small = QUANTIZED_BYTES[quantization.data_type]
    layer_bytes = plain if quantization.data_type in _QUANTIZED_EXPERTS else small
    return int(
        counts.layers * layer_bytes + counts.experts * small + (counts.embeddings + counts.vision) * plain,
    )


def kv_bytes_per_device(config: ModelConfig, tokens: int, devices: int, *, has_windows: bool) -> int:
    """Returns the bytes of KV that one request of so many tokens takes on each device.

    Heads are divided among devices. Where there are fewer heads than devices, several devices hold
    the same one. Compressed KV (MLA) and the keys of an indexer are whole on each device.

    has_windows: the engine frees tokens outside a layer's window.
    """
    full, other = _kv_bytes_per_token(config, devices)
    if config.linear_num_value_heads:
        linear_layers = config.num_hidden_layers - full_attention_layers(config)
        return full * tokens + linear_layers * state_bytes_per_layer(config) // devices
    if config.sliding_window is None or not has_windows:
        return (full + other) * tokens
    return full * tokens + other * min(tokens, config.sliding_window + _WINDOW_SLACK_TOKENS)


def _kv_bytes_per_token(config: ModelConfig, devices: int) -> tuple[int, int]:
    """Returns the bytes of a token on each device in layers without and with a window."""
    layers, full = config.num_hidden_layers, full_attention_layers(config)
    if config.kv_lora_rank is not None:
        values = config.kv_lora_rank + config.qk_rope_head_dim
        return layers * values * KV_VALUE_BYTES + indexer_layers(config) * index_bytes(config), 0
    full_values = 2 * _full_head_size(config) * -(-full_kv_heads(config) // devices)
    other_values = 2 * head_size(config) * -(-config.num_key_value_heads // devices)
    other = 0 if config.linear_num_value_heads else layers - full
    return full * full_values * KV_VALUE_BYTES, other * other_values * KV_VALUE_BYTES


def index_bytes(config: ModelConfig) -> int:
    """Returns the bytes of a token's key in an indexer: FP8, with a scale for each 128 values.

    Source: `DeepseekV32IndexerCache` of vLLM.
    """
    return config.index_head_dim + config.index_head_dim // 128 * 4


def state_bytes_per_layer(config: ModelConfig) -> int:
    """Returns the bytes of a request's state in a layer with linear attention.

    Source: `gated_delta_net_state_shape` of vLLM. The convolution has the model's own type.
    """
    recurrent = config.linear_num_value_heads * config.linear_value_head_dim * config.linear_key_head_dim
    convolution = _convolution_channels(config) * (config.linear_conv_kernel_dim - 1)
    return recurrent * _STATE_VALUE_BYTES + convolution * KV_VALUE_BYTES


def is_valid_split(config: ModelConfig, devices: int) -> bool:
    """Returns True if engines can split each layer of the model over so many devices."""
    if config.num_attention_heads % devices or config.linear_num_key_heads % devices:
        return False
    if config.kv_lora_rank is None:
        for kv_heads in (config.num_key_value_heads, full_kv_heads(config)):
            if kv_heads % devices and devices % kv_heads:
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
        attention_flops=4.0 * config.num_attention_heads * _attended_size(config),
        kv_bytes=devices * sum(_kv_bytes_per_token(config, devices)),
        data_type="fp8" if is_fp8 else "bf16",
    )


def _attended_size(config: ModelConfig) -> float:
    """Returns the mean of the sizes of a head's query and value, summed over layers.

    Sparse attention counts as attention to all tokens, and linear attention as none.
    """
    layers, full = config.num_hidden_layers, full_attention_layers(config)
    if config.kv_lora_rank is not None:
        return layers * (config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim) / 2
    other = 0 if config.linear_num_value_heads else layers - full
    return full * _full_head_size(config) + other * head_size(config)


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
    if any(text.get(name) for name in _UNCOUNTED_FIELDS):
        message = f"the memory of models of type {kind!r} is not known with {' or '.join(_UNCOUNTED_FIELDS)}"
        raise BadInput(message, field=_FIELD)
    figures = {name: text[name] for name in ModelConfig.__struct_fields__ if text.get(name) is not None}
    data_type = next(
        (found for part in (text, content) for key in ("torch_dtype", "dtype") if (found := part.get(key))), "bfloat16"
    )
    figures |= {"model_type": kind, "torch_dtype": data_type, **_layer_counts(text)}
    figures.setdefault("tie_word_embeddings", bool(content.get("tie_word_embeddings")))
    # Where all layers have experts, the file may have no other size.
    figures.setdefault("intermediate_size", text.get("moe_intermediate_size"))
    figures |= {"quantization_config": None, "vision_config": None}
    for part in (text, content):
        if isinstance(part.get("quantization_config"), dict):
            quantization = part["quantization_config"]
            figures["quantization_config"] = {key: value for key, value in quantization.items() if value is not None}
    if isinstance(content.get("vision_config"), dict):
        figures["vision_config"] = _vision_figures(content["vision_config"])
    if figures.get("full_attention_layers") is None:
        figures.pop("sliding_window", None)  # without its layers, all count as whole
    try:
        config = msgspec.convert(figures, ModelConfig)
    except msgspec.ValidationError as error:
        raise BadInput(f"config.json cannot be read: {error}", field=_FIELD) from error
    _check_types(config)
    return config


def _layer_counts(text: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers of layers with full attention and with an indexer, if they are known."""
    counts = {}
    layer_types, indexers = text.get("layer_types"), text.get("indexer_types")
    pattern = text.get("sliding_window_pattern") or text.get("full_attention_interval")
    if isinstance(indexers, list):
        counts["indexer_layers"] = sum(kind == "full" for kind in indexers)
    if isinstance(layer_types, list):
        counts["full_attention_layers"] = sum(kind == "full_attention" for kind in layer_types)
    elif isinstance(pattern, int) and pattern > 0:
        counts["full_attention_layers"] = int(text.get("num_hidden_layers") or 0) // pattern
    return counts


def _vision_figures(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of a `vision_config`. Kimi writes `vt_hidden_size`, and Qwen `depth`."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers")
    figures = {name: vision.get(name, vision.get(f"vt_{name}")) for name in names}
    if figures["num_hidden_layers"] is None:
        figures["num_hidden_layers"] = vision.get("depth")
    return figures


def _check_types(config: ModelConfig) -> None:
    quantization = config.quantization_config
    if quantization is not None and quantization.data_type not in QUANTIZED_BYTES:
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
    if max(full_attention_layers(config), indexer_layers(config)) > config.num_hidden_layers:
        return False
    if config.model_type.startswith("qwen3_5") and not config.linear_num_value_heads:
        return False
    return head_size(config) >= 1 and sum(_kv_bytes_per_token(config, 1)) >= 1
