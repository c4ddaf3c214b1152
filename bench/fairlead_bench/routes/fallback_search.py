"""Time of the search for the next model of a request, in a graph of fallbacks of 200 models.

    python -m fairlead_bench fallbacks

The graph has 800 edges, of which one path leads through all models. In the worst case no model can
answer but the last one, so the search reads every edge. Each row is a median.
"""

import random
import statistics
import time
from collections.abc import Sequence

from fairlead.routes.fallback_graph import FallbackEdge, FallbackGraph
from fairlead.routes.model import FailureKind
from fairlead_bench.results import load_goals, parse_options, write_results

NAME = "fallbacks"
MODELS, EDGES, REPEATS = 200, 800, 1_000
SHARES = {"no model can answer but the last": 0.0, "half of them can answer": 0.5, "all can answer": 1.0}


def make_graph(draw: random.Random) -> FallbackGraph:
    """Returns a graph without loops, in which a path leads from the first model through all."""
    kinds = [kind.value for kind in FailureKind]
    every = frozenset(kinds)
    edges = [FallbackEdge(f"m{number - 1}", f"m{number}", every) for number in range(1, MODELS)]
    while len(edges) < EDGES:
        source, target = sorted(draw.sample(range(MODELS), 2))
        edges.append(FallbackEdge(f"m{source}", f"m{target}", frozenset(draw.sample(kinds, draw.randint(1, 5)))))
    return FallbackGraph(edges)


def search_seconds(graph: FallbackGraph, share: float, draw: random.Random) -> float:
    """Returns the median time of a search.

    share: of the models that can answer.
    """
    weights = {f"m{number}": draw.uniform(0.1, 9.0) for number in range(1, MODELS) if draw.random() < share}
    weights[f"m{MODELS - 1}"] = 9.0
    failures = {"m0": FailureKind.UNAVAILABLE.value}
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        choice = graph.shortest_path(failures, weights)
        seconds.append(time.perf_counter() - started)
        assert choice is not None
    return statistics.median(seconds)


def main(arguments: Sequence[str]) -> int:
    """Measures, writes, prints; 0 when every goal holds."""
    options = parse_options(NAME, "", arguments, seed=1)
    draw, goals = random.Random(options.seed), load_goals(NAME)
    graph = make_graph(draw)
    rows = [
        goals.value(f"next of {MODELS} models, {label}", "µs", search_seconds(graph, share, draw) * 1e6)
        for label, share in SHARES.items()
    ]
    return write_results(NAME, rows, seed=options.seed, file=options.out)
