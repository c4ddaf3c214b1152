"""The paths by which engines load and unload LoRA adapters at run time.

These engines list what they have loaded under `/v1/models`, with its source as `root` and with the
base model as `parent`.

Source: vLLM 0.32 (`vllm/entrypoints/serve/lora/api_router.py`, only with
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`); SGLang (`docs/advanced_features/lora.ipynb`).
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class LoraApi:
    """The paths of one kind of engine. Bodies have `lora_name`, and `lora_path` to load."""

    load_path: str
    unload_path: str


_VLLM: Final = LoraApi("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_BY_KIND: Final = {
    "vllm": _VLLM,
    "sglang": LoraApi("/load_lora_adapter", "/unload_lora_adapter"),
    "sim": _VLLM,
}


def lora_api(kind: str) -> LoraApi:
    """Returns the paths of a kind of engine that `has_lora_api`."""
    return _BY_KIND[kind]


def has_lora_api(kind: str) -> bool:
    """Returns whether engines of a kind load adapters at run time."""
    return kind in _BY_KIND
