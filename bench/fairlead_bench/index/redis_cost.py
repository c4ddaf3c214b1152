#!/usr/bin/env python3
"""Cost of the index in Redis, per 100,000 blocks: the writer, Redis, a replica, and a match.

    python -m fairlead_bench.index.redis_cost [--blocks N] [--instances N] [--out FILE]

One real server, one block store with N instances (16), and a feed run step by step in this process.
The processor time of each is counted separately; that of Redis comes from INFO.

1. Prompts of 64 blocks are stored, then the same again under eviction.
2. The baseline is the layout of other indexes: one Redis hash per block with a field per instance.
   It is written in pipelines of the same batches and read by 128 HGETALLs.
3. A new mirror loads a million blocks: its time, its memory, and matches.
"""

import argparse
import asyncio
import gc
import json
import platform
import random
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from redis import Redis

from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_kvstore.blockstore.block_table import BlockTable
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored, Change
from fairlead_kvstore.blockstore.snapshot import table_parts, table_snapshot
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.blockstore.types import AdapterSnapshot, InstanceSnapshot
from fairlead_kvstore.index.recovery import InstanceCheckpoint, RecoveredIndex
from fairlead_kvstore.index.replica import IndexReplica
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.index.writer import IndexWriter
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.redis.valkey import Valkey

MODEL = "default/bench"
PER_PROMPT = 64
LIMITS = replace(Limits(), index_lease_seconds=600.0, redis_timeout_seconds=60.0)
"""A busy machine is measured slowly, not cut off."""
Row = dict[str, Any]


class RowsOwner:
    """An indexer that has rows and no engines: what a truth would hold after the changes."""

    def __init__(self, instances: int) -> None:
        self.blocks = {f"pod-{number}/8000/0": BlockTable() for number in range(instances)}

    def start_model(self, model_key: str, recovered: RecoveredIndex) -> None:
        """Does nothing."""

    def stop_model(self, model_key: str) -> None:
        """Does nothing."""

    def instances(self, model_key: str) -> Sequence[str]:
        """Returns every instance of the model."""
        return list(self.blocks)

    def shared_store_hints(self, model_key: str) -> Iterable[tuple[int, float]]:
        """Returns no hints: a single model has no shared store."""
        return ()

    def checkpoint(self, instance: str) -> InstanceCheckpoint:
        """Returns the checkpoint of an instance at this moment."""
        blocks = self.blocks[instance]
        kept = InstanceSnapshot(0.0, True, "bench", 0.0, [table_snapshot(blocks)], AdapterSnapshot())
        return InstanceCheckpoint(kept, dict(table_parts(blocks, 0)))

    def apply(self, changes: Iterable[Change]) -> None:
        """Records the changes that the block store made before it reports them."""
        for one in changes:
            if isinstance(one, BlocksStored):
                blocks = self.blocks[one.instance]
                for depth, own in enumerate(one.hashes):
                    blocks.add(own ^ 1, own, 0, depth, 0, 1, 0)
            elif isinstance(one, BlocksRemoved):
                blocks = self.blocks[one.instance]
                for own in one.hashes:
                    blocks.release(blocks.by_own.find(own))


def batches(names: Sequence[str], blocks: int, kept: int) -> list[list[Change]]:
    """Yields batches of eight prompts. Beyond ``kept`` prompts an instance removes its oldest."""
    draw = random.Random(1)
    held: dict[str, list[list[int]]] = {name: [] for name in names}
    found: list[list[Change]] = []
    for number in range(blocks // PER_PROMPT):
        name = names[number % len(names)]
        if not number % 8:
            found.append([])
        if len(held[name]) >= kept:
            found[-1].append(BlocksRemoved(name, StorageTier.GPU, held[name].pop(0)[::-1]))
        held[name].append([draw.getrandbits(64) for _ in range(PER_PROMPT)])
        found[-1].append(BlocksStored(name, StorageTier.GPU, 0, held[name][-1]))
    return found


def cpu(redis: Any) -> float:
    """Returns the processor seconds of the server."""
    info = redis.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def add_time(spent: dict[str, float], name: str, begun: float) -> None:
    """Adds the processor time since ``begun``."""
    spent[name] = spent.get(name, 0.0) + time.process_time() - begun


async def write_log(url: str, blocks: int, instances: int, kept: int) -> Row:
    """Measures the log with snapshots."""
    limits, clock = LIMITS, SystemClock()
    link = RedisLink(url, clock, limits=limits)
    link.start()
    await link.wait_connected()
    redis = Redis.from_url(url)
    redis.flushall()
    owner = RowsOwner(instances)
    writer, feed = (
        IndexWriter(link, owner, clock, holder="bench", limits=limits),
        IndexSubscriber(link, clock, limits=limits),
    )
    writer.set_models([MODEL])
    feed.set_models([MODEL])
    for _ in range(3):
        await writer.step()
        await feed.step()
    spent: dict[str, float] = {}
    made = batches(list(owner.blocks), blocks, kept)
    before = cpu(redis)
    for batch in made:
        owner.apply(batch)
        begun = time.process_time()
        writer.offer(MODEL, batch)
        await writer.step()
        add_time(spent, "writer", begun)
        begun = time.process_time()
        await feed.step()
        add_time(spent, "mirror", begun)
    changed = sum(len(one.hashes) for batch in made for one in batch if isinstance(one, BlocksStored | BlocksRemoved))
    share = 100_000 / changed
    row = {f"{name}_cpu_ms_per_100k": round(seconds * 1_000 * share, 1) for name, seconds in spent.items()}
    row["redis_cpu_ms_per_100k"] = round((cpu(redis) - before) * 1_000 * share, 1)
    mirror = feed.replica(MODEL)
    assert mirror is not None, feed.describe(MODEL)
    assert len(mirror) == sum(len(one) for one in owner.blocks.values()), "the mirror has followed"
    row["redis_bytes_per_block"] = round(redis.info("memory")["used_memory"] / len(mirror), 1)
    redis.close()
    await link.stop()
    return row


def write_hashes(url: str, blocks: int, instances: int, kept: int) -> Row:
    """Measures one hash per block.

    HSET adds a field per instance, HDEL removes it, and a lookup reads 128 of them.
    """
    redis = Redis.from_url(url)
    redis.flushall()
    names = [f"pod-{number}/8000/0" for number in range(instances)]
    made = batches(names, blocks, kept)
    before, begun = cpu(redis), time.process_time()
    changed = 0
    for batch in made:
        with redis.pipeline(transaction=False) as pipe:
            for one in batch:
                if isinstance(one, BlocksStored):
                    for own in one.hashes:
                        pipe.hset(f"b:{own:x}", one.instance, "0")
                elif isinstance(one, BlocksRemoved):
                    for own in one.hashes:
                        pipe.hdel(f"b:{own:x}", one.instance)
                changed += len(one.hashes) if isinstance(one, BlocksStored | BlocksRemoved) else 0
            pipe.execute()
    share = 100_000 / changed
    row: Row = {"writer_cpu_ms_per_100k": round((time.process_time() - begun) * 1_000 * share, 1)}
    row["redis_cpu_ms_per_100k"] = round((cpu(redis) - before) * 1_000 * share, 1)
    row["redis_bytes_per_block"] = round(redis.info("memory")["used_memory"] / redis.dbsize(), 1)
    last = [own for one in made[-1] + made[-2] if isinstance(one, BlocksStored) for own in one.hashes][:128]
    row["lookup_ms"] = round(fastest(lambda: _looked_up(redis, last), 20) * 1_000, 3)
    redis.close()
    return row


def _looked_up(redis: Any, owns: Sequence[int]) -> None:
    with redis.pipeline(transaction=False) as pipe:
        for own in owns:
            pipe.hgetall(f"b:{own:x}")
        pipe.execute()


async def load_cold_mirror(url: str, blocks: int, instances: int) -> Row:
    """Measures a mirror that starts after all changes."""
    limits, clock = LIMITS, SystemClock()
    link = RedisLink(url, clock, limits=limits)
    link.start()
    await link.wait_connected()
    owner = RowsOwner(instances)
    for batch in batches(list(owner.blocks), blocks, blocks):
        owner.apply(batch)
    writer, feed = (
        IndexWriter(link, owner, clock, holder="bench", limits=limits),
        IndexSubscriber(link, clock, limits=limits),
    )
    writer.set_models([MODEL])
    begun = time.monotonic()
    await writer.step()
    written = time.monotonic() - begun
    gc.collect()
    before, begun, used = resident_bytes(), time.monotonic(), time.process_time()
    feed.set_models([MODEL])
    await feed.step()
    taken, used = time.monotonic() - begun, time.process_time() - used
    mirror = feed.replica(MODEL)
    assert mirror is not None, feed.describe(MODEL)
    gc.collect()
    row = {
        "blocks": len(mirror),
        "written_down_s": round(written, 2),
        "cold_mirror_s": round(taken, 2),
        "cold_mirror_cpu_s": round(used, 2),
        "bytes_per_block": round((resident_bytes() - before) / len(mirror), 1),
    }
    await link.stop()
    return row


def matches() -> Row:
    """Returns the processor microseconds of a match of 128 blocks at 64 instances.

    It is the best of many. The index has a million other blocks.
    """
    draw = random.Random(2)
    shapes: dict[str, Callable[[int], int]] = {
        "all hold it": lambda _: 128,
        "a common head, two hold it all": lambda number: 128 if number < 2 else 32,
        "eight depths": lambda number: 16 * (number % 8 + 1),
        "64 depths": lambda number: 2 * (number + 1),
    }
    chain = [draw.getrandbits(64) for _ in range(128)]
    found: Row = {}
    for name, depth in shapes.items():
        mirror = IndexReplica()
        for number in range(64):
            others = array("Q", [draw.getrandbits(64) for _ in range(15_625)])
            mirror.load_rows(f"pod-{number}", others, array("I", [1]) * len(others))
            mirror.apply([BlocksStored(f"pod-{number}", StorageTier.GPU, 0, chain[: depth(number)])])
        found[name] = round(fastest(lambda mirror=mirror: mirror.match(chain), 3_000) * 1e6, 1)  # type: ignore[misc]
    return found


def fastest(work: Callable[[], object], times: int) -> float:
    """Returns the least processor seconds of one call."""
    least = 1e9
    for _ in range(times):
        begun = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - begun)
    return least


def resident_bytes() -> int:
    """Bytes of this process in memory."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def main() -> int:
    """Measures, prints and writes one JSON object."""
    parser = argparse.ArgumentParser(description="What the index in Redis costs.")
    parser.add_argument("--blocks", type=int, default=200_000, help="blocks that are stored (200,000)")
    parser.add_argument("--instances", type=int, default=16, help="instances (16)")
    parser.add_argument("--cold", type=int, default=1_000_000, help="blocks of the cold mirror (a million)")
    parser.add_argument("--out", type=Path, help="where the JSON goes, too")
    options = parser.parse_args()
    result: Row = {"python": platform.python_version(), "machine": platform.machine(), "blocks": options.blocks}
    with tempfile.TemporaryDirectory() as folder:
        server = Valkey(Path(folder))
        server.start()
        try:
            for name, kept in (("growing", options.blocks), ("eviction", 50)):
                result[name] = {
                    "log_with_snapshots": asyncio.run(write_log(server.url, options.blocks, options.instances, kept)),
                    "hash_per_block": write_hashes(server.url, options.blocks, options.instances, kept),
                }
            with Redis.from_url(server.url) as redis:
                redis.flushall()
            result["cold"] = asyncio.run(load_cold_mirror(server.url, options.cold, options.instances))
        finally:
            server.kill()
    result["match_us"] = matches()
    text = json.dumps(result, indent=2)
    print(text)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
