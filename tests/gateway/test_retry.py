"""Retries: how many, and never for the wrong reason."""

from hypothesis import given
from hypothesis import strategies as st

from fairlead.limits import Limits
from fairlead_gateway.retry import Failure, RetryBudget, as_error, worth_retrying

LIMITS = Limits()


def test_three_are_always_allowed_and_then_a_share() -> None:
    budget = RetryBudget(LIMITS)
    assert [budget.take(100.0) for _ in range(4)] == [True, True, True, False]
    for _ in range(50):
        budget.request(101.0)
    assert sum(budget.take(101.0) for _ in range(50)) == 10 - 3


def test_what_is_ten_seconds_old_is_forgotten() -> None:
    budget = RetryBudget(LIMITS)
    assert [budget.take(5.0) for _ in range(4)].count(True) == 3
    assert not budget.take(14.9)
    assert budget.take(15.0)


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
            budget.request(now)
            requests.append(second)
        elif budget.take(now):
            seen = sum(second - 10 < one for one in requests)
            used = sum(second - 10 < one for one in retries)
            assert used < max(3, LIMITS.retry_share * seen)
            retries.append(second)


def test_a_failure_decides_whether_another_engine_may_be_asked() -> None:
    assert worth_retrying([Failure("refused")], LIMITS)
    assert worth_retrying([Failure("reset", died=True)], LIMITS)
    assert not worth_retrying([Failure("timeout", final=True)], LIMITS)
    assert not worth_retrying([Failure("reset", died=True)] * 2, LIMITS)
    assert not worth_retrying([Failure("status-500")] * LIMITS.attempts, LIMITS)
    assert worth_retrying([Failure("refused", sent=False)] * 10, LIMITS)


def test_only_engines_that_answered_badly_charge_the_budget() -> None:
    assert Failure("refused", sent=False).free
    assert Failure("reset", died=True).free
    assert not Failure("status-500").free
    assert not Failure("overloaded", overloaded=True).free


def test_the_error_tells_the_kind_of_failure() -> None:
    assert as_error([Failure("overloaded", overloaded=True)] * 3).status == 503
    assert as_error([Failure("overloaded", overloaded=True), Failure("refused")]).status == 502
    assert as_error([Failure("timeout", final=True)]).status == 504
    assert as_error([Failure("cut", died=True)] * 2).code == "engines_broke_off"
