"""Mean request of each role, and its expected growth.

A group of pools sees only its part of a request. For prefill a request is its prompt. For decode it
is its output, with a prompt that is there already. Prompts that decode instances compute themselves
are work of decode alone, so every token counts once.
"""

from dataclasses import dataclass, replace
from typing import Final

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.performance.step_model import MeanRequest
from fairlead_autoscaler.core.workload.arrivals import ArrivalHistory
from fairlead_autoscaler.core.workload.length_shift import bins_for_growth, is_shifting, unfinished_share
from fairlead_autoscaler.core.workload.load_forecast import MIN_TREND_BINS, fit_line
from fairlead_autoscaler.core.workload.request_lengths import LENGTH_SECONDS, RequestLengths

DRIFT_SIGMAS: Final = 3.0
"""Standard errors by which lengths that drift differ."""
MAX_GROWTH: Final = 2.0
"""Largest growth of lengths that is expected."""

_DEFAULT_PROMPT_TOKENS, _DEFAULT_OUTPUT_TOKENS = 1_000.0, 250.0
"""Lengths before the first request."""
_MAX_VARIABILITY = 4.0
_MAX_DECODE_PREFILL_SHARE = 0.95
_MIN_REQUESTS = 50.0
"""Requests on which a drift of lengths must rest."""


@dataclass(frozen=True, slots=True)
class DecodePrefillShare:
    """Shares of prompts, and of their tokens, that decode instances compute."""

    requests: float = 0.0
    tokens: float = 0.0


NO_DECODE_PREFILL = DecodePrefillShare()


def decode_prefill_share(lengths: RequestLengths) -> DecodePrefillShare:
    """Returns the recent shares of prompts and of their tokens that decode instances computed."""
    return DecodePrefillShare(
        *[min(_MAX_DECODE_PREFILL_SHARE, max(0.0, ratio.mean(0.0))) for ratio in (lengths.kept, lengths.kept_tokens)]
    )


def mean_request(
    lengths: RequestLengths, role: Role, decode_prefill: DecodePrefillShare = NO_DECODE_PREFILL
) -> MeanRequest:
    """Returns the mean request as a group of `role` sees it.

    Why the slow mean until prompts are settled: both means then include the current arrivals. One
    request can make the fast mean precise enough to be used. Then a few long prompts of some
    seconds ago would count less at once, and more requests would take fewer replicas.
    """
    if lengths.settled_prompt is not None:
        settled, variance = lengths.settled_prompt
        mean = settled.mean(_DEFAULT_PROMPT_TOKENS)
    else:
        mean, variance = lengths.prompt.slow_mean(_DEFAULT_PROMPT_TOKENS), lengths.prompt_variance
    prompt = max(1.0, mean)
    output = max(1.0, lengths.mean_output_tokens(_DEFAULT_OUTPUT_TOKENS))
    variability = min(_MAX_VARIABILITY, variance.smoothed_mean(prompt * prompt) / (prompt * prompt))
    cached = min(0.95, max(0.0, lengths.cached.mean(0.0)))
    request = request_for_role(role, MeanRequest(prompt, output, cached, variability))
    if role is Role.PREFILL:
        tokens = prompt * (1.0 - decode_prefill.tokens) / (1.0 - decode_prefill.requests)
        return replace(request, prompt_tokens=max(1.0, tokens))
    return replace(request, cached_share=1.0 - decode_prefill.tokens) if role is Role.DECODE else request


def request_for_role(role: Role, request: MeanRequest) -> MeanRequest:
    """Returns the part of a request that a group of `role` serves."""
    if role is Role.PREFILL:
        return replace(request, output_tokens=1.0)
    return replace(request, cached_share=1.0) if role is Role.DECODE else request


def prompt_growth(history: ArrivalHistory, ahead_seconds: float) -> float:
    """Returns the ratio of prompt lengths `ahead_seconds` from now to those in the level's bins.

    It is 1 without significant growth.

    Why: a mean length has far less noise than a rate. A workload that moves shows here minutes
    before the slope of the load is significant.
    """
    bins = [closed for closed in history.bins if closed.requests > 0.0 and closed.prompt > 0.0]
    if len(bins) < MIN_TREND_BINS:
        return 1.0
    slope, fitted, _ = fit_line(bins, [closed.prompt / closed.requests for closed in bins])
    mean = float_sum([closed.prompt for closed in bins]) / float_sum([closed.requests for closed in bins])
    if slope <= 0.0:
        return 1.0
    return min(MAX_GROWTH, max(1.0, (fitted + slope * ahead_seconds) / mean))


def output_growth(lengths: RequestLengths, history: ArrivalHistory, ahead_seconds: float) -> float:
    """Returns the ratio of output lengths `ahead_seconds` from now to the current mean.

    It is 1 without significant growth. After a recent length shift, unfinished requests are
    expected to take as much longer as one of unknown length.
    """
    tokens = lengths.mean_output_tokens(_DEFAULT_OUTPUT_TOKENS)
    if history.recent and is_shifting(lengths, history.recent[-1].at):
        return 1.0 + unfinished_share(lengths) * _DEFAULT_OUTPUT_TOKENS / tokens
    bins = bins_for_growth(lengths, history)
    is_drifting = lengths.output.fast_of >= _MIN_REQUESTS and lengths.output.has_shifted(DRIFT_SIGMAS)
    if len(bins) < 4 or not is_drifting:
        return 1.0
    growth = (tokens - bins[0].output) / (bins[-1].at - bins[0].at)
    if growth <= 0.0:
        return 1.0
    # The known length is as old as the mean that it comes from.
    return min(MAX_GROWTH, 1.0 + growth * (ahead_seconds + LENGTH_SECONDS) / tokens)
