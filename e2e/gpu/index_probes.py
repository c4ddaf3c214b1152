"""The index compared with the engines: what it says that they have cached, and what they say
themselves.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any, Final

import httpx

from e2e.gpu.control_plane import SECRET, ControlPlane
from e2e.gpu.engines import BLOCK_TOKENS, MODEL, MODEL_KEY, EngineGroup
from e2e.vllm.observation.index_under_test import blocks
from e2e.vllm.report import Numbers, require
from fairlead.runtime.clock import SystemClock
from fairlead_cli.index.prefix_match import TokenPrompt
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.waiting import wait_until

_SETTLE_SECONDS: Final = 0.1
"""An event reaches the index within some milliseconds of a step."""
_LISTED: Final = 20


async def compare_index(
    group: EngineGroup, plane: ControlPlane, prompts: Sequence[Sequence[dict[str, str]]]
) -> Numbers:
    """Sends chats by their token ids, one at a time, to one engine after another.

    Each time, the index says first what the engine has cached of it; then the engine says it. The
    index is followed as by a gateway. Raises CheckFailed unless both agree about every prompt.
    """
    link = RedisLink(plane.redis_url, SystemClock())
    feed = IndexSubscriber(link, SystemClock())
    feed.set_models([MODEL_KEY])
    link.start()
    feed.start()
    rows: list[dict[str, Any]] = []
    try:
        await wait_until(lambda: feed.replica(MODEL_KEY) is not None)
        async with httpx.AsyncClient(timeout=60.0) as client:
            for engine, messages in zip(itertools.cycle(group.engines.values()), prompts, strict=False):
                tokens = await _tokenize(client, engine.url, messages)
                chain = TokenPrompt(tokens).hashes(MODEL_KEY, BLOCK_TOKENS, SECRET.encode())
                await asyncio.sleep(_SETTLE_SECONDS)
                known = blocks(feed.replica(MODEL_KEY), engine.name, chain, StorageTier.GPU) * BLOCK_TOKENS
                # An engine computes at least the last token of a prompt.
                expected = min(known, (len(tokens) - 1) // BLOCK_TOKENS * BLOCK_TOKENS)
                reported = await cached_tokens(client, engine.url, tokens)
                rows.append({"engine": engine.name, "prompt": len(tokens), "index": expected, "engine_says": reported})
    finally:
        await feed.stop()
        await link.stop()
    wrong = [row for row in rows if row["index"] != row["engine_says"]]
    numbers: Numbers = {
        "probes": len(rows),
        "exact": len(rows) - len(wrong),
        "index_more": sum(row["index"] > row["engine_says"] for row in rows),
        "index_less": sum(row["index"] < row["engine_says"] for row in rows),
        "with_hits": sum(row["engine_says"] > 0 for row in rows),
        "cached_tokens": sum(row["engine_says"] for row in rows),
        "first_wrong": wrong[:_LISTED],
    }
    require(numbers["with_hits"], "no probe hit a cache, so nothing was shown", numbers)
    require(not wrong, "the index is not what the engines have", numbers)
    return numbers


async def cached_tokens(client: httpx.AsyncClient, url: str, tokens: Sequence[int]) -> int:
    """Sends a prompt to an engine; returns the cached tokens that it reports."""
    body = {"model": MODEL, "prompt": tokens, "max_tokens": 1, "temperature": 0}
    usage = (await client.post(f"{url}/v1/completions", json=body)).raise_for_status().json()["usage"]
    return int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


async def _tokenize(client: httpx.AsyncClient, url: str, messages: Sequence[dict[str, str]]) -> list[int]:
    answer = await client.post(f"{url}/tokenize", json={"model": MODEL, "messages": messages})
    tokens: list[int] = answer.raise_for_status().json()["tokens"]
    return tokens
