"""The bodies of a hand-off as a careful client of two engines would write them."""

from typing import Any

PREFILL = {"do_remote_decode": True, "do_remote_prefill": False}


def make_prompt(tokens: int, first: str = "aaa") -> str:
    """A prompt that the simulated tokenizer cuts into so many tokens; another ``first`` word makes another prompt."""
    letters = "bcdfghjklm"
    words = [
        first,
        *(f"{letters[at % 10]}{letters[at // 10 % 10]}{letters[at // 100 % 10]}" for at in range(tokens - 1)),
    ]
    return "".join(f" {word}" for word in words)


def prefill_body(prompt: str, **more: Any) -> dict[str, Any]:
    """What a prefill engine is sent."""
    return {"prompt": prompt, "max_tokens": 1, "min_tokens": 1, "stream": False, "kv_transfer_params": PREFILL} | more


def decode_body(prompt: str, params: Any, tokens: int = 8, **more: Any) -> dict[str, Any]:
    """What a decode engine is sent."""
    return {"prompt": prompt, "max_tokens": tokens, "kv_transfer_params": params} | more
