"""Shapes of requests: a grid of prompt × answer lengths, its edges evenly spaced on a logarithmic scale, and how often each
is seen.

A bucket stands for the mean of what fell into it; one that nothing fell into, for the geometric middle of its edges. Its
requests are counted in time that fades: after ``half_life_seconds`` a request counts half, so that rates follow the traffic
of the last minutes.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fairlead.errors import BadInput

PROMPT_EDGES = (16.0, 65_536.0)
OUTPUT_EDGES = (4.0, 8_192.0)
BUCKETS = 10


def log_edges(least: float, most: float, buckets: int) -> tuple[float, ...]:
    """``buckets`` + 1 edges from ``least`` to ``most``, each the same factor above the one before."""
    if not 0.0 < least < most or buckets < 1:
        raise BadInput(f"{buckets} buckets from {least:g} to {most:g} are no grid", field="edges")
    step = math.log(most / least) / buckets
    return tuple(least * math.exp(step * index) for index in range(buckets + 1))


@dataclass(frozen=True, slots=True)
class ShapeGrid:
    """Upper and lower edges in tokens. What lies outside counts in the outermost bucket."""

    prompt: tuple[float, ...] = log_edges(*PROMPT_EDGES, BUCKETS)
    output: tuple[float, ...] = log_edges(*OUTPUT_EDGES, BUCKETS)

    @property
    def size(self) -> int:
        """Buckets in all; bucket (i, j) of prompt and answer has the index i · answer buckets + j."""
        return (len(self.prompt) - 1) * (len(self.output) - 1)

    def index(self, prompt_tokens: float, output_tokens: float) -> int:
        """The bucket of a request."""
        return _place(self.prompt, prompt_tokens) * (len(self.output) - 1) + _place(self.output, output_tokens)

    def middle(self, index: int) -> tuple[float, float]:
        """Prompt and answer tokens that stand for a bucket of which nothing is known."""
        row, column = divmod(index, len(self.output) - 1)
        return (
            math.sqrt(self.prompt[row] * self.prompt[row + 1]),
            math.sqrt(self.output[column] * self.output[column + 1]),
        )


@dataclass(frozen=True, slots=True)
class Histogram:
    """What was seen of each bucket: requests, their prompt tokens and their answers' tokens, all faded to ``at``
    (seconds)."""

    grid: ShapeGrid
    at: float
    half_life_seconds: float
    requests: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    watched_seconds: float = 0.0  # faded like the rest: what all seconds since the start weigh

    @classmethod
    def empty(cls, at: float, *, grid: ShapeGrid | None = None, half_life_seconds: float = 600.0) -> "Histogram":
        """Nothing seen yet, watched from ``at`` on."""
        chosen = grid or ShapeGrid()
        nothing = (0.0,) * chosen.size
        return cls(chosen, at, half_life_seconds, nothing, nothing, nothing)

    def seen(self, now: float, requests: Iterable[tuple[float, float]]) -> "Histogram":
        """With requests that arrived since (prompt, answer tokens). A clock that went back fades nothing."""
        passed = max(0.0, now - self.at)
        rate = math.log(2.0) / self.half_life_seconds
        kept = math.exp(-rate * passed)
        counts = [kept * one for one in self.requests]
        prompts = [kept * one for one in self.prompt_tokens]
        outputs = [kept * one for one in self.output_tokens]
        for prompt, output in requests:
            if not (math.isfinite(prompt) and math.isfinite(output)) or min(prompt, output) < 0.0:
                continue
            place = self.grid.index(prompt, output)
            counts[place] += 1.0
            prompts[place] += prompt
            outputs[place] += output
        return replace(
            self,
            at=max(now, self.at),
            requests=tuple(counts),
            prompt_tokens=tuple(prompts),
            output_tokens=tuple(outputs),
            watched_seconds=kept * self.watched_seconds + (1.0 - kept) / rate,
        )

    def rates(self) -> tuple[float, ...]:
        """Requests per second of each bucket; zeros while nobody has watched yet."""
        if self.watched_seconds <= 0.0:
            return (0.0,) * self.grid.size
        return tuple(one / self.watched_seconds for one in self.requests)

    def shape(self, index: int) -> tuple[float, float]:
        """Prompt and answer tokens that stand for a bucket."""
        count = self.requests[index]
        if count <= 1e-9:
            return self.grid.middle(index)
        return self.prompt_tokens[index] / count, self.output_tokens[index] / count


def _place(edges: tuple[float, ...], value: float) -> int:
    return min(len(edges) - 2, max(0, bisect_right(edges, value) - 1))
