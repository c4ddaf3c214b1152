"""When traffic turns: requests of another length than those before.

What prompts are like follows means of a minute and of a quarter of an hour, which is right while it moves slowly. Where traffic turns
at once, from long prompts with short answers to the opposite, those means describe neither: for minutes prompts were taken to be of
the old length, answers in flight of the new one, and memory was sized for requests that never were both (8,000 / 100 to 1,000 / 800
tokens: fifteen decode engines ordered where three do). So lengths have a change point, as load has one (``load.changed``).

**Found** where the mean prompt of the last ticks is off what was known when the last bin was closed, by more than chance explains
(its variance is known) and by half as much again at least, in every one of those ticks. Longer prompts must show in two, since a
single very long one is in one only; that shorter ones came no single one can say. What arrives now is left out, so that it can only
add.

**Then** prompts are as long as in those ticks, with the unevenness that was known, and what came before is another load. Answers are
learned anew, from what was generated beyond what those that ended explain: answers in flight belong to requests that began with their
own prompts. That their mean rises in the first two minutes is the turn, and no drift that would go on (``grown``); what is expected
instead is that those which have not ended take as much longer as an answer of which nothing is known (``unended``).

Until it is found, what a decode engine holds is priced by the prompts that came (``need.price_of``), much shorter ones at once and
much longer ones in part. Not so where groups share a number of replicas (``together``): what is expected too much there is not bought
but only divided, and the sooner division serves more."""

from dataclasses import replace

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory, keep_last_ticks
from fairlead_autoscaler.core.workload.request_lengths import SETTLED_REQUESTS, DecayingRatio, RequestLengths

_MIN_TICKS = 2
"""That must show longer prompts: one of them may be a single long one. No single one makes prompts shorter."""
_SETTLE_FACTOR = 2.0
"""How many times as long as a fast mean remembers it moves to another kind of request."""


def detect_shift(
    lengths: RequestLengths, load: ArrivalHistory, settings: ScalingSettings
) -> tuple[RequestLengths, ArrivalHistory]:
    """``lengths`` and ``load`` as they were before this look, or, where prompts became others, as of the ticks since."""
    if lengths.settled_prompt is None:
        return lengths, load
    prompt, variance = lengths.settled_prompt
    known = prompt.mean(0.0)
    spread = variance.smoothed_mean(known * known)
    requests = tokens = 0.0
    sides: set[bool] = set()
    for count, tick in enumerate(reversed(load.recent), start=1):
        if not tick.requests or not _is_other_length(tick.prompt / tick.requests, known, settings):
            break
        sides.add(tick.prompt > known * tick.requests)
        requests, tokens = requests + tick.requests, tokens + tick.prompt
        if requests < SETTLED_REQUESTS or (count < _MIN_TICKS and tokens > known * requests):
            continue
        if len(sides) == 1 and (tokens / requests - known) ** 2 > settings.turn_sigmas**2 * spread / requests:
            return _restart_lengths(lengths, load, count, tokens, requests)
    return lengths, load


def _is_other_length(prompt: float, known: float, settings: ScalingSettings) -> bool:
    return prompt > known * settings.turn_times or prompt * settings.turn_times < known


def _restart_lengths(
    lengths: RequestLengths, load: ArrivalHistory, ticks: int, tokens: float, requests: float
) -> tuple[RequestLengths, ArrivalHistory]:
    assert lengths.settled is not None
    before, variance = lengths.settled
    prompt = DecayingRatio(tokens, requests, tokens, requests)
    times = (tokens / requests / before.mean(0.0)) ** 2
    scaled = replace(variance, fast=variance.fast * times, slow=variance.slow * times)
    turned_at = load.recent[-1].at
    after = replace(lengths, prompt=prompt, prompt_variance=scaled, settled=(prompt, scaled), turned_at=turned_at)
    if lengths.output.slow_of >= SETTLED_REQUESTS:
        # What was generated beyond what those that ended explain is of answers that began since and have not ended.
        so_far = max(0.0, lengths.output.fast - lengths.output.slow / lengths.output.slow_of * lengths.output.fast_of)
        output, began = DecayingRatio(so_far, 0.0, so_far, 0.0), DecayingRatio(requests, 0.0, requests, 0.0)
        after = replace(after, output=output, began=began)
    return after, keep_last_ticks(load, ticks)


def is_shifting(lengths: RequestLengths, now: float, settings: ScalingSettings) -> bool:
    """Is a turn so recent that the mean length of answers still moves to another kind of request?"""
    return lengths.turned_at is not None and now - lengths.turned_at <= _SETTLE_FACTOR * settings.length_seconds


def unfinished_share(lengths: RequestLengths) -> float:
    """Of the answers that began since the turn, the share that has not ended."""
    began, ended = lengths.began.slow, lengths.output.slow_of
    return max(0.0, began - ended) / began if began > 0.0 else 0.0


def bins_for_growth(lengths: RequestLengths, load: ArrivalHistory, settings: ScalingSettings) -> list[ArrivalBin]:
    """The bins by which answers may be told to grow: none in which their mean still moved."""
    return [each for each in load.bins if not is_shifting(lengths, each.at, settings)]
