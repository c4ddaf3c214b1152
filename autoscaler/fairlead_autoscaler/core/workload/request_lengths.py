"""What is learned while it runs: how fast engines are, how long answers get, how long starting takes.

**Speed.** The step model gives the gap between tokens from what ran on each engine: sequences on average (seconds between tokens per
second), resident tokens, prompt tokens per step. What was seen divided by that is how many times as slow as its profile an engine is.
Its mean over the last three quarters of a minute scales every coefficient: an engine that got 35 % slower is known as such in two
minutes. By means over all engines those that work off a queue beside new ones seemed up to three times as slow.

**Lengths.** Tokens generated per request, by a slow mean, and by a fast one where that has left the slow one by more than
chance explains. A request counts when it ends; while many more began than ended, as at the start, half when it begins and half when
it ends, or what those in flight have generated already would be counted for the few that ended. Prompts are known from the first
one on; sizes follow what is known of them when a bin is closed (``settled``), so that what arrives now can only add."""

import math
from dataclasses import dataclass, field, replace

from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.types import GatewayTraffic

_MIN_REQUESTS = 150.0
"""Requests whose mean length is good enough."""
_SIGMAS = 3.0
_PRIOR_REQUESTS = 2.0
"""Requests that what is assumed beforehand of answers counts as."""
_EPSILON = 1e-9
SETTLED_REQUESTS = 100.0
"""Requests from which on prompts are known well enough not to look at those of the open bin; before, the first burst says more."""


@dataclass(frozen=True, slots=True)
class DecayingRatio:
    """A quotient of two sums that forget, fast and slow; ``fast_of`` also counts how much the fast one rests on."""

    fast: float = 0.0
    fast_of: float = 0.0
    slow: float = 0.0
    slow_of: float = 0.0

    def plus(self, value: float, count: float, seconds: float, settings: ScalingSettings) -> "DecayingRatio":
        """With ``value`` over ``of`` of the last ``seconds``."""
        fast = math.exp(-seconds / settings.length_seconds)
        slow = math.exp(-seconds / settings.length_slow_seconds)
        return DecayingRatio(
            self.fast * fast + value, self.fast_of * fast + count, self.slow * slow + value, self.slow_of * slow + count
        )

    def mean(self, default: float) -> float:
        """The fast mean, where it rests on enough or is off by more than chance explains; else the slow one. Before anything was
        seen, ``otherwise``."""
        if self.fast_of >= _MIN_REQUESTS or (self.slow_of > _MIN_REQUESTS and self.deviates(_SIGMAS)):
            return self.fast / self.fast_of
        return self.slow_mean(default)

    def slow_mean(self, default: float) -> float:
        """The slow mean, whatever the fast one rests on; before anything was seen, ``otherwise``."""
        return self.slow / self.slow_of if self.slow_of > _EPSILON else default

    def with_started(self, started: "DecayingRatio", default: float) -> "DecayingRatio":
        """The same, counting in part what ``began`` and has not ended, and with what is assumed beforehand."""
        fast, slow = _half_of_unfinished(started.fast, self.fast_of), _half_of_unfinished(started.slow, self.slow_of)
        return DecayingRatio(
            self.fast, self.fast_of + fast, self.slow + _PRIOR_REQUESTS * default, self.slow_of + slow + _PRIOR_REQUESTS
        )

    def smoothed_mean(self, default: float) -> float:
        """The slow mean, in which what is assumed beforehand counts as some too: a first one alone may be anything."""
        return (self.slow + _PRIOR_REQUESTS * default) / (self.slow_of + _PRIOR_REQUESTS)

    def deviates(self, sigmas: float) -> bool:
        """Is the fast mean off the slow one by so many standard errors of exponential lengths?"""
        if self.fast_of < 4.0:
            return False
        fast, slow = self.fast / self.fast_of, self.slow / self.slow_of
        return abs(fast - slow) > sigmas * slow / math.sqrt(self.fast_of)


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Tokens per request: of prompts as they arrive (and their variance), of them from caches, and of answers; ``began`` counts
    the answers that began, ``queued`` those of them that wait at decode engines by now. ``settled`` is what was known of prompts and
    their variance when the last bin was closed, ``turned_at`` when they became others last (``turn``). And what share of prompts, and
    of their tokens, decode engines compute."""

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

    @property
    def settled_prompt(self) -> tuple[DecayingRatio, DecayingRatio] | None:
        """What was settled of prompts, and of their variance, once it rests on enough not to look at those of the open bin."""
        return self.settled if self.settled is not None and self.settled[0].slow_of >= SETTLED_REQUESTS else None

    def mean_output_tokens(self, default: float) -> float:
        """Tokens of an answer. What has only begun makes answers shorter than those that ended let them seem, but never shorter than
        ``otherwise``: it may only just have begun."""
        ended = self.output.with_started(DecayingRatio(), default).mean(default)
        return min(ended, max(default, self.output.with_started(self.began, default).mean(default)))


def _half_of_unfinished(started: float, finished: float) -> float:
    """What half of those count that began and have not ended, beyond what chance makes of as many that begin as end."""
    return max(0.0, (started - finished - _SIGMAS * math.sqrt(max(0.0, finished))) / 2.0)


def update_prompt_lengths(
    before: RequestLengths, tokens: float, requests: float, seconds: float, settings: ScalingSettings
) -> RequestLengths:
    """``before`` with the prompts of a tick. The variance of one prompt is what a tick's sum is off by, squared, per prompt in
    it."""
    variance = before.prompt_variance
    if before.prompt.slow_of >= 20.0:
        off = tokens - requests * before.prompt.mean(0.0)
        variance = variance.plus(off * off / requests, 1.0, seconds, settings)
    return replace(before, prompt=before.prompt.plus(tokens, requests, seconds, settings), prompt_variance=variance)


def update_decode_prefill_share(
    before: RequestLengths, traffic: GatewayTraffic, seconds: float, settings: ScalingSettings
) -> RequestLengths:
    """``before`` with what decode engines computed of the prompts of a tick."""
    if traffic.kept is None or traffic.kept_tokens is None or not traffic.arrivals or not traffic.prompt_tokens:
        return before
    return replace(
        before,
        kept=before.kept.plus(min(traffic.kept, traffic.arrivals), traffic.arrivals, seconds, settings),
        kept_tokens=before.kept_tokens.plus(
            min(traffic.kept_tokens, traffic.prompt_tokens), traffic.prompt_tokens, seconds, settings
        ),
    )
