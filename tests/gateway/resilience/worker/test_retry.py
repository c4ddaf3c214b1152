"""Retries: how many, and never for the wrong reason."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_gateway.caller_key import ANONYMOUS, CallerKey
from fairlead_gateway.resilience.worker.retry import (
    MAX_REFUSALS,
    MIN_RETRIES,
    AttemptFailure,
    RetryBudget,
    should_retry,
    to_client_error,
)

LIMITS = Limits()


def test_a_few_are_always_allowed_and_then_a_share() -> None:
    budget = RetryBudget(LIMITS)
    assert [budget.take(ANONYMOUS, 100.0) for _ in range(MIN_RETRIES + 1)] == [True] * MIN_RETRIES + [False]
    for _ in range(100):
        budget.on_request(ANONYMOUS, 101.0)
    assert sum(budget.take(ANONYMOUS, 101.0) for _ in range(50)) == 20 - MIN_RETRIES


def test_what_is_ten_seconds_old_is_forgotten() -> None:
    budget = RetryBudget(LIMITS)
    assert [budget.take(ANONYMOUS, 5.0) for _ in range(MIN_RETRIES + 1)].count(True) == MIN_RETRIES
    assert not budget.take(ANONYMOUS, 14.9)
    assert budget.take(ANONYMOUS, 15.0)


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300))
def test_in_no_ten_seconds_there_are_more_than_allowed(steps: list[tuple[float, bool]]) -> None:
    budget = RetryBudget(LIMITS)
    now = 50.0
    requests: list[int] = []
    retries: list[int] = []
    for pause, retry in steps:
        now += pause
        second = int(now)
        if not retry:
            budget.on_request(ANONYMOUS, now)
            requests.append(second)
        else:
            seen = sum(second - 10 < request for request in requests)
            used = sum(second - 10 < retry for retry in retries)
            assert budget.take(ANONYMOUS, now) is (used < max(MIN_RETRIES, LIMITS.retry_share * seen))
            retries += [second] if used < max(MIN_RETRIES, LIMITS.retry_share * seen) else []


def test_one_caller_does_not_spend_the_retries_of_others() -> None:
    budget, flood, steady = RetryBudget(LIMITS), CallerKey("flood"), CallerKey("steady")
    for second in range(10):
        for _ in range(50):
            budget.on_request(flood, float(second))
            budget.take(flood, float(second))
        budget.on_request(steady, float(second))
    assert not budget.has_left(flood, 9.5)
    assert [budget.take(steady, 9.5) for _ in range(MIN_RETRIES + 1)] == [True] * MIN_RETRIES + [False]


def test_retry_counts_of_callers_are_bounded() -> None:
    budget = RetryBudget(LIMITS, max_callers=2)
    first, second, third = CallerKey("a"), CallerKey("b"), CallerKey("c")
    assert [budget.take(first, 1.0) for _ in range(MIN_RETRIES + 1)].count(True) == MIN_RETRIES
    budget.on_request(second, 1.0)
    budget.on_request(first, 1.0)
    budget.on_request(third, 1.0)
    assert len(budget._callers) == 2
    assert not budget.has_left(first, 1.0)


def test_a_failure_decides_whether_another_engine_may_be_asked() -> None:
    assert should_retry([AttemptFailure("refused")], LIMITS)
    assert should_retry([AttemptFailure("reset", crashed=True)], LIMITS)
    assert not should_retry([AttemptFailure("timeout", is_final=True)], LIMITS)
    assert not should_retry([AttemptFailure("reset", crashed=True)] * 2, LIMITS)
    assert not should_retry([AttemptFailure("status-500")] * LIMITS.max_attempts, LIMITS)
    assert should_retry([AttemptFailure("refused", was_sent=False)] * 10, LIMITS)


def test_only_engines_that_answered_badly_charge_the_budget() -> None:
    assert AttemptFailure("refused", was_sent=False).is_exempt_from_budget
    assert AttemptFailure("reset", crashed=True).is_exempt_from_budget
    assert not AttemptFailure("status-500").is_exempt_from_budget
    assert not AttemptFailure("overloaded", is_overload=True).is_exempt_from_budget


def test_the_error_tells_the_kind_of_failure() -> None:
    assert to_client_error([AttemptFailure("overloaded", is_overload=True)] * 3).status == 503
    assert to_client_error([AttemptFailure("overloaded", is_overload=True), AttemptFailure("refused")]).status == 502
    assert to_client_error([AttemptFailure("timeout", is_final=True)]).status == 504
    assert to_client_error([AttemptFailure("cut", crashed=True)] * 2).code == "engines_broke_off"


def test_one_request_does_not_try_every_instance_of_a_fleet_that_refuses_it() -> None:
    refusals = [AttemptFailure("refused", was_sent=False) for _ in range(MAX_REFUSALS)]
    assert should_retry(refusals[:-1], LIMITS)
    assert not should_retry(refusals, LIMITS)
