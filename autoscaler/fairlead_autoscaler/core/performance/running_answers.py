"""Running answers: how long the answers of running sequences are, in mean answers.

A sequence runs for as long as its answer takes. So those that run now have longer answers than the
mean: twice as long if lengths are exponential, 1.6 times in conversations, three times in code
completion. Their tokens in KV memory tell. A running sequence holds its prompt and, on average,
half of its answer:

    factor = 2 · (resident tokens - sequences · prompt) / (sequences · mean answer)

over the last minutes, together with a guess of 2 for the first of them.
"""

import math
from dataclasses import dataclass

from fairlead_autoscaler.core.performance.step_model import MeanRequest

EXPONENTIAL = 2.0
"""The factor if lengths are exponential."""
_MIN_FACTOR, _MAX_FACTOR = 1.2, 3.5
_WINDOW_SECONDS = 300.0
_PRIOR_SECONDS = 2_000.0
"""Seconds of running sequences that the guess is worth."""


@dataclass(frozen=True, slots=True)
class RunningAnswers:
    """Decaying sums over running sequences: generated tokens, and what mean answers would be.

    Both are in tokens times seconds.
    """

    generated: float = 0.0
    answers: float = 0.0

    def factor(self, mean_answer: float) -> float:
        """Returns the length of a running answer, in mean answers."""
        prior = _PRIOR_SECONDS * mean_answer
        if self.answers + prior <= 0.0:
            return EXPONENTIAL
        value = (EXPONENTIAL * prior + 2.0 * self.generated) / (prior + self.answers)
        return min(_MAX_FACTOR, max(_MIN_FACTOR, value))


def update_running_answers(
    before: RunningAnswers, resident_tokens: float, sequences: float, request: MeanRequest, seconds: float
) -> RunningAnswers:
    """Returns the sums after one tick of `seconds`."""
    if seconds <= 0.0 or sequences <= 0.0 or request.output_tokens <= 0.0:
        return before
    keep = math.exp(-seconds / _WINDOW_SECONDS)
    generated = resident_tokens - sequences * request.prompt_tokens
    return RunningAnswers(
        before.generated * keep + generated * seconds,
        before.answers * keep + sequences * request.output_tokens * seconds,
    )
