"""The error budget: what is left of the requests that may miss is spent over the next hour."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.core.performance.counted_misses import CountedMisses, CountsAroundTarget
from fairlead_autoscaler.core.performance.error_budget import BudgetSample, ErrorBudget, update_error_budget
from fairlead_autoscaler.core.performance.miss_corrections import NO_CORRECTIONS
from fairlead_autoscaler.core.performance.missed_share import MissedShares
from fairlead_autoscaler.core.settings import ScalingSettings

_SETTINGS = ScalingSettings()
_ALLOWED = 0.01


def _counted(requests: float, missed: float) -> CountedMisses:
    return CountedMisses(requests, CountsAroundTarget(missed, missed, requests))


def _budget(requests: float, missed: float, hour: float) -> ErrorBudget:
    return ErrorBudget(_counted(requests, missed), hour)


def test_before_the_first_requests_the_goal_is_the_usual_one() -> None:
    assert ErrorBudget().goal(_ALLOWED, _SETTINGS) == _ALLOWED * _SETTINGS.goal_usual
    assert _budget(19.0, 19.0, 19.0).goal(_ALLOWED, _SETTINGS) == _ALLOWED * _SETTINGS.goal_usual


def test_what_is_left_is_spent_over_the_requests_of_an_hour() -> None:
    budget = _budget(10_000.0, 80.0, 5_000.0)
    assert budget.left(_ALLOWED) == pytest.approx(20.0)
    assert budget.goal(_ALLOWED, _SETTINGS) == pytest.approx(1.3 * _ALLOWED + 20.0 / 5_000.0)


def test_a_surplus_raises_the_goal_and_what_was_overspent_lowers_it() -> None:
    usual = _ALLOWED * _SETTINGS.goal_usual
    surplus, even, overspent = (
        _budget(10_000.0, missed, 5_000.0).goal(_ALLOWED, _SETTINGS) for missed in (50.0, 100.0, 125.0)
    )
    assert surplus > even > overspent
    assert even == pytest.approx(usual)


def test_a_plan_that_comes_true_overspends_only_until_the_goal_is_the_allowed_share() -> None:
    budget, seconds = ErrorBudget(), 5.0
    for _ in range(5_000):
        missed = 100.0 * budget.goal(_ALLOWED, _SETTINGS)
        sample = BudgetSample(_counted(100.0, missed), MissedShares(prompts=0.01), seconds, True, False)
        budget = update_error_budget(budget, sample, _SETTINGS)
    spend_requests = 100.0 / seconds * _SETTINGS.budget_spend_seconds
    assert budget.goal(_ALLOWED, _SETTINGS) == pytest.approx(_ALLOWED, rel=0.05)
    assert -budget.left(_ALLOWED) <= (_SETTINGS.goal_usual - 1.0) * _ALLOWED * spend_requests


def test_the_goal_stays_within_multiples_of_the_allowed_share() -> None:
    assert _budget(1e6, 0.0, 1_000.0).goal(_ALLOWED, _SETTINGS) == _ALLOWED * _SETTINGS.max_goal
    assert _budget(1e6, 1e6, 1_000.0).goal(_ALLOWED, _SETTINGS) == _ALLOWED * _SETTINGS.min_goal


@given(
    st.floats(0.0, 1e6),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1e6),
    st.sampled_from([1e-4, 0.01, 0.5]),
)
def test_more_misses_never_raise_the_goal(
    requests: float, one: float, other: float, hour: float, allowed: float
) -> None:
    low, high = sorted((one, other))
    few, many = (_budget(requests, requests * share, hour).goal(allowed, _SETTINGS) for share in (low, high))
    assert many <= few * (1.0 + 1e-9)
    assert allowed * _SETTINGS.min_goal <= many
    assert few <= allowed * _SETTINGS.max_goal


def _sample(missed: float, *, is_representative: bool = True, is_excused: bool = False) -> BudgetSample:
    return BudgetSample(_counted(100.0, missed), MissedShares(prompts=0.01), 5.0, is_representative, is_excused)


def test_what_is_missed_by_too_few_replicas_teaches_nothing_but_counts() -> None:
    short = update_error_budget(ErrorBudget(), _sample(100.0, is_representative=False), _SETTINGS)
    assert short.left(_ALLOWED) == pytest.approx(-99.0)
    assert short.missed_share == 1.0
    assert short.corrections(_SETTINGS) == NO_CORRECTIONS
    enough = update_error_budget(ErrorBudget(), _sample(100.0), _SETTINGS)
    assert enough.left(_ALLOWED) == pytest.approx(-99.0)
    assert enough.corrections(_SETTINGS).first_tokens > 5.0


def test_what_is_missed_without_replicas_counts_for_nothing() -> None:
    excused = update_error_budget(ErrorBudget(), _sample(100.0, is_representative=False, is_excused=True), _SETTINGS)
    assert excused.left(_ALLOWED) == 0.0
    assert excused.missed_share is None
    assert excused.corrections(_SETTINGS) == NO_CORRECTIONS
    assert excused.goal(_ALLOWED, _SETTINGS) == ErrorBudget().goal(_ALLOWED, _SETTINGS)


def test_the_period_is_a_day_and_the_requests_are_those_of_an_hour() -> None:
    budget = ErrorBudget()
    for _ in range(4 * 720):
        budget = update_error_budget(budget, _sample(1.0), _SETTINGS)
    assert 60_000.0 < budget.hour_requests < 73_000.0
    assert budget.period.requests > 0.9 * 4 * 72_000.0
    assert budget.goal(_ALLOWED, _SETTINGS) == pytest.approx(_ALLOWED * _SETTINGS.goal_usual)
    assert budget.corrections(_SETTINGS).first_tokens == pytest.approx(1.0)


def test_after_good_hours_more_may_miss_and_after_bad_ones_less() -> None:
    goals = []
    for missed in (0.0, 1.0, 3.0):
        budget = ErrorBudget()
        for _ in range(720):
            budget = update_error_budget(budget, _sample(missed), _SETTINGS)
        goals.append(budget.goal(_ALLOWED, _SETTINGS))
    assert goals[0] > 1.5 * _ALLOWED
    assert goals[1] == pytest.approx(_ALLOWED * _SETTINGS.goal_usual)
    assert goals[2] == _ALLOWED * _SETTINGS.min_goal
