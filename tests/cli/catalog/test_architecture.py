"""Parameters and bytes of the catalogue's models, against published figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.errors import BadInput
from fairlead_cli.app import build_app
from fairlead_cli.catalog.architecture import (
    MAX_CONFIG_BYTES,
    SIZED_TYPES,
    count_parameters,
    is_valid_split,
    kv_bytes_per_device,
    model_cost,
    parse_config,
    read_config_entry,
    weight_bytes,
)
from fairlead_cli.catalog.entry import CatalogEntry, Quantization, VisionConfig, find_entry, read_entries
from fairlead_cli.catalog.memory_plan import known_device
from fairlead_cli.catalog.roofline import accelerator_figures, roofline_profile

PUBLISHED_BILLIONS = {
    "qwen3-8b": 8.2,
    "qwen3-30b-a3b": 30.5,
    "qwen3-235b-a22b": 235.0,
    "qwen3-coder-480b-a35b": 480.0,
    "llama-3.1-8b": 8.03,
    "llama-3.3-70b": 70.6,
    "llama-4-scout": 109.0,
    "gpt-oss-120b": 117.0,
    "gpt-oss-20b": 20.9,
    "deepseek-v3": 671.0,
    "kimi-k2": 1026.0,
    "glm-4.5": 355.0,
    "glm-4.5-air": 106.0,
    "glm-4.7": 358.0,
    "magistral-small": 23.57,
    "devstral-small": 23.57,
    "phi-4": 14.7,
    "mistral-small-3.1-24b": 24.0,
    "phi-4-mini": 3.84,
    "deepseek-v3.2": 671.0,
    "glm-4.7-flash": 30.0,
    "glm-5-fp8": 744.0,
    "glm-5.1-fp8": 744.0,
    "glm-5.2-fp8": 743.0,
    "kimi-k2.5": 1026.0,
    "minimax-m2.5": 230.0,
    "minimax-m2.7": 230.0,
    "mistral-small-4-119b": 119.4,
    "qwen3.5-35b-a3b": 35.0,
    "qwen3.5-122b-a10b": 122.0,
    "qwen3.5-397b-a17b": 397.0,
    "qwen3.6-35b-a3b": 35.0,
}
"""Parameters by the models' own pages and by the recipes of vLLM."""
PUBLISHED_TEXT_BILLIONS = {"gemma-4-26b-a4b": 25.2, "gemma-4-31b": 30.7, "qwen3.5-27b": 26.896, "qwen3.8-27b": 26.896}
"""Parameters without those of the part that reads images."""
BUILT_PARAMETERS = {
    "qwen3-8b": 8_190_735_360,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-4-scout": 107_769_861_120,
    "llama-4-maverick": 400_711_848_960,
    "gpt-oss-20b": 20_914_757_184,
    "deepseek-v3": 671_026_404_352,
    "deepseek-r1-distill-qwen-32b": 32_763_876_352,
    "kimi-k2": 1_026_408_209_408,
    "glm-4.5-air": 106_851_586_048,
    "gemma-3-4b": 3_880_099_328,
    "phi-4-mini": 3_836_021_760,
    "mistral-small-3.1-24b": 23_572_403_200,
}
"""Parameters of the text models as transformers 5.19.0 builds them on the meta device."""
ACTIVE_BILLIONS = {
    "qwen3-30b-a3b": 3.3,
    "qwen3-235b-a22b": 22.0,
    "deepseek-v3": 37.0,
    "kimi-k2": 32.0,
    "mistral-small-4-119b": 6.5,
    "qwen3.5-397b-a17b": 17.0,
}
SPARSE_PAIR = ("deepseek-v3", "deepseek-v3.2")
INDEXER_PAIR = ("glm-5.2-fp8", "glm-5.1-fp8")


def entry(name: str) -> CatalogEntry:
    return read_entries()[name]


@pytest.mark.parametrize("name", PUBLISHED_BILLIONS)
def test_parameters_are_those_that_are_published(name: str) -> None:
    assert count_parameters(entry(name).config).total / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name], rel=0.015)


@pytest.mark.parametrize("name", PUBLISHED_TEXT_BILLIONS)
def test_parameters_of_the_text_are_those_that_are_published(name: str) -> None:
    counts = count_parameters(entry(name).config)
    assert (counts.total - counts.vision) / 1e9 == pytest.approx(PUBLISHED_TEXT_BILLIONS[name], rel=0.015)


@pytest.mark.parametrize("name", BUILT_PARAMETERS)
def test_parameters_are_those_of_the_model_that_is_built(name: str) -> None:
    counts = count_parameters(entry(name).config)
    # The rest are norms and biases.
    assert counts.total - counts.vision == pytest.approx(BUILT_PARAMETERS[name], rel=0.0006)


@pytest.mark.parametrize("name", ACTIVE_BILLIONS)
def test_active_parameters_are_those_that_are_published(name: str) -> None:
    # Published numbers count the table of tokens, too, which is looked up and not multiplied.
    config = entry(name).config
    table = config.vocab_size * config.hidden_size
    active = (model_cost(config, 8).active_parameters + table) / 1e9
    assert active == pytest.approx(ACTIVE_BILLIONS[name], rel=0.03)


def test_quantization_shrinks_what_it_quantizes() -> None:
    plain, quantized = weight_bytes(entry("qwen3-32b").config), weight_bytes(entry("qwen3-32b-fp8").config)
    embeddings = 2 * count_parameters(entry("qwen3-32b").config).embeddings
    assert plain - embeddings == 2 * (quantized - embeddings)


@pytest.mark.parametrize(
    ("name", "gigabytes"), [("gpt-oss-120b", 65.2), ("kimi-k2.5", 595.0), ("mistral-small-4-119b", 120.92)]
)
def test_weights_are_as_large_as_the_files_of_the_checkpoint(name: str, gigabytes: float) -> None:
    assert weight_bytes(entry(name).config) == pytest.approx(gigabytes * 1e9, rel=0.01)


def test_kv_of_a_dense_model_is_divided_up_to_the_number_of_its_heads() -> None:
    config = entry("qwen3-32b").config
    whole = kv_bytes_per_device(config, 1_000, 1, has_windows=True)
    assert whole == 1_000 * 64 * 2 * 8 * 128 * 2
    assert kv_bytes_per_device(config, 1_000, 8, has_windows=True) == whole // 8
    assert kv_bytes_per_device(config, 1_000, 16, has_windows=True) == whole // 8


def test_compressed_kv_is_whole_on_each_device() -> None:
    config = entry("deepseek-v3").config
    assert kv_bytes_per_device(config, 1, 1, has_windows=True) == 61 * (512 + 64) * 2
    assert kv_bytes_per_device(config, 1, 8, has_windows=True) == 61 * (512 + 64) * 2


def test_an_indexer_keeps_keys_of_its_own() -> None:
    # Source: 128 values of FP8 and a scale of 4 bytes in vLLM's `DeepseekV32IndexerCache`.
    dense, sparse = (kv_bytes_per_device(entry(name).config, 1, 8, has_windows=True) for name in SPARSE_PAIR)
    assert sparse - dense == 61 * 132
    counts = [count_parameters(entry(name).config).total for name in SPARSE_PAIR]
    assert counts[1] - counts[0] == 61 * (1536 * 64 * 128 + 7168 * 128 + 7168 * 64)
    # 57 of the 78 layers use the tokens that another layer's indexer chose.
    shared, own = (kv_bytes_per_device(entry(name).config, 1, 1, has_windows=True) for name in INDEXER_PAIR)
    assert own - shared == 57 * 132


def test_layers_without_a_window_have_heads_of_their_own() -> None:
    config = entry("gemma-4-31b").config
    windowed, full = 50 * 2 * 16 * 256 * 2, 10 * 2 * 4 * 512 * 2
    assert kv_bytes_per_device(config, 1_000, 1, has_windows=True) == 1_000 * (windowed + full)
    long = kv_bytes_per_device(config, 201_000, 1, has_windows=True)
    assert long - kv_bytes_per_device(config, 200_000, 1, has_windows=True) == 1_000 * full
    assert kv_bytes_per_device(config, 1_000, 8, has_windows=False) == 1_000 * (windowed // 8 + full // 4)


def test_linear_attention_keeps_a_state_of_one_size() -> None:
    config = entry("qwen3.5-27b").config
    state = 48 * (48 * 128 * 128 * 4 + (2 * 16 * 128 + 48 * 128) * 3 * 2)
    for tokens in (1, 100_000):
        assert kv_bytes_per_device(config, tokens, 1, has_windows=True) == state + tokens * 16 * 2 * 4 * 256 * 2
    assert kv_bytes_per_device(config, 1, 4, has_windows=False) == state // 4 + 16 * 2 * 256 * 2
    assert model_cost(config, 1).kv_bytes == 16 * 2 * 4 * 256 * 2
    assert model_cost(config, 1).attention_flops == 4 * 16 * 24 * 256


def test_layers_with_a_window_keep_no_more_than_it() -> None:
    config = entry("gpt-oss-20b").config
    short, long = (kv_bytes_per_device(config, tokens, 1, has_windows=True) for tokens in (1_000, 101_000))
    everything = kv_bytes_per_device(config, 101_000, 1, has_windows=False)
    assert short == kv_bytes_per_device(config, 1_000, 1, has_windows=False)
    assert 0.5 * everything < long < 0.6 * everything


def test_a_split_divides_heads_and_blocks_of_quantization() -> None:
    assert [n for n in (1, 2, 4, 8, 16) if is_valid_split(entry("qwen3-14b").config, n)] == [1, 2, 4, 8]
    # Source: the recipe of Qwen3-235B-A22B allows FP8 on at most four devices.
    assert [n for n in (1, 2, 4, 8) if is_valid_split(entry("qwen3-235b-a22b-fp8").config, n)] == [1, 2, 4]
    assert is_valid_split(entry("qwen3-235b-a22b").config, 8)
    plain = msgspec.structs.replace(entry("qwen3-235b-a22b-fp8").config, quantization_config=Quantization("fp8"))
    assert is_valid_split(plain, 8)


def test_a_model_is_found_by_its_repository() -> None:
    assert find_entry("Qwen/Qwen3-32B").name == find_entry("QWEN3-32B").name == "qwen3-32b"


def test_cost_grows_with_what_devices_repeat() -> None:
    single, eight = (model_cost(entry("deepseek-v3").config, devices) for devices in (1, 8))
    assert eight == dataclasses.replace(single, kv_bytes=8 * single.kv_bytes)


PROFILED_MODELS = {"nvidia-l4": "qwen3-8b", "google-tpu-v5e": "llama-3.2-3b"}
"""Accelerator → the model of its built-in profile, where that is not Llama 3.1 8B."""
NOT_ROOFLINES = {"nvidia-a100", "nvidia-h100", "nvidia-h200"}
"""The profile of the A100 is of a model that the catalogue lacks; those of Hopper are fitted."""


@pytest.mark.parametrize("accelerator", sorted({*accelerator_figures()} - NOT_ROOFLINES))
def test_built_in_profiles_are_rooflines(accelerator: str) -> None:
    known = builtin_accelerators()[accelerator].spec.profile.to_engine_profile("any")
    config = entry(PROFILED_MODELS.get(accelerator, "llama-3.1-8b")).config
    device = known_device(accelerator, accelerator_figures(), None)
    cost = model_cost(config, 1)
    room = int((device.usable_bytes - weight_bytes(config)) / cost.kv_bytes)
    profile = roofline_profile("made", cost, accelerator_figures()[accelerator], devices=1, kv_tokens=room)
    # That of the L4 is older, and was written down with other roundings.
    tolerance = 0.15 if accelerator == "nvidia-l4" else 0.035
    for field in ("prefill_token_seconds", "attention_seconds", "weights_seconds", "resident_token_seconds"):
        assert getattr(profile, field) == pytest.approx(getattr(known, field), rel=tolerance), field
    if accelerator != "nvidia-l4":
        assert known.kv_tokens == pytest.approx(room, rel=0.05)


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


INT4: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "int", "num_bits": 4, "group_size": 32}, "targets": ["Linear"]}},
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"],
    "kv_cache_scheme": None,
}
LINEAR: dict[str, Any] = {
    "model_type": "qwen3_5_moe_text",
    "moe_intermediate_size": 512,
    "num_experts": 8,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
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
        sizes = [kv_bytes_per_device(source, 50_000, devices, has_windows=True) for source in (config, entry.config)]
        assert sizes[0] == sizes[1]


def test_every_kind_that_is_taken_is_one_of_the_catalogue() -> None:
    assert {entry.config.model_type for entry in read_entries().values()} == SIZED_TYPES


def test_the_text_of_a_model_with_images_is_read() -> None:
    config = parse_config(GEMMA)
    assert (config.model_type, config.full_attention_layers, config.sliding_window) == ("gemma3_text", 16, 1024)
    assert count_parameters(config).vision > 400e6


def test_figures_are_found_under_the_names_of_each_family() -> None:
    kimi = {
        "text_config": {**LLAMA, "quantization_config": INT4},
        "vision_config": {"vt_hidden_size": 8, "vt_intermediate_size": 9, "vt_num_hidden_layers": 7},
    }
    config = parse_config(kimi)
    assert config.quantization_config is not None
    assert config.quantization_config.data_type == "int4"
    assert config.vision_config == VisionConfig(8, 9, 7)
    qwen: dict[str, Any] = {
        "text_config": {**LLAMA, **LINEAR, "layer_types": ["linear_attention", "full_attention"] * 16},
        "vision_config": {"hidden_size": 8, "intermediate_size": 9, "depth": 7},
        "tie_word_embeddings": True,
    }
    del qwen["text_config"]["intermediate_size"]
    config = parse_config(qwen)
    assert (config.full_attention_layers, config.intermediate_size, config.tie_word_embeddings) == (16, 512, True)
    assert config.vision_config == VisionConfig(8, 9, 7)
    assert parse_config({**LLAMA, **LINEAR, "full_attention_interval": 4}).full_attention_layers == 8
    assert parse_config({**LLAMA, "indexer_types": ["full", "shared"]}).indexer_layers == 1


def test_a_window_without_its_layers_counts_as_whole() -> None:
    config = parse_config({**LLAMA, "model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False})
    assert config.sliding_window is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "nemotron_h"}, "type 'nemotron_h' is not known"),
        ({"model_type": "gemma4_text", "hidden_size_per_layer_input": 256}, "with hidden_size_per_layer_input"),
        ({"quantization_config": {**INT4, "ignore": ["lm_head"]}}, "quantized by compressed-tensors"),
        ({"full_attention_layers": 33}, "too small"),
        ({"model_type": "qwen3_5_text"}, "too small"),
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
