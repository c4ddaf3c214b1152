"""Tolerance for greedy answers that differ where the engine rates both tokens about equally."""

import math
from collections.abc import Sequence
from typing import Any

import httpx

from e2e.vllm.text_prompts import TextPrompt

MAX_TIE_NATS = (
    0.13  # two steps of a bfloat16 between 8 and 16, as large as this model's logits are; one is what is mostly seen
)
_BEST = 5


def first_difference(want: Sequence[int], got: Sequence[int]) -> int:
    """The first place with another token; -1 where one answer begins with the other."""
    return next((at for at, pair in enumerate(zip(want, got, strict=False)) if pair[0] != pair[1]), -1)


async def logprob_gap(client: httpx.AsyncClient, one: TextPrompt, want: Sequence[int], got: Sequence[int]) -> float:
    """Returns the nats by which the engine prefers ``want``'s token to ``got``'s where they differ.

    It is 0 for equal answers, and infinite where the token is not among the best few.
    """
    if list(want) == list(got):
        return 0.0
    at = first_difference(want, got)
    if at < 0:
        return math.inf
    chat = one.kind == "chat"
    more = {"logprobs": True, "top_logprobs": _BEST} if chat else {"logprobs": _BEST}
    fixed = {"stream": False, "max_tokens": at + 1, "return_tokens_as_token_ids": True, "cache_salt": "alike"}
    answer = await client.post(one.path, json={**one.body, **fixed, **more})
    told = answer.raise_for_status().json()["choices"][0]["logprobs"]
    best = _of_chat(told["content"][at]) if chat else told["top_logprobs"][at]
    return float(best.get(f"token_id:{want[at]}", math.inf)) - float(best.get(f"token_id:{got[at]}", -math.inf))


def _of_chat(place: dict[str, Any]) -> dict[str, float]:
    return {one["token"]: one["logprob"] for one in place["top_logprobs"]}
