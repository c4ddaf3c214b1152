"""Shape histogram: how often requests of each shape (prompt and output length) occur.

A bucket of the grid (`fairlead.request_shapes`) stands for the mean of its requests; an empty one
for the geometric middle of its edges. Counts decay with a half-life, so that rates follow the last
minutes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.core.signals.validation import valid_number
from fairlead_autoscaler.core.types import ShapeCount


@dataclass(frozen=True, slots=True)
class ShapeHistogram:
    """Requests of each bucket and their tokens, decayed to the time `at` (seconds).

    watched_seconds: the decayed time since the start, the denominator of the rates.
    """

    grid: RequestShapeGrid
    at: float
    half_life_seconds: float
    requests: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    watched_seconds: float = 0.0

    @classmethod
    def empty(
        cls, at: float, *, grid: RequestShapeGrid | None = None, half_life_seconds: float = 600.0
    ) -> "ShapeHistogram":
        """Returns a histogram without requests that is watched from `at` on."""
        chosen = grid or RequestShapeGrid()
        zeros = (0.0,) * chosen.size
        return cls(chosen, at, half_life_seconds, zeros, zeros, zeros)

    def with_requests(self, now: float, shapes: Iterable[ShapeCount]) -> "ShapeHistogram":
        """Returns the histogram with the requests that finished since the last call.

        Nothing decays if the clock went back. Impossible counts are ignored.
        """
        passed = max(0.0, now - self.at)
        rate = math.log(2.0) / self.half_life_seconds
        keep = math.exp(-rate * passed)
        counts = [keep * value for value in self.requests]
        prompts = [keep * value for value in self.prompt_tokens]
        outputs = [keep * value for value in self.output_tokens]
        for shape in shapes:
            prompt, output, count = map(valid_number, (shape.prompt_tokens, shape.output_tokens, shape.requests))
            if prompt is None or output is None or count is None:
                continue
            index = self.grid.bucket_index(prompt, output)
            counts[index] += count
            prompts[index] += prompt * count
            outputs[index] += output * count
        return replace(
            self,
            at=max(now, self.at),
            requests=tuple(counts),
            prompt_tokens=tuple(prompts),
            output_tokens=tuple(outputs),
            watched_seconds=keep * self.watched_seconds + (1.0 - keep) / rate,
        )

    def rates(self) -> tuple[float, ...]:
        """Returns the requests per second of each bucket; zeros before any time was watched."""
        if self.watched_seconds <= 0.0:
            return (0.0,) * self.grid.size
        return tuple(requests / self.watched_seconds for requests in self.requests)

    def shape(self, index: int) -> tuple[float, float]:
        """Returns the prompt and output tokens that a bucket stands for."""
        count = self.requests[index]
        if count <= 1e-9:
            return self.grid.bucket_center(index)
        return self.prompt_tokens[index] / count, self.output_tokens[index] / count
