"""Tail latency of routing decisions on a prompt of 32 KB, among 64 busy engines.

A virtual machine loses its processor some hundred times a second for some tens of microseconds. For
decisions of 40 µs that alone affects more than one in a hundred. Hence there are several figures:

- ``p99_seconds``: by the clock.
- ``routing_seconds``: the same of hashing, matching and picking, without reading the body and
  recording the choice.
- ``same_seconds``: the share that the code itself makes slow. There are ``RUNS`` equal runs from
  equal states, so the collector and the growth of a table fall on the same request. Each request
  counts with the median of its times.
- ``counting_seconds``: the p99 of a counting loop as long as the median decision, which shows the
  effect of the machine.
"""

import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fairlead.runtime import process_tuning
from fairlead_bench.gateway.routing_decision import (
    DecisionBench,
    DecisionTime,
    frozen_heap,
    instance_id,
    run_like_worker,
)
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest

SIZE = "32k"
INSTANCES = 64
BUSY_EACH = 4
"""Requests in flight on each, so that mean and least are worked out and not known to be nothing."""
RUNS = 5
BATCHES = 20
BATCH = 100
_CALIBRATIONS = 5


@dataclass(frozen=True, slots=True)
class DecisionTail:
    """Seconds; see above."""

    median_seconds: float
    p99_seconds: float
    routing_seconds: float
    same_seconds: float
    counting_seconds: float


@dataclass(frozen=True, slots=True)
class DecisionTails:
    """The tails of the same decisions. ``crowded``: with a noisy neighbour."""

    calm: DecisionTail
    crowded: DecisionTail


def measure_tail(*, blocks: int, seed: int) -> DecisionTail:
    return DecisionTail(**json.loads(run_like_worker("fairlead_bench.gateway.tail_latency", str(blocks), str(seed))))


def measure_run(*, blocks: int, seed: int, batches: int = BATCHES, batch: int = BATCH) -> DecisionTail:
    """Returns the figures of this process."""
    runs = [_run(blocks, seed, batches, batch) for _ in range(RUNS)]
    whole = [[one.whole for one in run] for run in runs]
    all_of_them = [seconds for run in whole for seconds in run]
    median = statistics.median(all_of_them)
    return DecisionTail(
        median,
        p99(all_of_them),
        p99([one.routing for run in runs for one in run]),
        p99([statistics.median(times) for times in zip(*whole, strict=True)]),
        _time_counting(median, RUNS * batches * batch),
    )


def p99(values: Sequence[float]) -> float:
    return sorted(values)[-(-99 * len(values) // 100) - 1]


def _run(blocks: int, seed: int, batches: int, batch: int) -> list[DecisionTime]:
    decider = DecisionBench(SIZE, instances=INSTANCES, blocks=blocks, seed=seed)
    _occupy(decider.router, random.Random(seed))
    decider.batch(batches, batch)  # unused code and tables are slow once in a gateway's life
    with frozen_heap():
        return [one for turn in range(batches) for one in decider.batch(turn, batch)]


def _occupy(router: ModelRouter, rng: random.Random) -> None:
    """Gives each instance requests of different lengths that wait for their first token."""
    for number in range(INSTANCES * BUSY_EACH):
        request = RouteRequest(f"busy-{number}", PrefixChain((), (), rng.getrandbits(64)), rng.uniform(100.0, 8_000.0))
        router.on_dispatch(request, instance_id(number % INSTANCES), 0.0)


def _time_counting(seconds: float, times: int) -> float:
    """Returns the p99 of a counting loop that usually takes ``seconds``."""
    far = 1_000
    for _ in range(_CALIBRATIONS):
        far = max(1, round(far * seconds / statistics.median([_count_to(far) for _ in range(100)])))
    return p99([_count_to(far) for _ in range(times)])


def _count_to(far: int) -> float:
    start = time.perf_counter()
    for _ in range(far):
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    process_tuning.relax_gc()  # as a worker
    print(json.dumps(asdict(measure_run(blocks=int(sys.argv[1]), seed=int(sys.argv[2])))))
