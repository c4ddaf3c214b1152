"""How much memory the sequences of an engine will take at the worst moment still to come.

A sequence holds its tokens until it ends and grows by one a step, so memory peaks just before some sequence ends. With a_j
tokens held now and b_j still to come, sequences in falling order of b: when the i-th ends, i of them are still there, and each has
grown by b_i:

    peak = max over i of (a_1 + … + a_i + i · b_i)

A request is let in when the peak with it stays under the engine's memory. b is the *median* of what is still to come, given what
is out (``lengths``); high quantiles of each would reserve for all answers being long at once, which never happens: their sum is far
above the quantile of the sum. A margin for the sum's own spread was tried: one standard deviation costs a twentieth of the goodput
and saves preemptions that were already rare, since medians are drawn anew at every token.

Source: Past-Future, as LightLLM schedules by it (arXiv 2507.10150); ours is the median given what is out in place of a sample of past
lengths.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

USABLE_SHARE: Final = 0.99
"""Of the memory, what may be planned for: blocks are only full at their ends."""


class SequenceForecast(NamedTuple):
    """One sequence: tokens it holds now, or will once its prompt is computed, and tokens still to come."""

    now_tokens: float
    remaining_tokens: float


def peak_tokens(sequences: Iterable[SequenceForecast]) -> float:
    """What is held at the worst moment still to come; 0 of nothing."""
    peak = total = 0.0
    for count, (now, remaining) in enumerate(sorted(sequences, key=_remaining_tokens, reverse=True), 1):
        total += now
        peak = max(peak, total + count * remaining)
    return peak


def fits(held: Iterable[SequenceForecast], capacity_tokens: float) -> bool:
    """Whether all of them can be expected to run to their ends without one being put back."""
    return peak_tokens(held) <= USABLE_SHARE * capacity_tokens


def _remaining_tokens(sequence: SequenceForecast) -> float:
    return sequence.remaining_tokens
