"""May a request that failed be sent again, and after how long? A pure function.

The rule is that nothing is done twice: a request whose repetition would do more than the first (creating) is repeated only when the
API server says that it did not take it, or when it never got there. An answer that is final (a conflict, a refusal) never is.
"""

from dataclasses import dataclass

from fairlead.kube.errors import KubeError, TooManyRequests, Unreachable
from fairlead.limits import Limits


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """``pause_seconds`` until the next attempt, None when the caller must hear of it; and why."""

    pause_seconds: float | None
    reason: str


def decide_retry(
    error: KubeError, attempt: int, *, repeatable: bool, sent: bool = True, chance: float, limits: Limits
) -> RetryDecision:
    """What to do after the ``attempt``-th one (from 1) ended in ``error``. ``chance`` is drawn evenly from 0 to 1.

    ``sent``: the request may have reached the API server. ``repeatable``: doing it twice is the same as once.
    """
    asked = error.retry_after_seconds
    if not isinstance(error, Unreachable):
        return RetryDecision(None, "the answer is final")
    if attempt >= limits.kube_attempts:
        return RetryDecision(None, f"it was tried {attempt} times")
    if asked is not None and asked > limits.kube_retry_after_seconds:
        return RetryDecision(None, f"the API server asks for {asked:g} s")
    refused = isinstance(error, TooManyRequests) or asked is not None
    if sent and not repeatable and not refused:
        return RetryDecision(None, "it may have been done")
    pause = backoff_seconds(attempt, chance, limits)
    return RetryDecision(pause if asked is None else asked + pause, "it may do better later")


def backoff_seconds(attempt: int, chance: float, limits: Limits) -> float:
    """The pause after the ``attempt``-th failure in a row: doubling, half of it by chance, bounded."""
    longest = min(limits.max_kube_pause_seconds, limits.kube_pause_seconds * 2.0 ** min(attempt - 1, 16))
    return longest * (0.5 + 0.5 * chance)
