"""Request lengths: means of prompt tokens, of cached tokens and of output tokens.

Output tokens per request are a slow mean, and a fast one if it has left the slow one by more than
chance explains. A request counts when it finishes. While many more begin than finish, as at the
start, half of it counts when it begins. Otherwise the tokens of all requests in flight would be
counted for the few that finished. Prompts are known from the first one on. Sizing uses what is
known of them when a bin closes (`settled`), so that current arrivals can only add load.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Final

from fairlead_autoscaler.core.types import GatewayTraffic

LENGTH_SECONDS: Final = 60.0
"""Memory of the fast mean."""
LENGTH_SLOW_SECONDS: Final = 900.0
"""Memory of the slow mean."""

_MIN_REQUESTS = 150.0
"""Requests whose mean length is precise enough."""
_SIGMAS = 3.0
_PRIOR_REQUESTS = 2.0
"""Requests as which a prior counts."""
_EPSILON = 1e-9
SETTLED_REQUESTS = 100.0
"""Requests after which prompts of the open bin no longer count. Before, the first burst says
more."""


@dataclass(frozen=True, slots=True)
class DecayingRatio:
    """A quotient of two sums that decay, once fast and once slowly.

    fast_of: also the number of requests on which the fast mean rests.
    """

    fast: float = 0.0
    fast_of: float = 0.0
    slow: float = 0.0
    slow_of: float = 0.0

    def plus(self, value: float, count: float, seconds: float) -> "DecayingRatio":
        """Returns the ratio with `value` over `count` added, measured in the last `seconds`."""
        fast = math.exp(-seconds / LENGTH_SECONDS)
        slow = math.exp(-seconds / LENGTH_SLOW_SECONDS)
        return DecayingRatio(
            self.fast * fast + value, self.fast_of * fast + count, self.slow * slow + value, self.slow_of * slow + count
        )

    def mean(self, default: float) -> float:
        """Returns the fast mean if it is precise or deviates significantly, else the slow mean."""
        if self.fast_of >= _MIN_REQUESTS or (self.slow_of > _MIN_REQUESTS and self.has_shifted(_SIGMAS)):
            return self.fast / self.fast_of
        return self.slow_mean(default)

    def slow_mean(self, default: float) -> float:
        return self.slow / self.slow_of if self.slow_of > _EPSILON else default

    def with_started(self, started: "DecayingRatio", default: float) -> "DecayingRatio":
        """Returns the ratio with half of the unfinished requests, and with the prior `default`."""
        fast, slow = _half_of_unfinished(started.fast, self.fast_of), _half_of_unfinished(started.slow, self.slow_of)
        return DecayingRatio(
            self.fast, self.fast_of + fast, self.slow + _PRIOR_REQUESTS * default, self.slow_of + slow + _PRIOR_REQUESTS
        )

    def smoothed_mean(self, default: float) -> float:
        """Returns the slow mean with the prior `default`, since a first request can have any
        length.
        """
        return (self.slow + _PRIOR_REQUESTS * default) / (self.slow_of + _PRIOR_REQUESTS)

    def has_shifted(self, sigmas: float) -> bool:
        """Whether the means differ by more than `sigmas` standard errors of exponential lengths."""
        if self.fast_of < 4.0:
            return False
        fast, slow = self.fast / self.fast_of, self.slow / self.slow_of
        return abs(fast - slow) > sigmas * slow / math.sqrt(self.fast_of)


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Tokens per request, learned from the traffic.

    cached: cached tokens per prompt token.
    kept, kept_tokens: shares of prompts, and of their tokens, that decode instances compute.
    began: answers that began; queued: those of them that wait at decode instances.
    settled: prompt lengths and their variance when the last bin closed.
    turned_at: when the lengths last shifted.
    last_prompts: tokens and requests of the last tick that had any.
    """

    prompt: DecayingRatio = field(default_factory=DecayingRatio)
    prompt_variance: DecayingRatio = field(default_factory=DecayingRatio)
    cached: DecayingRatio = field(default_factory=DecayingRatio)
    output: DecayingRatio = field(default_factory=DecayingRatio)
    kept: DecayingRatio = field(default_factory=DecayingRatio)
    kept_tokens: DecayingRatio = field(default_factory=DecayingRatio)
    began: DecayingRatio = field(default_factory=DecayingRatio)
    queued: float = 0.0
    settled: tuple[DecayingRatio, DecayingRatio] | None = None
    turned_at: float | None = None
    last_prompts: tuple[float, float] | None = None

    @property
    def settled_prompt(self) -> tuple[DecayingRatio, DecayingRatio] | None:
        """Settled prompt lengths and their variance; None until they rest on enough requests."""
        return self.settled if self.settled is not None and self.settled[0].slow_of >= SETTLED_REQUESTS else None

    def mean_output_tokens(self, default: float) -> float:
        """Returns the mean output tokens of a request.

        Unfinished requests lower the mean of the finished ones, but not below `default`: they may
        only just have begun.
        """
        finished = self.output.with_started(DecayingRatio(), default).mean(default)
        return min(finished, max(default, self.output.with_started(self.began, default).mean(default)))


def _half_of_unfinished(started: float, finished: float) -> float:
    return max(0.0, (started - finished - _SIGMAS * math.sqrt(max(0.0, finished))) / 2.0)


def update_prompt_lengths(before: RequestLengths, tokens: float, requests: float, seconds: float) -> RequestLengths:
    """Returns the lengths with the prompts of a tick.

    The variance of one prompt follows from the squared difference of the means of two successive
    ticks. It is divided by the variance of that difference if one prompt had a variance of 1.

    Why: as lengths drift, all prompts of a tick leave the mean of minutes together. By the
    deviation from that mean, a drift would count as unlike prompts.
    """
    variance, last = before.prompt_variance, before.last_prompts
    if last is not None:
        difference = tokens / requests - last[0] / last[1]
        variance = variance.plus(difference * difference / (1.0 / requests + 1.0 / last[1]), 1.0, seconds)
    return replace(
        before,
        prompt=before.prompt.plus(tokens, requests, seconds),
        prompt_variance=variance,
        last_prompts=(tokens, requests),
    )


def update_decode_prefill_share(before: RequestLengths, traffic: GatewayTraffic, seconds: float) -> RequestLengths:
    """Returns the lengths with the prompts of a tick that decode instances computed themselves."""
    if traffic.kept is None or traffic.kept_tokens is None or not traffic.arrivals or not traffic.prompt_tokens:
        return before
    requests, tokens = min(traffic.kept, traffic.arrivals), min(traffic.kept_tokens, traffic.prompt_tokens)
    return replace(
        before,
        kept=before.kept.plus(requests, traffic.arrivals, seconds),
        kept_tokens=before.kept_tokens.plus(tokens, traffic.prompt_tokens, seconds),
    )
