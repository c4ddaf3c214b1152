"""Length shift: a change point of prompt lengths, found like that of the load (`load_forecast`).

Lengths follow means over a minute and over a quarter of an hour, which is right while they move
slowly. If long prompts with short answers become the opposite at once, these means describe
neither. Prompts seem to have the old length and answers in flight the new one. Memory is then sized
for requests that do not exist: after a shift from 8,000/100 to 1,000/800 tokens, 15 decode engines
instead of three.

**Detection**: the mean prompt of the last ticks differs from the settled one by more than chance
explains; its variance is known. In each of these ticks it differs by a factor of 1.5. Longer
prompts must show in two ticks, since one long prompt is in one tick only. A single prompt cannot
make prompts shorter. The present tick is left out, so that it can only add load.

**Then** prompts have the length of these ticks and their former variability, and the older arrivals
count as another load. Output lengths start from the tokens that finished requests do not explain:
requests in flight began with their own prompts. Their mean rises for two minutes, which is no drift
that would go on (`bins_for_growth`). Instead, unfinished requests are expected to take as much
longer as one of unknown length (`unfinished_share`).

Until a shift is detected, the memory of a decode engine is priced by the prompts that arrive. Much
shorter ones count at once, much longer ones in part. If groups share a replica limit, memory is not
priced like this. An overestimate then adds no replica; it only divides them sooner, which serves
more.
"""

from dataclasses import replace
from typing import Final

from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory, keep_last_ticks
from fairlead_autoscaler.core.workload.request_lengths import (
    LENGTH_SECONDS,
    SETTLED_REQUESTS,
    DecayingRatio,
    RequestLengths,
)

MIN_SHIFT_FACTOR: Final = 1.5
"""Prompts of another length differ by this factor."""
SHIFT_SIGMAS: Final = 5.0
"""The same in standard errors."""

_MIN_TICKS = 2
"""Ticks that must show longer prompts: one of them may be a single long one."""
_SETTLE_FACTOR = 2.0
"""Time that a fast mean takes to reach another length, in multiples of its memory."""


def detect_shift(lengths: RequestLengths, history: ArrivalHistory) -> tuple[RequestLengths, ArrivalHistory]:
    """Returns lengths and arrivals since the last shift, or both unchanged if there is none."""
    if lengths.settled_prompt is None:
        return lengths, history
    prompt, variance = lengths.settled_prompt
    known = prompt.mean(0.0)
    spread = variance.smoothed_mean(known * known)
    requests = tokens = 0.0
    directions: set[bool] = set()
    for count, tick in enumerate(reversed(history.recent), start=1):
        if not tick.requests or not _is_other_length(tick.prompt / tick.requests, known):
            break
        directions.add(tick.prompt > known * tick.requests)
        requests, tokens = requests + tick.requests, tokens + tick.prompt
        if requests < SETTLED_REQUESTS or (count < _MIN_TICKS and tokens > known * requests):
            continue
        if len(directions) == 1 and (tokens / requests - known) ** 2 > SHIFT_SIGMAS**2 * spread / requests:
            return _restart_lengths(lengths, history, tokens, requests), keep_last_ticks(history, count)
    return lengths, history


def _is_other_length(prompt: float, known: float) -> bool:
    return prompt > known * MIN_SHIFT_FACTOR or prompt * MIN_SHIFT_FACTOR < known


def _restart_lengths(
    lengths: RequestLengths, history: ArrivalHistory, tokens: float, requests: float
) -> RequestLengths:
    assert lengths.settled is not None
    before, variance = lengths.settled
    prompt = DecayingRatio(tokens, requests, tokens, requests)
    factor = (tokens / requests / before.mean(0.0)) ** 2
    scaled = replace(variance, fast=variance.fast * factor, slow=variance.slow * factor)
    shifted = replace(
        lengths,
        prompt=prompt,
        prompt_variance=scaled,
        settled=(prompt, scaled),
        turned_at=history.recent[-1].at,
    )
    output = lengths.output
    if output.slow_of < SETTLED_REQUESTS:
        return shifted
    # Tokens beyond those of finished requests belong to requests that began since and are
    # unfinished.
    unexplained = max(0.0, output.fast - output.slow / output.slow_of * output.fast_of)
    return replace(
        shifted,
        output=DecayingRatio(unexplained, 0.0, unexplained, 0.0),
        began=DecayingRatio(requests, 0.0, requests, 0.0),
    )


def is_shifting(lengths: RequestLengths, now: float) -> bool:
    return lengths.turned_at is not None and now - lengths.turned_at <= _SETTLE_FACTOR * LENGTH_SECONDS


def unfinished_share(lengths: RequestLengths) -> float:
    started, finished = lengths.began.slow, lengths.output.slow_of
    return max(0.0, started - finished) / started if started > 0.0 else 0.0


def bins_for_growth(lengths: RequestLengths, history: ArrivalHistory) -> list[ArrivalBin]:
    return [closed for closed in history.bins if not is_shifting(lengths, closed.at)]
