"""Rules by which the gateway chooses an engine for a request."""

import random
from collections.abc import Callable, Mapping, Sequence

from fairlead_bench.outside_plant.engine import Engine

GatewayRule = Callable[[Sequence[Engine], float, random.Random], Engine]
"""Chooses one of at least one engine, at a time in seconds."""

TOKENS_PER_REQUEST = 220
"""Prompt tokens that weigh as much as one request in flight."""


def least_work(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the engine with the fewest prompt tokens to compute, plus 220 for each request."""
    scores = [
        engine.backlog_tokens + TOKENS_PER_REQUEST * engine.inflight - engine.prompt_rate * (now - engine.phase_start)
        for engine in engines
    ]
    return engines[scores.index(min(scores))]


def least_resident(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the engine with the fewest tokens in its memory and in its queue."""
    scores = [engine.resident_tokens + engine.backlog_tokens for engine in engines]
    return engines[scores.index(min(scores))]


def random_two(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the one of two random engines that has fewer requests in flight."""
    count = len(engines)
    first, second = engines[int(random_source.random() * count)], engines[int(random_source.random() * count)]
    return first if first.inflight <= second.inflight else second


def least_reserved(engines: Sequence[Engine], now: float, random_source: random.Random) -> Engine:
    """Returns the decode engine with the fewest reserved tokens, plus 1,000 for each that waits."""
    scores = [engine.reserved_tokens + 1000 * len(engine.waiting) for engine in engines]
    return engines[scores.index(min(scores))]


GATEWAY_RULES: Mapping[str, GatewayRule] = {
    "work": least_work,
    "resident": least_resident,
    "random-two": random_two,
}
