"""Histograms of requests for the mix: six kinds of traffic on the 10 × 10 grid, and tables in which
every type is best somewhere.

Lengths are log-normal, drawn with the seed. Medians and spreads follow the studies' figures where
there are any; the rest are round numbers. Azure's conversation hour has prompts of 1,020 tokens in
the middle and 4,083 at 95 %; its code hour has 2,048 and 28 on average.
"""

import math
import random
from collections.abc import Sequence

from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix import PoolCandidate
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

DRAWN = 20_000
LONGEST_PROMPT, LONGEST_OUTPUT = 16_000.0, 2_000.0
_LENGTHS = {
    "short chat": ((120.0, 1.2), (160.0, 0.9)),
    "documents": ((4_000.0, 0.8), (250.0, 0.6)),
    "conversation": ((1_020.0, 0.84), (150.0, 0.83)),
    "code": ((1_500.0, 0.79), (20.0, 0.82)),
}
"""Median and spread (of the logarithm) of prompts and of answers."""
WORKLOADS = {
    **{name: {name: 1.0} for name in _LENGTHS},
    "80 % short chat, 20 % documents": {"short chat": 0.8, "documents": 0.2},
    "a quarter of each": dict.fromkeys(_LENGTHS, 0.25),
}
"""Shares of requests by kind."""


def histogram(workload: str, grid: RequestShapeGrid, seed: int) -> tuple[float, ...]:
    """Returns the share of requests in each bucket."""
    draw = random.Random(f"{workload} {seed}")
    counts = [0] * grid.size
    for kind, share in WORKLOADS[workload].items():
        for _ in range(round(DRAWN * share)):
            counts[grid.bucket_index(*lengths(kind, draw))] += 1
    total = sum(counts)
    return tuple(count / total for count in counts)


def lengths(kind: str, draw: random.Random) -> tuple[float, float]:
    """Tokens of a prompt and of its answer."""
    (prompt, prompt_spread), (output, output_spread) = _LENGTHS[kind]
    long = min(LONGEST_PROMPT, draw.lognormvariate(math.log(prompt), prompt_spread))
    return long, min(LONGEST_OUTPUT, draw.lognormvariate(math.log(output), output_spread))


def traffic(workload: str, rate: float, count: int, seed: int) -> list[TraceRequest]:
    """Requests of these lengths that share nothing, at random moments, ``rate`` a second."""
    draw, at, block, found = random.Random(f"traffic {workload} {seed}"), 0.0, 0, []
    kinds = WORKLOADS[workload]
    for number in range(count):
        at += draw.expovariate(rate)
        (kind,) = draw.choices(list(kinds), list(kinds.values()))
        prompt, output = (max(1, round(tokens)) for tokens in lengths(kind, draw))
        blocks = -(-prompt // TRACE_BLOCK_TOKENS)
        found.append(TraceRequest(f"r{number}", at, prompt, output, tuple(range(block, block + blocks))))
        block += blocks
    return found


def skewed(grid: RequestShapeGrid, seed: int, types: int = 6) -> list[PoolCandidate]:
    """Returns types of rising price, each the cheapest in a band of shapes.

    It is cheaper by a factor of two or more. The bands of small types are those of short requests.
    """
    draw = random.Random(f"skewed {seed}")
    rows, columns = len(grid.prompt) - 1, len(grid.output) - 1
    costs = [0.5 * 1.6**place * draw.uniform(0.9, 1.1) for place in range(types)]
    cheapest = [divmod(index, columns) for index in range(grid.size)]
    owner = [(row + column) * types // (rows + columns - 1) for row, column in cheapest]
    throughput: list[list[float]] = [[] for _ in range(types)]
    for index in range(grid.size):
        prompt, output = grid.bucket_center(index)
        each = (
            (prompt + 20.0 * output) * draw.uniform(0.8, 1.2) * 4e-5
        )  # USD × seconds an hour that a request costs at best
        for place in range(types):
            worse = 1.0 if place == owner[index] else draw.uniform(2.0, 5.0)
            throughput[place].append(costs[place] / (each * worse))
    return [PoolCandidate(f"type-{place + 1}", costs[place], tuple(throughput[place])) for place in range(types)]


def dense(grid: RequestShapeGrid, draw: random.Random, types: int = 6) -> tuple[list[float], list[PoolCandidate]]:
    """Rates of all shapes and types that are best here and there by chance: hard to solve, like
    nothing in particular."""
    rates = [draw.expovariate(1.0) * 0.3 for _ in range(grid.size)]
    candidates = []
    for place in range(types):
        cost = 0.5 * 1.6**place
        each = [
            (prompt + 20.0 * output) * 1e-4 * draw.uniform(0.5, 2.0)
            for prompt, output in map(grid.bucket_center, range(grid.size))
        ]
        candidates.append(PoolCandidate(f"type-{place + 1}", cost, tuple(cost / one for one in each)))
    return rates, candidates


def homogeneous(rates: Sequence[float], candidates: Sequence[PoolCandidate]) -> float:
    """Returns USD per hour of the cheapest fleet of one type that serves all shapes.

    It is infinite if there is none.
    """
    costs = [math.inf]
    for one in candidates:
        pairs = [(rate, each) for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0]
        if all(each > 0.0 for _, each in pairs):
            load = sum([rate / each for rate, each in pairs])
            costs.append(math.ceil(load - 1e-9) * one.cost_per_hour)
    return min(costs)
