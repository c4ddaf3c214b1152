"""Request shapes: a grid of prompt × output lengths with logarithmically spaced edges.

Gateways count requests by shape, and the autoscaler chooses accelerators from these counts.
"""

import math
from dataclasses import dataclass

from fairlead.errors import BadInput

PROMPT_TOKEN_BOUNDS = (16.0, 65_536.0)
OUTPUT_TOKEN_BOUNDS = (4.0, 8_192.0)
BUCKETS_PER_AXIS = 10


def log_edges(lower: float, upper: float, buckets: int) -> tuple[float, ...]:
    """Returns `buckets` + 1 edges from `lower` to `upper`, evenly spaced on a logarithmic scale."""
    if not 0.0 < lower < upper or buckets < 1:
        raise BadInput(f"{buckets} buckets from {lower:g} to {upper:g} are not a grid", field="edges")
    step = math.log(upper / lower) / buckets
    return tuple(lower * math.exp(step * index) for index in range(buckets + 1))


@dataclass(frozen=True, slots=True)
class RequestShapeGrid:
    """A grid of request shapes, given by the edges of its buckets in tokens.

    Lengths outside the grid count in the outermost bucket.
    """

    prompt: tuple[float, ...] = log_edges(*PROMPT_TOKEN_BOUNDS, BUCKETS_PER_AXIS)
    output: tuple[float, ...] = log_edges(*OUTPUT_TOKEN_BOUNDS, BUCKETS_PER_AXIS)

    @property
    def size(self) -> int:
        """Number of buckets. Bucket (i, j) of prompt and output has the index i · output buckets +
        j.
        """
        return (len(self.prompt) - 1) * (len(self.output) - 1)

    def bucket_index(self, prompt_tokens: float, output_tokens: float) -> int:
        return _bucket(self.prompt, prompt_tokens) * (len(self.output) - 1) + _bucket(self.output, output_tokens)

    def bucket_center(self, index: int) -> tuple[float, float]:
        """Returns the geometric center of a bucket as prompt and output tokens."""
        row, column = divmod(index, len(self.output) - 1)
        return (
            math.sqrt(self.prompt[row] * self.prompt[row + 1]),
            math.sqrt(self.output[column] * self.output[column + 1]),
        )


def _bucket(edges: tuple[float, ...], value: float) -> int:
    low, high = 0, len(edges)
    while low < high:  # compiled, this takes less than the library's search
        middle = (low + high) // 2
        if value < edges[middle]:
            high = middle
        else:
            low = middle + 1
    return min(len(edges) - 2, max(0, low - 1))
