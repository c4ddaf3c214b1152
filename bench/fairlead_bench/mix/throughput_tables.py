"""Throughput of shapes on a simulated engine: the table that Mélange measures on real ones.

    python -m fairlead_bench.mix.throughput_tables [--seed 1] [--processes 2]

Writes bench/fairlead_bench/mix/tables/measured.json.

There is a line for each accelerator, each shape of the grid and each SLO. All requests of a shape
have the middle of its bucket. One engine of the accelerator's step profile serves Poisson arrivals;
every step is computed exactly (``fairlead_sim.autoscaling.aggregated_engine``). The throughput is
the largest rate at which the SLO's share of requests meets it.

All rates see the same arrivals, drawn with the seed and stretched. Requests that arrive while the
engine fills up are served and not judged. The rate is bounded by what an engine finishes under
overload: ten thousand requests of a few tokens are over within seconds, too soon for a growing
queue to show.

``tabled`` reads the table by a digest of the inputs of each line, so that no line of another
profile is taken.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, fields
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role, SloTargets
from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.mix import PoolCandidate, throughput
from fairlead_bench.mix.roofline import ITL_SECONDS, PricedProfile, objectives, profiles
from fairlead_sim.autoscaling.aggregated_engine import AggregatedEngine
from fairlead_sim.autoscaling.closed_loop import is_within_slo
from fairlead_sim.autoscaling.plant_engine import StepTotals
from fairlead_sim.autoscaling.request_table import ArrivalTrace, RequestTable

FILE = Path(__file__).with_name("tables") / "measured.json"
REQUESTS, FILLING = 10_000, 2_000
"""Number of arrivals, and of the first ones, which are not judged."""
PRECISION = 0.02
"""The rate is found to this share of itself."""
BUSIEST = 0.97
"""The highest tried rate, as a share of an engine's saturated rate."""
_SLOWEST = 1 / 64
"""The lowest tried rate, as a share of the knee."""


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

    The period of the SLO is none of them: it changes no throughput.
    """
    targets = [getattr(objectives, one.name) for one in fields(objectives) if one.name != "period_seconds"]
    values = [*astuple(profile), *targets, *astuple(RequestShapeGrid())]
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
    """Returns the throughput of each shape, by the digest of its inputs."""
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


if __name__ == "__main__":
    sys.exit(main())
