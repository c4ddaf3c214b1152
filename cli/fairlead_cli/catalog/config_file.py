"""Reads a model's own config.json, for models that the catalogue lacks."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead.errors import BadInput
from fairlead_cli.catalog.architecture import (
    QUANTIZED_BYTES,
    TYPE_BYTES,
    head_size,
    is_valid_split,
    kv_values_per_layer,
)
from fairlead_cli.catalog.entry import CatalogEntry, ModelConfig

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
