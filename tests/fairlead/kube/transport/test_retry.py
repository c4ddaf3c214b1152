"""Failed requests that are retried, and the delays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.kube.errors import Conflict, EvictionBlocked, Forbidden, TooManyRequests, Unreachable
from fairlead.kube.transport.retry import (
    KUBE_RETRY_AFTER_SECONDS,
    MAX_KUBE_PAUSE_SECONDS,
    backoff_seconds,
    decide_retry,
)
from fairlead.limits import Limits

LIMITS = Limits()


@pytest.mark.parametrize("kind", [Conflict, Forbidden, EvictionBlocked])
def test_final_answers_are_not_retried(kind: type[Conflict]) -> None:
    then = decide_retry(kind("no", status=409), 1, repeatable=True, chance=0.0, limits=LIMITS)
    assert then.pause_seconds is None
    assert then.reason == "the answer is final"


@pytest.mark.parametrize(
    ("error", "sent", "repeated"),
    [
        (Unreachable("reset"), True, False),
        (Unreachable("refused"), False, True),
        (Unreachable("internal error", status=500), True, False),
        (Unreachable("overloaded", status=503, retry_after_seconds=1.0), True, True),
        (TooManyRequests("later", status=429), True, True),
    ],
)
def test_nothing_is_done_twice(error: Unreachable, sent: bool, repeated: bool) -> None:
    once = decide_retry(error, 1, repeatable=False, sent=sent, chance=0.5, limits=LIMITS)
    assert (once.pause_seconds is not None) == repeated
    assert decide_retry(error, 1, repeatable=True, sent=sent, chance=0.5, limits=LIMITS).pause_seconds is not None


def test_requested_pause_is_respected() -> None:
    later = TooManyRequests("later", retry_after_seconds=7.0)
    then = decide_retry(later, 1, repeatable=True, chance=0.0, limits=LIMITS)
    assert then.pause_seconds is not None
    assert then.pause_seconds >= 7.0
    much_later = TooManyRequests("later", retry_after_seconds=KUBE_RETRY_AFTER_SECONDS + 1)
    assert decide_retry(much_later, 1, repeatable=True, chance=0.0, limits=LIMITS).pause_seconds is None


def test_attempts_are_bounded() -> None:
    gone = Unreachable("away")
    pauses = [decide_retry(gone, n, repeatable=True, chance=0.0, limits=LIMITS).pause_seconds for n in range(1, 7)]
    assert [pause is not None for pause in pauses] == [True] * (LIMITS.kube_attempts - 1) + [False, False]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pause_grows_and_is_bounded(attempt: int, chance: float) -> None:
    pause = backoff_seconds(attempt, chance, LIMITS)
    assert LIMITS.kube_pause_seconds / 2 <= pause <= MAX_KUBE_PAUSE_SECONDS
    assert pause <= backoff_seconds(attempt, 1.0, LIMITS) <= 2 * backoff_seconds(attempt + 1, 0.0, LIMITS)
