"""The peak of an engine's KV memory, as the running sequences grow and end.

A sequence keeps its tokens cached until it ends, and grows by one token per step. So memory peaks
just before some sequence ends. Let a_j be the tokens cached now and b_j those still to come, in
falling order of b. When the i-th sequence ends, i of them are present, and each has grown by b_i:

    peak = max over i of (a_1 + … + a_i + i · b_i)

A request is admitted if the peak with it stays within memory. Here b is a little over the
*median* of the remaining tokens, given those already generated (`output_lengths`).

Why: the sum of high quantiles is far above the quantile of the sum; it would reserve memory for all
outputs being long at once. Medians are updated with every token, so preemptions are rare already. A
margin of one standard deviation, measured, costs 5 % of the goodput and saves only those.

Source: Past-Future, the scheduler of LightLLM (arXiv 2507.10150). Changed: the median given what
was generated, instead of a sample of past lengths.
"""

from typing import Final

USABLE_SHARE: Final = 0.99
"""Share of the memory that may be planned for: the last block of a sequence is partly empty."""


class SequenceForecast:
    """The KV-cache tokens of one sequence: cached now (or once its prompt is computed), and still
    to be generated.
    """

    __slots__ = ("now_tokens", "remaining_tokens")

    def __init__(self, now_tokens: float, remaining_tokens: float) -> None:
        self.now_tokens = now_tokens
        self.remaining_tokens = remaining_tokens


def peak_tokens(sequences: list[SequenceForecast]) -> float:
    """Returns the tokens cached at the peak; 0 without sequences."""
    return peak_with(in_falling_order(sequences), None)


def in_falling_order(sequences: list[SequenceForecast]) -> list[SequenceForecast]:
    """Returns the sequences in falling order of their remaining tokens, as `peak_with` wants it."""
    if len(sequences) < 2:
        return sequences
    return sorted(sequences, key=_remaining_tokens, reverse=True)


def peak_with(ordered: list[SequenceForecast], joined: SequenceForecast | None) -> float:
    """Returns the tokens cached at the peak of ordered sequences and one more.

    joined: None: no other one.
    """
    peak = total = 0.0
    count = 0
    for sequence in ordered:
        if joined is not None and joined.remaining_tokens > sequence.remaining_tokens:
            count += 1
            total += joined.now_tokens
            peak = max(peak, total + count * joined.remaining_tokens)
            joined = None
        count += 1
        total += sequence.now_tokens
        peak = max(peak, total + count * sequence.remaining_tokens)
    if joined is not None:
        peak = max(peak, total + joined.now_tokens + (count + 1) * joined.remaining_tokens)
    return peak


def _remaining_tokens(sequence: SequenceForecast) -> float:
    return sequence.remaining_tokens
