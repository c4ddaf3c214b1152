"""The same changes in the layout that comes to mind first: one Redis hash for each block, a field
for each instance that holds it.

    python -m fairlead_bench.index.per_block_hash_baseline REDIS KIND BLOCKS SEED COUNT

Follows COUNT streams in turn, as an indexer does, and writes what changed in pipelines of 20 ms or
32,768 blocks, whichever is less. Then loads a mirror from what is there: SCAN, and HGETALL by the
thousand. Prints one line of JSON.
"""

import json
import sys
import time

from redis import Redis

from fairlead_bench.index.event_streams import MODEL, payloads
from fairlead_kvstore.blockstore.changes import BlocksRemoved, BlocksStored
from fairlead_kvstore.blockstore.storage_tiers import INSTANCE_TIERS
from fairlead_kvstore.blockstore.store import BlockStore
from fairlead_kvstore.events.decoder import decode_events
from fairlead_kvstore.index.replica import IndexReplica

KEY = b"naive:{default/tiny}:"
BATCH_SIZE = 32_768
READ_BATCH_SIZE = 1_000


def main() -> None:
    """Writes, then reads."""
    redis: Redis = Redis.from_url(sys.argv[1])
    kind, blocks, seed, count = sys.argv[2], *map(int, sys.argv[3:6])
    truth = BlockStore()
    streams = []
    for number in range(count):
        truth.attach(f"e-{number}", MODEL, 0.0)
        streams.append((f"e-{number}", list(payloads(kind, blocks // count, seed + number))))
    changed = sum(some for _, stream in streams for _, some in stream)
    begun = time.process_time()
    _write(redis, truth, streams)
    written = time.process_time() - begun
    wall, begun = time.perf_counter(), time.process_time()
    mirror = _load(redis)
    print(
        json.dumps(
            {
                "changed": changed,
                "cpu": written,
                "blocks": len(mirror),
                "load_seconds": time.perf_counter() - wall,
                "load_cpu": time.process_time() - begun,
            }
        )
    )


def _write(redis: "Redis", truth: BlockStore, streams: list[tuple[str, list[tuple[bytes, int]]]]) -> None:
    pipe, waiting, last = redis.pipeline(transaction=False), 0, time.monotonic()
    for payloads_of_all in zip(*(stream for _, stream in streams), strict=False):
        for (name, _), (payload, _) in zip(streams, payloads_of_all, strict=True):
            for change in truth.apply(name, decode_events(payload), 0.0):
                if isinstance(change, BlocksStored):
                    for own in change.hashes:
                        pipe.hset(KEY + b"%x" % own, name, change.tier.value)
                elif isinstance(change, BlocksRemoved):
                    for own in change.hashes:
                        pipe.hdel(KEY + b"%x" % own, name)
                else:
                    continue
                waiting += len(change.hashes)
        if waiting >= BATCH_SIZE or time.monotonic() - last > 0.02:
            pipe.execute()
            pipe, waiting, last = redis.pipeline(transaction=False), 0, time.monotonic()
    pipe.execute()


def _load(redis: "Redis") -> IndexReplica:
    mirror = IndexReplica()
    names: list[bytes] = []
    for name in redis.scan_iter(match=KEY.decode().replace("{", "[{]") + "*", count=READ_BATCH_SIZE):
        names.append(name)
        if len(names) == READ_BATCH_SIZE:
            _take(redis, mirror, names)
            names = []
    _take(redis, mirror, names)
    return mirror


def _take(redis: "Redis", mirror: IndexReplica, names: list[bytes]) -> None:
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hgetall(name)
    for name, held in zip(names, pipe.execute(), strict=True):
        own = int(name[len(KEY) :], 16)
        mirror.apply(
            [BlocksStored(instance.decode(), INSTANCE_TIERS[int(tier)], 0, [own]) for instance, tier in held.items()]
        )


if __name__ == "__main__":
    main()
