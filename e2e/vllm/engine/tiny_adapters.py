"""Two small LoRA adapters for the tiny model, made from nothing: run by the engine's own
interpreter.

Random weights, wide enough that each of them says something else. Usage: ``tiny_adapters.py MODEL
FOLDER FOLDER``.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

RANK = 8
SPREAD = 0.2


def adapter(model: Path, folder: Path, seed: int) -> None:
    """Write one adapter of the attention's queries and values."""
    torch.manual_seed(seed)
    shape = json.loads((model / "config.json").read_text())
    width = shape["hidden_size"]
    head = width // shape["num_attention_heads"]
    outputs = {"q_proj": width, "v_proj": head * shape["num_key_value_heads"]}
    weights = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, output in outputs.items():
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}.lora_"
            weights[f"{place}A.weight"] = torch.randn(RANK, width) * SPREAD
            weights[f"{place}B.weight"] = torch.randn(output, RANK) * SPREAD
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    told = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": sorted(outputs),
        "bias": "none",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model),
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))


if __name__ == "__main__":
    for number, name in enumerate(sys.argv[2:], 1):
        adapter(Path(sys.argv[1]), Path(name), number)
