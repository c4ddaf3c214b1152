"""Request bodies of a KV hand-off, as a client of a prefill and a decode engine writes them."""

from typing import Any

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


def make_prompt(tokens: int, first: str = "aaa") -> str:
    """Returns a prompt of this many simulated tokens. Another `first` word gives another prompt."""
    letters = "bcdfghjklm"
    words = [
        first,
        *(f"{letters[at % 10]}{letters[at // 10 % 10]}{letters[at // 100 % 10]}" for at in range(tokens - 1)),
    ]
    return "".join(f" {word}" for word in words)


def prefill_body(prompt: str, **more: Any) -> dict[str, Any]:
    """Returns a request body for a prefill engine."""
    return {"prompt": prompt, "max_tokens": 1, "min_tokens": 1, "stream": False, "kv_transfer_params": PREFILL} | more


def decode_body(prompt: str, params: Any, tokens: int = 8, **more: Any) -> dict[str, Any]:
    """Returns a request body for a decode engine."""
    return {"prompt": prompt, "max_tokens": tokens, "kv_transfer_params": params} | more
