"""A process that reads engines' KV events as a gateway's supervisor does.

    python -m fairlead_bench.index.reader_process REDIS FLEET MARKS

It begins with what an indexer left in Redis. It answers a line on standard input with a line of
JSON: its blocks and marks, processor time and memory. Its first line comes when it has read all
that engines replay, with the cost of that.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairlead.errors import Unavailable
from fairlead.fleet.file.format import parse_fleet_file
from fairlead.fleet.model import Fleet, Instance
from fairlead.limits import Limits
from fairlead.runtime import process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead_bench.index.event_streams import MODEL, marker_hash
from fairlead_kvstore.blockstore.changes import Change
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.fleet_reader import FleetReader
from fairlead_kvstore.index.format import secret_fingerprint
from fairlead_kvstore.index.recovery import RecoveredIndex, recover_index
from fairlead_kvstore.reader.reader_context import ReaderRuntime
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.processes import memory_bytes
from fairlead_testing.waiting import wait_until


class NoSink:
    """A consumer that drops all changes."""

    def offer(self, model_key: str, changes: Sequence[Change], batches: int = 1) -> None:
        """Does nothing."""


async def _no_answer(_: Instance, path: str) -> bytes:
    raise Unavailable(path)


def _read_fleet(path: Path) -> Fleet:
    return parse_fleet_file(path.read_text(), file=path.name)


async def main() -> None:
    """Answers until standard input ends."""
    clock = SystemClock()
    link = RedisLink(sys.argv[1], clock)
    marks = [marker_hash(int(seed)) for seed in sys.argv[3].split(",") if seed]
    link.start()
    await link.wait_connected()
    process_tuning.relax_gc()
    before = memory_bytes(os.getpid())
    store = BlockStore()
    runtime = ReaderRuntime(asyncio.get_running_loop(), clock, random.random, Limits())
    reader = FleetReader(store, NoSink(), _no_answer, runtime, leased=True)
    reader.update_fleet(_read_fleet(Path(sys.argv[2])))
    begun, cpu, now = time.perf_counter(), time.process_time(), clock.now()
    found = await recover_index(link, MODEL, clock.wall() - now, fingerprint=secret_fingerprint(b""))
    reader.start_model(MODEL, found or RecoveredIndex())
    restored = {"restored": store.block_count, "restored_seconds": time.perf_counter() - begun}
    await wait_until(
        lambda: all(status.connected and not status.replaying for status in reader.instance_statuses().values())
    )
    first = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "before": before}
    print(json.dumps(first | restored | _state(store, marks)), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(_state(store, marks)), flush=True)
    await reader.close()
    await link.stop()


def _state(store: BlockStore, marks: Sequence[int]) -> dict[str, Any]:
    blocks = store.model(MODEL)
    seen = sum(any(blocks.tiers(instance, mark) for instance in blocks.instances()) for mark in marks)
    return {
        "blocks": store.block_count,
        "marks": seen,
        "cpu_now": time.process_time(),
        "memory": memory_bytes(os.getpid()),
    }


if __name__ == "__main__":
    asyncio.run(main())
