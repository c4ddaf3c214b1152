"""Throughput of shapes on a simulated engine: the table that Mélange measures on real ones.

    python -m fairlead_bench.mix.throughput_tables [--seed 1] [--processes 2]

Writes bench/fairlead_bench/mix/tables/measured.json.

There is a line for each accelerator, each shape of the grid and each SLO. All requests of a shape
have the middle of its bucket. One engine of the accelerator's step profile serves Poisson arrivals;
every step is computed exactly (``fairlead_sim.autoscaling.plant_engine``). The throughput is
the largest rate at which the SLO's share of requests meets it.

All rates see the same arrivals, drawn with the seed and stretched. Requests that arrive while the
engine fills up are served and not judged. The rate is bounded by what an engine finishes under
overload: ten thousand requests of a few tokens are over within seconds, too soon for a growing
queue to show.

``tabled`` reads the table by a digest of the inputs of each line, so that no line of another
profile is taken.

Step profiles from public peak figures alone, and the throughput of accelerators by shape.

The throughput is that of the knee by which the autoscaler sizes. ``throughput_tables.py`` has that
of simulated engines with the same profiles.

The model has P weights and K bytes of keys and values per token. The accelerator has M bytes of
memory. It does F operations and moves B bytes a second, each times the share that engines reach:

    p = 2·P / F                   two operations per weight and token
    w = 2·P / B                   BF16 weights, read once a step
    c = K / B                     a resident token's keys and values, read once a step
    q = 4·layers·hidden / F       scores and values of one pair of tokens, two operations each
    KV tokens = (M·share - 2·P - reserved) / K

Chunks of prefill are 2,048 tokens below 40 GB and 8,192 from there on, as vLLM's defaults go by
memory.

Histograms of requests for the mix: six kinds of traffic on the 10 × 10 grid, and tables in which
every type is best somewhere.

Lengths are log-normal, drawn with the seed. Medians and spreads follow the studies' figures where
there are any; the rest are round numbers. Azure's conversation hour has prompts of 1,020 tokens in
the middle and 4,083 at 95 %; its code hour has 2,048 and 28 on average.
"""

import argparse
import json
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role, SloTargets
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix import PoolCandidate, throughput
from fairlead_sim.autoscaling.closed_loop import is_within_slo
from fairlead_sim.autoscaling.plant_engine import AggregatedEngine, StepTotals
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

ITL_SECONDS = (0.12, 0.04)
ACCELERATORS_FILE = Path(__file__).with_name("accelerators.yaml")

FILE = Path(__file__).with_name("tables") / "measured.json"

PRECISION = 0.02
"""The rate is found to this share of itself."""
BUSIEST = 0.97
"""The highest tried rate, as a share of an engine's saturated rate."""
_SLOWEST = 1 / 64
"""The lowest tried rate, as a share of the knee."""

_SLOW_MEMORY: Final = ("cpu_token_seconds", "disk_token_seconds", "store_token_seconds")

DRAWN = 20_000

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


@dataclass(frozen=True, slots=True)
class PricedProfile:
    """An accelerator of a price list: its profile and USD per hour."""

    profile: EngineProfile
    cost_per_hour: float


def price_lists() -> Mapping[str, list[PricedProfile]]:
    """Returns the price lists of the committed figures, by name."""
    read, known = _read(), profiles()
    return {
        name: [PricedProfile(known[accelerator], price) for accelerator, price in prices.items()]
        for name, prices in read["prices"].items()
    }


def profiles() -> dict[str, EngineProfile]:
    """Returns the step profiles of all accelerators, by name."""
    read = _read()
    return {
        accelerator["name"]: profile(accelerator, read["model"], read["reached"])
        for accelerator in read["accelerators"]
    }


def _read() -> Any:
    return yaml.safe_load(ACCELERATORS_FILE.read_text(encoding="utf-8"))


def profile(one: Mapping[str, Any], model: Mapping[str, Any], reached: Mapping[str, Any]) -> EngineProfile:
    """Returns the step profile of one accelerator."""
    weights = model["weights_billion"] * 1e9
    operations = one["tflops"] * 1e12 * reached["compute"]
    bandwidth = one["gbps"] * 1e9 * reached["bandwidth"]
    free = one["gb"] * 1e9 * reached["memory"] - 2.0 * weights - reached["reserved_gb"] * 1e9
    return EngineProfile(
        one["name"],
        prefill_token_seconds=2.0 * weights / operations,
        attention_seconds=4.0 * model["layers"] * model["hidden"] / operations,
        weights_seconds=2.0 * weights / bandwidth,
        step_seconds=reached["step_seconds"],
        sequence_seconds=reached["sequence_seconds"],
        resident_token_seconds=model["kv_bytes_per_token"] / bandwidth,
        kv_tokens=int(free / model["kv_bytes_per_token"]),
        max_sequences=256,
        step_tokens=2_048 if one["gb"] < 40 else 8_192,
    )


def objectives(itl_seconds: float) -> SloTargets:
    """Returns the SLO: first tokens within 3 s, and 0.5 s more per 1,000 prompt tokens."""
    return SloTargets(target=0.99, ttft_seconds=3.0, ttft_per_kilo_token_seconds=0.5, itl_seconds=itl_seconds)


def throughput_at_knee(
    priced: Sequence[PricedProfile], grid: RequestShapeGrid, objectives: SloTargets
) -> list[PoolCandidate]:
    """Returns every accelerator with its throughput of every shape at the core's knee.

    A shape is the middle of its bucket.
    """
    shapes = [grid.bucket_center(index) for index in range(grid.size)]
    return [
        PoolCandidate(
            one.profile.name,
            one.cost_per_hour,
            tuple(throughput(one.profile, prompt, output, objectives) for prompt, output in shapes),
        )
        for one in priced
    ]


REQUESTS, FILLING = 10_000, 2_000
"""Number of arrivals, and of the first ones, which are not judged."""


def serve(profile: EngineProfile, prompt: int, output: int, arrivals: Sequence[float]) -> RequestTable:
    """Returns the results of requests of one shape on one engine."""
    count = len(arrivals)
    book = RequestTable(ArrivalTrace(arrivals, [prompt] * count, [output] * count), float("inf"))
    engine = AggregatedEngine(profile, Role.SERVE, book, StepTotals((), ()))
    for request, arrival in enumerate(arrivals):
        engine.advance(arrival)
        book.sent[request] = arrival
        engine.add(request, arrival)
    engine.advance(float("inf"))
    return book


def slo_attainment(
    profile: EngineProfile, prompt: int, output: int, rate: float, objectives: SloTargets, seed: int
) -> float:
    """Returns the share of the judged requests within the SLO, at ``rate`` a second."""
    draw, at, arrivals = Random(seed), 0.0, []
    for _ in range(REQUESTS):
        at += draw.expovariate(1.0) / rate
        arrivals.append(at)
    book = serve(profile, prompt, output, arrivals)
    limit = objectives.ttft_limit_seconds(prompt)
    ttft = float("inf") if limit is None else limit
    itl = float("inf") if objectives.itl_seconds is None else objectives.itl_seconds
    return sum([is_within_slo(book, request, ttft, itl) for request in range(FILLING, REQUESTS)]) / (REQUESTS - FILLING)


def saturated_rate(profile: EngineProfile, prompt: int, output: int) -> float:
    """Requests per second that an engine finishes where all are there from the start; the first and
    the last quarter left out."""
    ends = sorted(serve(profile, prompt, output, [0.0] * REQUESTS).end)
    quarter = REQUESTS // 4
    return (REQUESTS - 2 * quarter) / (ends[-quarter] - ends[quarter])


def measure_shape(profile: EngineProfile, shape: tuple[float, float], objectives: SloTargets, seed: int) -> float:
    """Returns the largest rate of a shape (prompt and answer tokens) that keeps the SLO, or 0."""
    knee = throughput(profile, *shape, objectives)
    if knee <= 0.0:
        return 0.0
    prompt, output = (max(1, round(tokens)) for tokens in shape)
    most = BUSIEST * saturated_rate(profile, prompt, output)

    def keeps(rate: float) -> bool:
        return slo_attainment(profile, prompt, output, rate, objectives, seed) >= objectives.target

    low = min(knee, most)
    if keeps(low):
        high = low
        while keeps(high):
            if high >= most:
                return most
            low, high = high, min(most, high * 1.5)
    else:
        high = low
        while not keeps(low):
            low, high = low / 1.5, low
            if low < knee * _SLOWEST:
                return 0.0
    while high / low > 1.0 + PRECISION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def digest(profile: EngineProfile, objectives: SloTargets) -> str:
    """Returns a short digest of the values that a row was measured with, without their names.

    The period of the SLO and loads from slower memory are none of them: they change no throughput
    here.
    """
    costs = [getattr(profile, field.name) for field in fields(profile) if field.name not in _SLOW_MEMORY]
    targets = [getattr(objectives, field.name) for field in fields(objectives) if field.name != "period_seconds"]
    values = [*costs, *targets, *astuple(RequestShapeGrid())]
    return sha256(repr([*values, REQUESTS, FILLING, PRECISION, BUSIEST]).encode()).hexdigest()[:16]


def row(profile: EngineProfile, objectives: SloTargets, seed: int) -> list[float]:
    """Returns the throughput of all shapes on one accelerator, to three digits."""
    grid = RequestShapeGrid()
    found = [measure_shape(profile, grid.bucket_center(index), objectives, seed) for index in range(grid.size)]
    return [float(f"{rate:.3g}") for rate in found]


def rows(
    profiles: Sequence[EngineProfile], wanted: Sequence[SloTargets], seed: int, processes: int
) -> Iterator[dict[str, object]]:
    """Yields the lines of the table as they are done."""
    pairs = list(product(profiles, wanted))
    with ProcessPoolExecutor(processes) as pool:
        futures = [pool.submit(row, profile, objectives, seed) for profile, objectives in pairs]
        for (profile, objectives), future in zip(pairs, futures, strict=True):
            yield {
                "accelerator": profile.name,
                "itl_seconds": objectives.itl_seconds,
                "digest": digest(profile, objectives),
                "requests_per_second": future.result(),
            }


def load(file: Path = FILE) -> dict[str, tuple[float, ...]]:
    table = json.loads(file.read_text(encoding="utf-8"))
    return {one["digest"]: tuple(one["requests_per_second"]) for one in table["rows"]}


def tabled_throughput(priced: Sequence[PricedProfile], wanted: SloTargets) -> list[PoolCandidate]:
    """Returns every accelerator with its throughput of every shape, from the committed table.

    Raises KeyError if the table was measured with another profile, SLO or method.
    """
    table = load()
    return [PoolCandidate(one.profile.name, one.cost_per_hour, table[digest(one.profile, wanted)]) for one in priced]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures all accelerators of the committed figures and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args(arguments)
    wanted = [objectives(itl) for itl in ITL_SECONDS]
    lines = []
    for one in rows(list(profiles().values()), wanted, asked.seed, asked.processes):
        print(one["accelerator"], one["itl_seconds"], flush=True)
        lines.append(json.dumps(one))
    FILE.parent.mkdir(exist_ok=True)
    body = ",\n".join(lines)
    FILE.write_text(f'{{"seed": {asked.seed}, "rows": [\n{body}\n]}}\n', encoding="utf-8")
    return 0


LONGEST_PROMPT, LONGEST_OUTPUT = 16_000.0, 2_000.0


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
    for candidate in candidates:
        pairs = [(rate, each) for rate, each in zip(rates, candidate.throughput, strict=True) if rate > 0.0]
        if all(each > 0.0 for _, each in pairs):
            load = sum([rate / each for rate, each in pairs])
            costs.append(math.ceil(load - 1e-9) * candidate.cost_per_hour)
    return min(costs)


if __name__ == "__main__":
    sys.exit(main())
