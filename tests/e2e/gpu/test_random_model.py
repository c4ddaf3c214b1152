"""Files of models with random weights, as engines read them."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from e2e.gpu.engines import ADAPTER_RANK, SHAPES, ModelShape, read_shape, write_adapter, write_model, write_weights
from fairlead_sim.engine.tokenizer import Tokenizer

SMALL = ModelShape(2, 64, 4, 2, 96, 512, ties_embeddings=False)
BYTES = {"BF16": 2, "F32": 4}


def tensors(path: Path) -> dict[str, Any]:
    """Returns the header of a safetensors file, whose offsets cover its data without a gap."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    end = 0
    for tensor in header.values():
        assert tensor["data_offsets"] == [end, end + BYTES[tensor["dtype"]] * prod(tensor["shape"])]
        end = tensor["data_offsets"][1]
    assert len(data) == 8 + length + end
    return header


def test_the_vocabulary_is_that_of_simulated_engines(tmp_path: Path) -> None:
    write_model(tmp_path, SHAPES["1.5b"])
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    simulated = Tokenizer()
    text = " abc def a Ä 123 {}\n" + simulated.random_text(500, "any")
    assert all(vocabulary[simulated.printable_piece(token)] == token for token in simulated.encode(text))
    assert len(vocabulary) <= SHAPES["1.5b"].vocabulary


def test_a_written_model_has_the_shape_that_is_read(tmp_path: Path) -> None:
    assert read_shape(write_model(tmp_path, SHAPES["8b"])) == SHAPES["8b"]


def test_weights_have_the_bytes_of_the_shape(tmp_path: Path) -> None:
    write_weights(tmp_path, SMALL, seed=1)
    header = tensors(tmp_path / "model.safetensors")
    norms = sum(prod(tensor["shape"]) for name, tensor in header.items() if name.endswith("norm.weight"))
    assert 2 * sum(prod(tensor["shape"]) for tensor in header.values()) == SMALL.weight_bytes + 2 * norms


def test_written_weights_are_wide(tmp_path: Path) -> None:
    write_weights(tmp_path, SMALL, seed=1)
    begin, end = tensors(tmp_path / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]["data_offsets"]
    data = (tmp_path / "model.safetensors").read_bytes()
    start = len(data) - max(tensor["data_offsets"][1] for tensor in tensors(tmp_path / "model.safetensors").values())
    words = struct.unpack(f"<{(end - begin) // 2}H", data[start + begin : start + end])
    values = [struct.unpack("<f", struct.pack("<I", word << 16))[0] for word in words]
    assert all(0.125 <= abs(value) < 0.25 for value in values)
    assert 0.4 < sum(value > 0 for value in values) / len(values) < 0.6


def test_an_adapter_changes_queries_and_values_of_every_layer(tmp_path: Path) -> None:
    write_adapter(tmp_path, SMALL, seed=1)
    header = tensors(tmp_path / "adapter_model.safetensors")
    assert len(header) == SMALL.layers * 2 * 2
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == ADAPTER_RANK
    assert header["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]["shape"] == [
        SMALL.head_width * SMALL.kv_heads,
        ADAPTER_RANK,
    ]


def test_the_large_shapes_have_the_sizes_of_their_models() -> None:
    assert SHAPES["8b"].weight_bytes / 2 == 8_029_995_008  # the published 8.03 billion, without norms
    assert (SHAPES["8b"].kv_bytes, SHAPES["1.5b"].kv_bytes) == (131_072, 28_672)
