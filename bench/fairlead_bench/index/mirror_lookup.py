"""The mirror's answers alone: 128 blocks and 64 instances, in a mirror with a million other blocks.
Processor time, one core."""

import random
import time
from typing import Final

from fairlead_kvstore.blockstore.changes import BlocksStored
from fairlead_kvstore.blockstore.storage_tiers import StorageTier
from fairlead_kvstore.index.replica import IndexReplica

BLOCKS: Final = 128
INSTANCES: Final = 64
_OTHERS: Final = 1_000_000
_CALLS: Final = 2_000
_ROUNDS: Final = 15


def measure_matches(seed: int) -> dict[str, float]:
    """Microseconds of one answer by how the prompt is held: the best of 15 rounds of 2,000."""
    draw = random.Random(seed)
    mirror = IndexReplica()
    names = [f"e-{number}/8000/0" for number in range(INSTANCES)]
    for name in names:
        mirror.apply(
            [BlocksStored(name, StorageTier.GPU, 0, [draw.getrandbits(64) for _ in range(_OTHERS // INSTANCES)])]
        )
    chains = [[draw.getrandbits(64) for _ in range(BLOCKS)] for _ in range(4)]
    everywhere, depths, nobody, slower = chains
    for name in names:
        mirror.apply([BlocksStored(name, StorageTier.GPU, 0, everywhere)])
        mirror.apply([BlocksStored(name, StorageTier.GPU, 0, depths[: draw.randrange(1, BLOCKS + 1)])])
    found = {
        "all of it everywhere": _fastest_round(mirror, everywhere),
        "a random depth on each": _fastest_round(mirror, depths),
        "a random depth on each, for the first time": _fastest_round(mirror, depths, first=True),
        "nobody": _fastest_round(mirror, nobody),
    }
    for name in names:
        half = draw.randrange(1, BLOCKS)
        mirror.apply(
            [
                BlocksStored(name, StorageTier.GPU, 0, slower[:half]),
                BlocksStored(name, StorageTier.CPU, 0, slower[half:]),
            ]
        )
    found["in the GPU, then in CPU memory"] = _fastest_round(mirror, slower)
    found["in the GPU, then in CPU memory, for the first time"] = _fastest_round(mirror, slower, first=True)
    return found


def _fastest_round(mirror: IndexReplica, chain: list[int], *, first: bool = False) -> float:
    """Returns the fastest round. ``first`` measures as if the chain had changed since the last
    lookup."""
    match, best, kept = mirror.match, float("inf"), mirror._chain_results
    for _ in range(_ROUNDS):
        begun = time.process_time()
        for _ in range(_CALLS):
            if first:
                kept.clear()
            match(chain)
        best = min(best, (time.process_time() - begun) / _CALLS)
    return best * 1e6
