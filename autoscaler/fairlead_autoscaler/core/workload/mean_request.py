"""Mean request."""

from dataclasses import dataclass, replace

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.capacity import (
    MeanRequest,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.workload.arrivals import ArrivalHistory
from fairlead_autoscaler.core.workload.length_shift import bins_for_growth, is_shifting, unfinished_share
from fairlead_autoscaler.core.workload.level import fit_line
from fairlead_autoscaler.core.workload.request_lengths import RequestLengths


def prompt_growth(load: ArrivalHistory, ahead_seconds: float, settings: ScalingSettings) -> float:
    """How many times as long prompts will be, so many seconds ahead, as they were in the bins that the level is taken from; 1 where
    they do not grow by more than chance. A mean length is far less noisy than a rate, so that a mix that moves shows here minutes
    before the load's own slope is to be believed."""
    bins = [each for each in load.bins if each.requests > 0.0 and each.prompt > 0.0]
    if len(bins) < settings.trend_bins:
        return 1.0
    slope, fitted, _ = fit_line(bins, [each.prompt / each.requests for each in bins], settings)
    mean = sum(each.prompt for each in bins) / sum(each.requests for each in bins)
    return min(settings.drift_most, max(1.0, (fitted + slope * ahead_seconds) / mean)) if slope > 0.0 else 1.0


_DEFAULT_PROMPT_TOKENS, _DEFAULT_OUTPUT_TOKENS = 1_000.0, 250.0
"""Tokens of a request before any was seen."""


_MAX_VARIABILITY = 4.0


_MIN_REQUESTS = 50.0
"""Requests that a drift of lengths must rest on."""


_MAX_DECODE_PREFILL_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class DecodePrefillShare:
    """What share of prompts, and of their tokens, the engines that decode compute."""

    requests: float = 0.0
    tokens: float = 0.0


NO_DECODE_PREFILL = DecodePrefillShare()


def mean_request(
    lengths: RequestLengths, role: Role, decode_prefill: DecodePrefillShare = NO_DECODE_PREFILL
) -> MeanRequest:
    """The mean request as a group of ``role`` sees it, where decode engines keep so much of prefill. Until prompts are settled it is
    the slow mean: those that come now count in it, and at the one that makes the fast mean rest on enough, a few long ones of some
    seconds ago would count for less at once, and more requests would take fewer replicas."""
    if lengths.settled_prompt is not None:
        known, variance = lengths.settled_prompt
        mean = known.mean(_DEFAULT_PROMPT_TOKENS)
    else:
        mean, variance = lengths.prompt.slow_mean(_DEFAULT_PROMPT_TOKENS), lengths.prompt_variance
    prompt = max(1.0, mean)
    answer = max(1.0, lengths.mean_output_tokens(_DEFAULT_OUTPUT_TOKENS))
    uneven = min(_MAX_VARIABILITY, variance.smoothed_mean(prompt * prompt) / (prompt * prompt))
    cached = min(0.95, max(0.0, lengths.cached.mean(0.0)))
    seen = request_for_role(role, MeanRequest(prompt, answer, cached, uneven))
    if role is Role.PREFILL:
        return replace(
            seen, prompt_tokens=max(1.0, prompt * (1.0 - decode_prefill.tokens) / (1.0 - decode_prefill.requests))
        )
    return replace(seen, cached_share=1.0 - decode_prefill.tokens) if role is Role.DECODE else seen


def decode_prefill_share(lengths: RequestLengths) -> DecodePrefillShare:
    """As it was lately."""
    return DecodePrefillShare(
        *[min(_MAX_DECODE_PREFILL_SHARE, max(0.0, ratio.mean(0.0))) for ratio in (lengths.kept, lengths.kept_tokens)]
    )


def request_for_role(role: Role, request: MeanRequest) -> MeanRequest:
    """What of a request a group of ``role`` has to do."""
    if role is Role.PREFILL:
        return replace(request, output_tokens=1.0)
    return replace(request, cached_share=1.0) if role is Role.DECODE else request


def output_growth(
    lengths: RequestLengths, load: ArrivalHistory, ahead_seconds: float, settings: ScalingSettings
) -> float:
    """How many times as long answers will be, by how they grew over the last minutes; 1 where they did not, by more than chance.
    Where traffic turned just now, those that began since and are not over will take as much longer as any answer takes of which
    nothing is known."""
    now = lengths.mean_output_tokens(_DEFAULT_OUTPUT_TOKENS)
    if load.recent and is_shifting(lengths, load.recent[-1].at, settings):
        return 1.0 + unfinished_share(lengths) * _DEFAULT_OUTPUT_TOKENS / now
    bins = bins_for_growth(lengths, load, settings)
    if len(bins) < 4 or lengths.output.fast_of < _MIN_REQUESTS or not lengths.output.deviates(settings.drift_sigmas):
        return 1.0
    then = bins[0]
    seconds = bins[-1].at - then.at
    growth = (now - then.output) / seconds
    if growth <= 0.0:
        return 1.0
    # What is known of lengths is as old as what it was averaged over.
    return min(settings.drift_most, 1.0 + growth * (ahead_seconds + settings.length_seconds) / now)
