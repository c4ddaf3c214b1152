"""How often each shape of request is seen.

A bucket of the grid (``fairlead.request_shapes``) stands for the mean of what fell into it; one that nothing fell
into, for the geometric
middle of its edges. Its requests are counted in time that fades: after ``half_life_seconds`` a request counts half, so that rates
follow the traffic of the last minutes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from fairlead.request_shapes import RequestShapeGrid
from fairlead_autoscaler.core.signals.validation import valid_number
from fairlead_autoscaler.core.types import ShapeCount


@dataclass(frozen=True, slots=True)
class ShapeHistogram:
    """What was seen of each bucket: requests, their prompt tokens and their answers' tokens, all faded to ``at``
    (seconds)."""

    grid: RequestShapeGrid
    at: float
    half_life_seconds: float
    requests: tuple[float, ...]
    prompt_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]
    watched_seconds: float = 0.0  # faded like the rest: what all seconds since the start weigh

    @classmethod
    def empty(
        cls, at: float, *, grid: RequestShapeGrid | None = None, half_life_seconds: float = 600.0
    ) -> "ShapeHistogram":
        """Nothing seen yet, watched from ``at`` on."""
        chosen = grid or RequestShapeGrid()
        nothing = (0.0,) * chosen.size
        return cls(chosen, at, half_life_seconds, nothing, nothing, nothing)

    def with_requests(self, now: float, requests: Iterable[ShapeCount]) -> "ShapeHistogram":
        """With requests that ended since. A clock that went back fades nothing; what cannot have been counted is left out."""
        passed = max(0.0, now - self.at)
        rate = math.log(2.0) / self.half_life_seconds
        kept = math.exp(-rate * passed)
        counts = [kept * one for one in self.requests]
        prompts = [kept * one for one in self.prompt_tokens]
        outputs = [kept * one for one in self.output_tokens]
        for one in requests:
            prompt, output, count = (
                valid_number(one.prompt_tokens),
                valid_number(one.output_tokens),
                valid_number(one.requests),
            )
            if prompt is None or output is None or count is None:
                continue
            place = self.grid.bucket_index(prompt, output)
            counts[place] += count
            prompts[place] += prompt * count
            outputs[place] += output * count
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
            return self.grid.bucket_center(index)
        return self.prompt_tokens[index] / count, self.output_tokens[index] / count
