"""The API by which engines load and unload LoRA adapters at run time, and by which requests name
them.

These engines list what they have loaded under `/v1/models`, with its source as `root` and with the
base model as `parent`.

SGLang reads a model's name as `base:adapter`. A name without a colon means the base, which answers
without any error.

Source: vLLM 0.32 (`vllm/entrypoints/serve/lora/api_router.py`, only with
`VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`); SGLang 0.5.23 (`srt/entrypoints/http_server.py`,
`srt/entrypoints/openai/serving_base.py`, `srt/managers/tokenizer_manager.py`).
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class LoraApi:
    """The API of one kind of engine. Bodies have `lora_name`, and `lora_path` to load.

    names_base: requests name `base:adapter`, where others name the adapter alone.
    """

    load_path: str
    unload_path: str
    names_base: bool = False


_VLLM: Final = LoraApi("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_BY_KIND: Final = {
    "vllm": _VLLM,
    "sglang": LoraApi("/load_lora_adapter", "/unload_lora_adapter", names_base=True),
    "sim": _VLLM,
}


def lora_api(kind: str) -> LoraApi:
    return _BY_KIND[kind]


def adapter_prefix(kind: str, model: str) -> str:
    """Returns what precedes an adapter's name in requests to a kind of engine, mostly nothing.

    model: name of the base. What follows a colon in it would be read as the adapter.
    """
    api = _BY_KIND.get(kind)
    return f"{model.partition(':')[0]}:" if api is not None and api.names_base else ""


def has_lora_api(kind: str) -> bool:
    return kind in _BY_KIND
