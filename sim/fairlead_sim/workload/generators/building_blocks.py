"""What all generators share: a prompt that grows block by block, popularity by Zipf's law, and arrivals at a rate that changes."""

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, count

from fairlead.errors import BadInput
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest

HOUR_REQUESTS = 12_000
"""Before scaling, every family sends about so many requests an hour."""
HOUR_SECONDS = 3_600.0


class BlockIds:
    """Names for blocks of 512 tokens that nobody else has."""

    def __init__(self) -> None:
        self._next = count(1)

    def take(self, blocks: int) -> tuple[int, ...]:
        """So many new ones."""
        return tuple([next(self._next) for _ in range(blocks)])


class GrowingPrompt:
    """A prompt that begins with whole ``blocks`` and grows. A block that was not full has another name once it is."""

    def __init__(self, block_ids: BlockIds, blocks: Sequence[int], tokens: int = 0) -> None:
        self._fresh = block_ids
        self._blocks = tuple(blocks)
        self.tokens = len(blocks) * TRACE_BLOCK_TOKENS
        if tokens:
            self.grow(tokens)

    def grow(self, tokens: int) -> None:
        """So many tokens more that no other prompt has."""
        whole = self._blocks[: self.tokens // TRACE_BLOCK_TOKENS]
        self.tokens += tokens
        self._blocks = whole + self._fresh.take(blocks_of(self.tokens) - len(whole))

    @property
    def blocks(self) -> tuple[int, ...]:
        """As a trace names them."""
        return self._blocks


class ZipfDistribution:
    """``items`` of which the k-th is drawn with a probability that goes with 1/k to the power of ``exponent``."""

    def __init__(self, items: int, exponent: float) -> None:
        self._sums = list(accumulate([(1 + rank) ** -exponent for rank in range(items)]))

    def draw(self, random_: random.Random) -> int:
        """A rank from 0 on."""
        return bisect_left(self._sums, random_.random() * self._sums[-1])


def blocks_of(tokens: int) -> int:
    """How many blocks so many tokens take, the last one full or not."""
    return -(-tokens // TRACE_BLOCK_TOKENS)


def poisson_process(
    random_: random.Random, rate: Callable[[float], float], max_rate: float, until: float
) -> Iterator[float]:
    """When things happen that happen by chance at ``rate(t)`` a second, which is never above ``most``."""
    at = random_.expovariate(max_rate)
    while at < until:
        if random_.random() * max_rate < rate(at):
            yield at
        at += random_.expovariate(max_rate)


def lognormal(
    random_: random.Random, median: float, sigma: float, *, minimum: float = 1.0, maximum: float = 1e9
) -> float:
    """A length or a time whose logarithm is normal, within bounds."""
    return min(maximum, max(minimum, random_.lognormvariate(math.log(median), sigma)))


def state_changes(random_: random.Random, low: float, high: float, until: float) -> list[float]:
    """When a state changes that is low for ``low`` seconds in the mean and then high for ``high``, beginning low."""
    changes, at, is_high = [], 0.0, False
    while at < until:
        at += random_.expovariate(1 / (high if is_high else low))
        changes.append(at)
        is_high = not is_high
    return changes


def is_high(changes: Sequence[float], at: float) -> bool:
    """The state at a moment."""
    return bisect_left(changes, at) % 2 == 1


class TrafficBuilder:
    """Requests of a family as its generator makes them, of any time; ``first`` puts them in order."""

    def __init__(self, requests: int) -> None:
        if requests < 1:
            raise BadInput(f"there must be at least 1 request, not {requests}", field="requests")
        self.requested = requests
        self.seconds = HOUR_SECONDS * requests / HOUR_REQUESTS
        """About when the last of them arrives."""
        self.until = 1.3 * self.seconds + 120.0
        """For how long sessions may begin, so that there are enough requests."""
        self._requests: list[TraceRequest] = []

    def add(self, at: float, prompt: GrowingPrompt, output: int, session: str, tenant: str | None = None) -> bool:
        """One request of the prompt as it is now; False, and none is made, where it is longer than the studies' prompts are."""
        if prompt.tokens > MAX_PROMPT_TOKENS:
            return False
        self._requests.append(
            TraceRequest("", at, prompt.tokens, output, prompt.blocks, session=session, tenant=tenant)
        )
        return True

    def build(self) -> list[TraceRequest]:
        """As many as were wanted, by arrival."""
        self._requests.sort(key=_arrival)
        return [replace(request, id=f"g{number}") for number, request in enumerate(self._requests[: self.requested])]


def _arrival(request: TraceRequest) -> float:
    return request.arrival
