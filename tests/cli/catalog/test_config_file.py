"""A model's own config.json, and files whose memory is not known."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead.errors import BadInput
from fairlead_cli.app import build_app
from fairlead_cli.catalog.architecture import (
    MAX_CONFIG_BYTES,
    SIZED_TYPES,
    count_parameters,
    kv_bytes_per_device,
    parse_config,
    read_config_entry,
    weight_bytes,
)
from fairlead_cli.catalog.entry import CatalogEntry, read_entries

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
    "rope_scaling": {"factor": 8.0},
}
GEMMA: dict[str, Any] = {
    "model_type": "gemma3",
    "dtype": "bfloat16",
    "text_config": {
        **LLAMA,
        "model_type": "gemma3_text",
        "sliding_window": 1024,
        "layer_types": ["sliding_attention", "full_attention"] * 16,
    },
    "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14},
}


def as_config_file(entry: CatalogEntry) -> dict[str, Any]:
    """Returns the figures of an entry, as its config.json has them."""
    figures: dict[str, Any] = msgspec.to_builtins(entry.config)
    full = figures.pop("full_attention_layers", None)
    if full is not None:
        windowed = figures["num_hidden_layers"] - full
        figures["layer_types"] = ["full_attention"] * full + ["sliding_attention"] * windowed
    return figures


@pytest.mark.parametrize("entry", read_entries().values(), ids=lambda entry: entry.name)
def test_a_file_gives_the_figures_of_its_entry(entry: CatalogEntry) -> None:
    config = parse_config(as_config_file(entry))
    assert count_parameters(config) == count_parameters(entry.config)
    assert weight_bytes(config) == weight_bytes(entry.config)
    for devices in (1, 8):
        sizes = [kv_bytes_per_device(found, 50_000, devices, has_windows=True) for found in (config, entry.config)]
        assert sizes[0] == sizes[1]


def test_every_kind_that_is_taken_is_one_of_the_catalogue() -> None:
    assert {entry.config.model_type for entry in read_entries().values()} == SIZED_TYPES


def test_the_text_of_a_model_with_images_is_read() -> None:
    config = parse_config(GEMMA)
    assert (config.model_type, config.full_attention_layers, config.sliding_window) == ("gemma3_text", 16, 1024)
    assert count_parameters(config).vision > 400e6


def test_a_window_without_its_layers_counts_as_whole() -> None:
    config = parse_config({**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False})
    assert config.sliding_window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen3_next"}, "type 'qwen3_next' is not known"),
        ({"model_type": None}, "type None is not known"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantized by awq"),
        ({"quantization_config": {"bits": 4}}, "quant_method"),
        ({"torch_dtype": "float8_e4m3fn"}, "size of float8_e4m3fn"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_key_value_heads": 0}, "too small"),
        ({"num_attention_heads": 0}, "too small"),
        ({"num_attention_heads": 8192}, "too small"),
        ({"head_dim": -128}, "too small"),
        ({"n_shared_experts": -1}, "too small"),
        ({"interleave_moe_layer_step": 0}, "too small"),
        ({"first_k_dense_replace": 40}, "too small"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 128]}}, "too small"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [96, 128]}}, "no multiple of"),
    ],
)
def test_a_file_whose_memory_is_not_known_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        parse_config({**LLAMA, **changes})
    assert caught.value.field == "--config"


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "holds no object"), ("{", "is not JSON"), (" " * (MAX_CONFIG_BYTES + 1), "longer than")],
)
def test_what_is_no_config_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=message):
        read_config_entry(str(path), "a/b")


@pytest.mark.parametrize("repository", ["llama", "a/b/c", "/", "a/", "a b/c", "a/--"])
def test_a_name_that_is_no_repository_is_refused(repository: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    with pytest.raises(BadInput, match="is not a repository"):
        read_config_entry(str(path), repository)


def test_a_manifest_is_written_for_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA))
    words = ["catalog", "show", "my_team/My_Llama v2".replace(" ", "-"), f"--config={path}", "--on=nvidia-h100"]
    assert build_app()(words, result_action="return_value") == 0
    text = capsys.readouterr().out
    assert "name: my-llama-v2\n" in text
    assert "uri: hf://my_team/My_Llama-v2\n" in text
    assert "parser" not in text.partition("apiVersion")[2]
