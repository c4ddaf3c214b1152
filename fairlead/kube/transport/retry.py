"""Decides whether and when to repeat a failed request. Pure.

No effect may happen twice. A create request is not idempotent. It is repeated only if it was never
sent, or if the API server says that it did not process it. A final answer (conflict,
rejection) is never repeated.
"""

from dataclasses import dataclass
from typing import Final

from fairlead.kube.errors import KubeError, TooManyRequests, Unreachable
from fairlead.limits import Limits

MAX_KUBE_PAUSE_SECONDS: Final = 5.0
"""Limit: longest pause between attempts of a request or a watch."""
KUBE_RETRY_AFTER_SECONDS: Final = 30.0
"""Limit: longest Retry-After that is respected; else the request fails."""


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The pause until the next attempt, in seconds, or None to give up; and the reason."""

    pause_seconds: float | None
    reason: str


def decide_retry(
    error: KubeError, attempt: int, *, repeatable: bool, sent: bool = True, chance: float, limits: Limits
) -> RetryDecision:
    """Returns whether, and after what pause, to repeat a request that failed with `error`.

    attempt: number of the failed attempt, from 1.
    sent: the request may have reached the API server.
    repeatable: the request is idempotent.
    chance: random number from 0 to 1.
    """
    requested_pause = error.retry_after_seconds
    if not isinstance(error, Unreachable):
        return RetryDecision(None, "the answer is final")
    if attempt >= limits.kube_attempts:
        return RetryDecision(None, f"it was tried {attempt} times")
    if requested_pause is not None and requested_pause > KUBE_RETRY_AFTER_SECONDS:
        return RetryDecision(None, f"the API server asks for {requested_pause:g} s")
    was_refused = isinstance(error, TooManyRequests) or requested_pause is not None
    if sent and not repeatable and not was_refused:
        return RetryDecision(None, "it may have been done")
    pause = backoff_seconds(attempt, chance, limits)
    return RetryDecision(pause if requested_pause is None else requested_pause + pause, "it may do better later")


def backoff_seconds(attempt: int, chance: float, limits: Limits) -> float:
    """Returns the pause in seconds after consecutive failure `attempt`.

    The pause doubles with each failure up to a maximum, and half of it is random.
    """
    longest = min(MAX_KUBE_PAUSE_SECONDS, limits.kube_pause_seconds * 2.0 ** min(attempt - 1, 16))
    return longest * (0.5 + 0.5 * chance)
