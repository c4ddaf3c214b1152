"""The KV events of a running simulated engine, read as an index reads them, over HTTP and ZMQ."""

import asyncio
from typing import Any

import msgspec
import pytest
import zmq

from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.transcripts.replay import get_request, post_request, send_request

SWITCHES = ("--model", "tiny", "--block-size", "32", "--kv-events", "0", "--kv-replay", "0", "--lora", "poet=/models/p")
END = b"\xff" * 8


async def complete(engine: EngineProcess, tokens: list[int], **more: Any) -> dict[str, Any]:
    """Returns the usage of one completion of these tokens."""
    body = {"model": "tiny", "prompt": tokens, "max_tokens": 1, **more}
    usage: dict[str, Any] = (await send_request(engine.authority, post_request("/v1/completions", body))).json()[
        "usage"
    ]
    return usage


async def published_events(engine: EngineProcess) -> list[Any]:
    """Returns all events that the engine has published, in order."""
    sources = (await send_request(engine.authority, get_request("/kv_event_sources"))).json()
    return await asyncio.to_thread(_replayed, sources["0"]["replay_endpoint"])


def _replayed(endpoint: str) -> list[Any]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(endpoint)
    dealer.send_multipart([b"", bytes(8)])
    events: list[Any] = []
    while True:
        assert dealer.poll(30_000), "the replay broke off"
        _, _, number, payload = dealer.recv_multipart()
        if number == END:
            break
        events += msgspec.msgpack.decode(payload)[1]
    context.destroy(linger=0)
    return events


async def test_an_index_of_the_events_predicts_what_the_engine_finds_cached() -> None:
    async with engine_process(*SWITCHES) as engine:
        prompts = [
            list(range(start, start + length)) for start, length in ((100, 100), (100, 196), (100, 96), (900, 40))
        ]
        for prompt in prompts + prompts:
            known = {tuple(_path(await published_events(engine), key)) for key in _keys(await published_events(engine))}
            longest = max((size for size in range(32, len(prompt), 32) if tuple(prompt[:size]) in known), default=0)
            usage = await complete(engine, prompt)
            assert usage["prompt_tokens_details"]["cached_tokens"] == longest


def _keys(events: list[Any]) -> list[int]:
    return [key for event in events if event["type"] == "BlockStored" for key in event["block_hashes"]]


def _path(events: list[Any], key: int) -> list[int]:
    """Returns the tokens from the prompt's start to the end of this block, from events alone."""
    parents: dict[int, tuple[int | None, list[int]]] = {}
    for event in events:
        if event["type"] == "BlockStored":
            parent, size = event["parent_block_hash"], event["block_size"]
            for at, own in enumerate(event["block_hashes"]):
                parents[own] = (parent, event["token_ids"][at * size : (at + 1) * size])
                parent = own
    tokens: list[int] = []
    step: int | None = key
    while step is not None:
        step, block = parents[step]
        tokens = block + tokens
    return tokens


async def test_a_prompt_in_full_blocks_stores_its_last_block_again() -> None:
    async with engine_process(*SWITCHES) as engine:
        tokens = list(range(100, 196))
        await complete(engine, tokens)
        usage = await complete(engine, tokens)
        assert usage["prompt_tokens_details"]["cached_tokens"] == 64
        first, again = await published_events(engine)
        assert len(first["block_hashes"]) == 3
        assert again["block_hashes"] == first["block_hashes"][2:]
        assert again["parent_block_hash"] == first["block_hashes"][1]
        assert again["token_ids"] == tokens[64:]


@pytest.mark.parametrize("how", ["/reset_prefix_cache", "/sleep?level=1", "/pause?clear_cache=true"])
async def test_a_clear_is_published_only_with_the_next_request(how: str) -> None:
    async with engine_process(*SWITCHES) as engine:
        await complete(engine, list(range(40)))
        assert (await send_request(engine.authority, post_request(how))).status == 200
        await send_request(engine.authority, post_request("/wake_up"))
        assert [event["type"] for event in await published_events(engine)] == ["BlockStored"]
        usage = await complete(engine, list(range(40)))
        assert usage["prompt_tokens_details"]["cached_tokens"] == 0
        assert [event["type"] for event in await published_events(engine)] == [
            "BlockStored",
            "AllBlocksCleared",
            "BlockStored",
        ]


async def test_salt_adapter_and_session_are_published() -> None:
    async with engine_process(*SWITCHES) as engine:
        tokens = list(range(70))
        await complete(engine, tokens)
        await complete(engine, tokens, model="poet", cache_salt="tenant-8", session_id="S1")
        plain, salted = await published_events(engine)
        assert (salted["lora_id"], salted["lora_name"], salted["session_id"]) == (1, "poet", "S1")
        assert salted["extra_keys"] == [["poet", "tenant-8"], ["poet"]]
        assert not set(plain["block_hashes"]) & set(salted["block_hashes"])


async def test_a_mode_publishes_cached_blocks_again() -> None:
    async with engine_process(*SWITCHES) as engine:
        tokens = list(range(100))
        await complete(engine, tokens)
        usage = await complete(engine, tokens, vllm_xargs={"kv_cache_report_mode": "full"})
        assert usage["prompt_tokens_details"]["cached_tokens"] == 96
        first, again = await published_events(engine)
        assert (again["block_hashes"], again["parent_block_hash"]) == (first["block_hashes"], None)
