"""Payloads of KV events, generated while they are sent, and equal for equal seeds.

    prompts     prompts of 64 blocks, one event each, eight to a batch: a cache that fills
    eviction    a full cache: each prompt pushes out an older one, tail first, one event per
                removal, as vLLM announces them; nearly half of the blocks are removals
    decoding    32 answers at once, blocks of 16 tokens: each step fills two, one batch
    alone       the same with every block in a batch of its own: the most expensive stream

Events are those of vLLM 0.32. The last one of a stream is a prompt of one block, the *mark*, which
shows the end of the stream to other processes.
"""

import random
import time
from array import array
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from fairlead_kvstore.blockstore.block_hash import block_hashes, chain_root

PER_PROMPT: Final = 64
CACHED_BLOCKS: Final = 200
SIZE: Final = 16
MODEL: Final = "default/tiny"
_ANSWERS: Final = 32
_VOCABULARY: Final = 0x1_FFFF
_pack = msgspec.msgpack.Encoder().encode

Payload = tuple[bytes, int]
"""A batch, and how many blocks it stores or removes."""


def payloads(kind: str, blocks: int, seed: int) -> Iterator[Payload]:
    """Yields payloads until so many blocks were stored or removed, then the mark."""
    draw = random.Random(seed)
    sent = 0
    for payload, count in {
        "prompts": prompt_stream,
        "eviction": eviction_stream,
        "decoding": decoding_stream,
        "alone": single_stream,
    }[kind](draw):
        yield payload, count
        sent += count
        if sent >= blocks:
            break
    yield encode_batch([stored_event(marker_tokens(seed), [draw.getrandbits(64)], None)]), 1


def marker_tokens(seed: int) -> list[int]:
    return [200_000 + seed] * SIZE


def marker_hash(seed: int) -> int:
    return block_hashes(chain_root(MODEL), marker_tokens(seed), SIZE)[0]


def stored_event(tokens: list[int], hashes: list[int], parent: int | None) -> dict[str, Any]:
    """Returns one event that stores blocks."""
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": len(tokens) // len(hashes),
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(hashes),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def removed_event(value: int) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [value], "medium": "GPU", "group_idx": 0}


def encode_batch(events: list[dict[str, Any]]) -> bytes:
    return _pack([time.time(), events, 0])


def prompt_stream(draw: random.Random) -> Iterator[Payload]:
    while True:
        yield encode_batch([_prompt(draw)[0] for _ in range(8)]), 8 * PER_PROMPT


def eviction_stream(draw: random.Random) -> Iterator[Payload]:
    """Yields the events of a cache that is full after its first 200 prompts."""
    held: list[list[int]] = []
    while True:
        event, hashes = _prompt(draw)
        events = [removed_event(value) for value in reversed(held.pop(0))] if len(held) >= CACHED_BLOCKS else []
        held.append(hashes)
        yield encode_batch([*events, event]), len(events) + PER_PROMPT


def decoding_stream(draw: random.Random) -> Iterator[Payload]:
    for events in _steps(draw, 2):
        yield encode_batch(events), len(events)


def single_stream(draw: random.Random) -> Iterator[Payload]:
    for events in _steps(draw, 1):
        yield encode_batch(events), 1


def _steps(draw: random.Random, each: int) -> Iterator[list[dict[str, Any]]]:
    last: list[int | None] = [None] * _ANSWERS
    number = 0
    while True:
        events = []
        for _ in range(each):
            value, place = draw.getrandbits(64), number % _ANSWERS
            events.append(stored_event(_tokens(draw, 1), [value], last[place]))
            last[place] = None if number // _ANSWERS % 200 == 199 else value
            number += 1
        yield events


def _prompt(draw: random.Random) -> tuple[dict[str, Any], list[int]]:
    hashes = [draw.getrandbits(64) for _ in range(PER_PROMPT)]
    return stored_event(_tokens(draw, PER_PROMPT), hashes, None), hashes


def _tokens(draw: random.Random, blocks: int) -> list[int]:
    return [value & _VOCABULARY for value in array("I", draw.randbytes(4 * SIZE * blocks))]
