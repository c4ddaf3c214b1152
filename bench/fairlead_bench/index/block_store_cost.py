#!/usr/bin/env python3
"""Cost of the index's core: payloads to changes (decoder and block store), and bytes per block.

    python -m fairlead_bench.index.block_store_cost [--blocks N] [--size TOKENS]

The figures are processor time of one core; the best of three runs counts. Each of three streams has
N blocks (200,000) of 16 tokens:

- long prompts stored whole;
- prompts under eviction, with one removal per block, as vLLM announces them;
- decoding, with one event per block, each a batch of its own.

A million blocks over 16 instances follow, with the memory that the process grew by.
"""

import argparse
import gc
import json
import random
import sys
import time
from pathlib import Path

import msgspec

from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.decoder import decode_events

PER_PROMPT = 64
CACHED_BLOCKS = 200
pack = msgspec.msgpack.encode


def stored_event(
    draw: random.Random, size: int, count: int, hashes: list[int], parent: int | None
) -> dict[str, object]:
    """Returns an event as vLLM 0.32 writes it."""
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": [draw.randrange(150_000) for _ in range(size * count)],
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * count,
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def removed_event(value: int) -> dict[str, object]:
    """Returns the event of one removed block."""
    return {"type": "BlockRemoved", "block_hashes": [value], "medium": "GPU", "group_idx": 0}


def prompt_stream(blocks: int, size: int) -> list[bytes]:
    """Prompts of 64 blocks, one event each, eight to a batch."""
    draw = random.Random(1)
    events = []
    for _ in range(blocks // PER_PROMPT):
        events.append(stored_event(draw, size, PER_PROMPT, [draw.getrandbits(64) for _ in range(PER_PROMPT)], None))
    return [pack([0.0, events[at : at + 8], 0]) for at in range(0, len(events), 8)]


def eviction_stream(blocks: int, size: int) -> list[bytes]:
    """Yields a full cache: each prompt's 64 blocks push out 64 of an older one, tail first.

    Half of the blocks are removals.
    """
    draw = random.Random(2)
    held: list[list[int]] = []
    payloads = []
    for _ in range(CACHED_BLOCKS + (blocks // PER_PROMPT - CACHED_BLOCKS) // 2):
        hashes = [draw.getrandbits(64) for _ in range(PER_PROMPT)]
        events = []
        if len(held) >= CACHED_BLOCKS:
            events += [removed_event(value) for value in reversed(held.pop(0))]
        held.append(hashes)
        events.append(stored_event(draw, size, PER_PROMPT, hashes, None))
        payloads.append(pack([0.0, events, 0]))
    return payloads


def decoding_stream(blocks: int, size: int) -> list[bytes]:
    """Yields 32 answers that grow by one block in turn. Every block is an event and a batch."""
    draw = random.Random(3)
    last: list[int | None] = [None] * 32
    payloads = []
    for number in range(blocks):
        value = draw.getrandbits(64)
        payloads.append(pack([0.0, [stored_event(draw, size, 1, [value], last[number % 32])], 0]))
        last[number % 32] = None if number // 32 % 200 == 199 else value
    return payloads


def rate(payloads: list[bytes], blocks: int) -> tuple[float, float]:
    """Blocks per second of processor time: decoding alone, and decoding with the truth."""
    best = [0.0, 0.0]
    for _ in range(3):
        begun = time.process_time()
        for payload in payloads:
            decode_events(payload)
        best[0] = max(best[0], blocks / (time.process_time() - begun))
        truth = BlockStore(secret=b"bench")
        truth.attach("i", "default/tiny", 0.0)
        begun = time.process_time()
        for number, payload in enumerate(payloads):
            truth.apply("i", decode_events(payload), number * 0.01)
        best[1] = max(best[1], blocks / (time.process_time() - begun))
    return best[0], best[1]


def memory_growth(blocks: int, size: int) -> tuple[float, float]:
    """Returns (bytes of the tables, bytes that the process grew by) per block, for 16 instances."""
    payloads = prompt_stream(blocks // 16, size)
    truth = BlockStore()
    gc.collect()
    before = resident_bytes()
    for number in range(16):
        truth.attach(str(number), "default/tiny", 0.0)
        for payload in payloads:
            truth.apply(str(number), decode_events(payload), 1.0)
    gc.collect()
    return truth.bytes / truth.block_count, (resident_bytes() - before) / truth.block_count


def resident_bytes() -> int:
    """Bytes of this process in memory."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def main() -> int:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description="What the index's core costs.")
    parser.add_argument("--blocks", type=int, default=200_000, help="blocks of each stream (200,000)")
    parser.add_argument("--size", type=int, default=16, help="tokens of a block (16)")
    options = parser.parse_args()
    result: dict[str, object] = {"python": sys.version.split()[0], "block_size": options.size}
    for name, make in (("prompts", prompt_stream), ("eviction", eviction_stream), ("decoding", decoding_stream)):
        alone, whole = rate(make(options.blocks, options.size), options.blocks)
        result[name] = {"decode_blocks_per_s": round(alone), "decode_and_truth_blocks_per_s": round(whole)}
    tables, process = memory_growth(1_000_000, options.size)
    result["bytes_per_block"] = {"tables": round(tables, 1), "process": round(process, 1)}
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
