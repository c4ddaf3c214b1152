"""The parts that all generators share: growing prompts, Zipf popularity, arrivals at varying
rates.
"""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, count

from fairlead.errors import BadInput
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest

HOUR_REQUESTS = 12_000
"""About the requests per hour of every family before scaling."""
HOUR_SECONDS = 3_600.0


class BlockIds:
    """A source of unique ids for blocks of 512 tokens."""

    def __init__(self) -> None:
        self._next = count(1)

    def take(self, blocks: int) -> tuple[int, ...]:
        """Returns new ids."""
        return tuple([next(self._next) for _ in range(blocks)])


class GrowingPrompt:
    """A prompt that begins with full ``blocks`` and grows.

    A partial block gets a new id when it grows.
    """

    def __init__(self, block_ids: BlockIds, blocks: Sequence[int], tokens: int = 0) -> None:
        self._fresh = block_ids
        self._blocks = tuple(blocks)
        self.tokens = len(blocks) * TRACE_BLOCK_TOKENS
        if tokens:
            self.grow(tokens)

    def grow(self, tokens: int) -> None:
        """Adds tokens that no other prompt has."""
        whole = self._blocks[: self.tokens // TRACE_BLOCK_TOKENS]
        self.tokens += tokens
        self._blocks = whole + self._fresh.take(blocks_of(self.tokens) - len(whole))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Returns the block ids."""
        return self._blocks


class ZipfDistribution:
    """A distribution of ranks, where rank k (from 1) has a weight of ``k ** -exponent``."""

    def __init__(self, items: int, exponent: float) -> None:
        self._sums = list(accumulate([(1 + rank) ** -exponent for rank in range(items)]))

    def draw(self, random_: random.Random) -> int:
        """Returns a rank from 0 on."""
        return bisect_left(self._sums, random_.random() * self._sums[-1])


def blocks_of(tokens: int) -> int:
    """Returns the number of blocks for this many tokens, with a partial one."""
    return -(-tokens // TRACE_BLOCK_TOKENS)


def poisson_process(
    random_: random.Random, rate: Callable[[float], float], max_rate: float, until: float
) -> Iterator[float]:
    """Yields event times of rate ``rate(t)`` per second, which is never above ``max_rate``."""
    at = random_.expovariate(max_rate)
    while at < until:
        if random_.random() * max_rate < rate(at):
            yield at
        at += random_.expovariate(max_rate)


def lognormal(
    random_: random.Random, median: float, sigma: float, *, minimum: float = 1.0, maximum: float = 1e9
) -> float:
    """Returns a log-normal value within bounds."""
    return min(maximum, max(minimum, random_.lognormvariate(math.log(median), sigma)))


def state_changes(random_: random.Random, low: float, high: float, until: float) -> list[float]:
    """Returns the change times of a state that begins low, up to the first change after ``until``.

    low, high: mean seconds in each state.
    """
    changes, at, is_high = [], 0.0, False
    while at < until:
        at += random_.expovariate(1 / (high if is_high else low))
        changes.append(at)
        is_high = not is_high
    return changes


def is_high(changes: Sequence[float], at: float) -> bool:
    """Whether the state is high at a time."""
    return bisect_left(changes, at) % 2 == 1


class TrafficBuilder:
    """The collected requests of a family, in any order until ``build``."""

    def __init__(self, requests: int) -> None:
        if requests < 1:
            raise BadInput(f"there must be at least 1 request, not {requests}", field="requests")
        self.requested = requests
        self.seconds = HOUR_SECONDS * requests / HOUR_REQUESTS
        """About when the last request arrives."""
        self.until = 1.3 * self.seconds + 120.0
        """The end of session starts, late enough for the wanted number of requests."""
        self._requests: list[TraceRequest] = []

    def add(self, at: float, prompt: GrowingPrompt, output: int, session: str, tenant: str | None = None) -> bool:
        """Adds a request for the present prompt. Returns False if the prompt exceeds
        MAX_PROMPT_TOKENS.
        """
        if prompt.tokens > MAX_PROMPT_TOKENS:
            return False
        self._requests.append(
            TraceRequest("", at, prompt.tokens, output, prompt.blocks, session=session, tenant=tenant)
        )
        return True

    def build(self) -> list[TraceRequest]:
        """Returns the first ``requested`` requests, by arrival."""
        self._requests.sort(key=_arrival)
        return [replace(request, id=f"g{number}") for number, request in enumerate(self._requests[: self.requested])]


def _arrival(request: TraceRequest) -> float:
    return request.arrival
