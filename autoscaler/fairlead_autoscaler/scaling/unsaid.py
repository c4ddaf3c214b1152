"""What waits at prefill engines that call it running.

Most engines tell what runs and what waits. Some count as running whatever they have taken in, a prompt that waits for its first step
too; their queue then reads 0, however long it is. Of an engine that only prefills, gauges and counters tell it all the same: of
prompts a step holds as many as its tokens do (by the mean of those that it computed in the tick), one more may have come since, and
what runs beyond that waits.

Of engines that also decode it was tried, with the seconds of gaps between tokens over the tick as what they decode: chance alone then
made queues of what was being prefilled, and turned a noisy hour fifteen times instead of five."""

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import PoolSpec


def hidden_prefill_queue(
    facts: PoolSpec, running: float | None, first_tokens: float | None, computed_tokens: float | None
) -> float:
    """How many of the requests that an engine calls ``running`` wait, where ``began`` of them had their first token and ``computed``
    prompt tokens were worked out since the last look; 0 where that cannot be told."""
    if (
        facts.role is not Role.PREFILL
        or facts.profile is None
        or not running
        or not first_tokens
        or not computed_tokens
    ):
        return 0.0
    prompts = max(1.0, facts.profile.step_tokens * first_tokens / computed_tokens)
    return max(0.0, running - prompts - 1.0)
