"""A process with a replica of the index, as a gateway's supervisor has one.

    python -m fairlead_bench.index.mirror_process REDIS MARKS

It answers a line on standard input with a line of JSON: its blocks and marks, processor time and
memory. Its first line reports the first load of the mirror and the cost of that.
"""

import asyncio
import json
import os
import resource
import sys
import time
from typing import Any

from fairlead.runtime.clock import SystemClock
from fairlead_bench.index.event_streams import MODEL, marker_hash
from fairlead_kvstore.analysis.block_counts import count_blocks
from fairlead_kvstore.index.subscriber import IndexSubscriber
from fairlead_kvstore.redis.link import RedisLink
from fairlead_testing.processes import memory_bytes


async def main() -> None:
    """Answers until standard input ends."""
    clock = SystemClock()
    link = RedisLink(sys.argv[1], clock)
    marks = [marker_hash(int(seed)) for seed in sys.argv[2].split(",") if seed]
    link.start()
    await link.wait_connected()
    before = memory_bytes(os.getpid())
    loaded = asyncio.Event()
    feed = IndexSubscriber(link, clock, on_reload=lambda *_: loaded.set())
    begun, cpu = time.perf_counter(), time.process_time()
    feed.set_models([MODEL])
    feed.start()
    await loaded.wait()
    first = {"seconds": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "before": before}
    print(json.dumps(first | mirror_state(feed, marks)), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        found = mirror_state(feed, marks)
        if line.strip() == "census":
            mirror = feed.replica(MODEL)
            found["held"] = sum(block.blocks for block in count_blocks(mirror).values()) if mirror is not None else 0
        print(json.dumps(found), flush=True)
    await feed.stop()
    await link.stop()


def mirror_state(feed: IndexSubscriber, marks: list[int]) -> dict[str, Any]:
    """Returns the state of the replica."""
    mirror = feed.replica(MODEL)
    blocks = len(mirror) if mirror is not None else 0
    seen = sum(1 for mark in marks if mirror is not None and mirror.holders(mark))
    return {
        "blocks": blocks,
        "marks": seen,
        "words": feed.describe(MODEL),
        "loads": feed.load_count(MODEL),
        "cpu_now": time.process_time(),
        "memory": memory_bytes(os.getpid()),
        "most": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


if __name__ == "__main__":
    asyncio.run(main())
