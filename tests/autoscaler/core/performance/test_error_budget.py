"""The error budget: counted misses, the period they count for, and corrections of predictions."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core import (
    CoreState,
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ReplicaMetrics,
    ReplicaState,
    decide,
)
from fairlead_autoscaler.core.performance.counted_misses import CountedMisses, CountsAroundTarget, counts_around
from fairlead_autoscaler.core.performance.error_budget import BudgetSample, ErrorBudget, update_error_budget
from fairlead_autoscaler.core.performance.miss_corrections import (
    NO_CORRECTIONS,
    MissCorrections,
    MissEvidence,
    scale_odds,
)
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
    requests: float, misses: float, other: float, hour: float, allowed: float
) -> None:
    low, high = sorted((misses, other))
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


_MODEL = ModelSpec(
    "default/tiny",
    2.0,
    0.15,
    (PoolSpec("main", maximum=40, profile=builtin_profile("l4-qwen8b")),),
    target=0.99,
    ttft_bounds=(2.0,),
    itl_bounds=(0.15,),
)


def _period_requests(model: ModelSpec) -> float:
    """Returns the requests that the budget counts after five busy minutes and an idle half hour."""
    state = CoreState()
    counts = (2.0, 0.0)
    replica = ReplicaMetrics(
        "a", ReplicaState.READY, 500.0, 20.0, 1.0, 0.0, 0.1, 2_400.0, 400.0, 20.0, 2.0, 2.0, ttft_counts=counts
    )
    idle = ReplicaMetrics("a", ReplicaState.READY, 500.0, 20.0, *(0.0,) * 8, ttft_counts=(0.0, 0.0))
    for tick in range(420):
        is_busy = tick < 60
        own = replica if is_busy else idle
        pools = {"main": PoolObservation(4, 4, replicas=(own,) * 4)}
        gateway = GatewayTraffic(8.0, 9_600.0) if is_busy else GatewayTraffic(0.0, 0.0)
        state, _ = decide(state, Observation(5.0 * tick, gateway, pools, 1e9), model, ScalingSettings())
    return state.groups[Role.SERVE.value].budget.period.requests


def test_requests_count_for_the_period_of_the_slo() -> None:
    day, half_hour = (_period_requests(replace(_MODEL, period_seconds=seconds)) for seconds in (86_400.0, 1_800.0))
    assert half_hour < day / 2.0
    assert _period_requests(_MODEL) == pytest.approx(day)


_BOUNDS = (1.0, 2.5, 5.0)


def test_at_an_edge_the_counts_beyond_it_are_the_misses() -> None:
    counts = counts_around((50.0, 30.0, 15.0, 5.0), _BOUNDS, 2.5)
    assert (counts.beyond_lower, counts.judged, counts.position) == (20.0, 100.0, 0.0)
    assert counts.missed == 20.0


def test_between_two_edges_misses_fall_off_by_equal_factors() -> None:
    """From 80 beyond 1 s to 5 beyond 2.5 s: by a factor of 16 in 1.5 s."""
    counts = (20.0, 75.0, 5.0, 0.0)
    quarter, half, most = (counts_around(counts, _BOUNDS, 1.0 + 1.5 * part).missed for part in (0.25, 0.5, 0.75))
    assert quarter == pytest.approx(40.0)
    assert half == pytest.approx(20.0)
    assert most == pytest.approx(10.0)


def test_an_empty_bucket_counts_as_half_a_request() -> None:
    counted = counts_around((0.0, 8.0, 0.0, 0.0), _BOUNDS, 1.75)
    assert counted.missed == pytest.approx((8.0 * 0.5) ** 0.5)
    assert counts_around((8.0, 0.0, 0.0, 0.0), _BOUNDS, 1.75).missed == 0.0


def test_counts_of_less_than_half_a_request_are_spread_evenly() -> None:
    assert CountsAroundTarget(0.4, 0.0, 10.0, 0.5).missed == pytest.approx(0.2)


def test_of_an_objective_past_the_last_edge_an_empty_last_bucket_misses_nothing() -> None:
    assert counts_around((4.0, 0.0), (10.0,), 30.0) == CountsAroundTarget(0.0, 0.0, 4.0, 0.0)
    assert counts_around((4.0, 2.0), (10.0,), 30.0) == CountsAroundTarget(2.0, 2.0, 6.0, 0.0)


@pytest.mark.parametrize(
    ("counts", "target"), [((1.0, 2.0, 3.0, 4.0), None), ((0.0, 0.0, 0.0, 0.0), 2.0), ((1.0, 2.0), 2.0)]
)
def test_without_a_target_or_counts_of_these_buckets_nothing_is_judged(
    counts: tuple[float, ...], target: float | None
) -> None:
    assert counts_around(counts, _BOUNDS, target) == CountsAroundTarget()


@given(st.tuples(*[st.integers(0, 10**6).map(float)] * 4), st.floats(0.01, 20.0), st.floats(1.0, 10.0))
def test_a_later_target_is_missed_by_no_more(counts: tuple[float, ...], target: float, times: float) -> None:
    early, late = (counts_around(counts, _BOUNDS, each).missed for each in (target, target * times))
    assert 0.0 <= late <= early * (1.0 + 1e-9) + 0.5
    assert early <= sum(counts)


def test_sums_decay_by_what_is_kept() -> None:
    old = CountedMisses(100.0, CountsAroundTarget(20.0, 10.0, 100.0, 0.5), abandoned=4.0)
    new = CountedMisses(10.0, CountsAroundTarget(2.0, 1.0, 10.0, 0.5), abandoned=1.0, slow=3.0)
    both = old.plus(0.5, new)
    assert both.requests == 60.0
    assert both.first_tokens == CountsAroundTarget(12.0, 6.0, 60.0, 0.5)
    assert both.late_first_tokens == pytest.approx((12.0 * 6.0) ** 0.5 + 3.0)
    assert both.slow_answers == 3.0
    assert both.missed == pytest.approx(both.late_first_tokens + 3.0)


def test_no_more_requests_miss_than_there_were() -> None:
    late = CountsAroundTarget(10.0, 10.0, 10.0)
    assert CountedMisses(10.0, first_tokens=late, gaps=late, abandoned=5.0).missed == 10.0


def _counted_late(requests: float, late: float = 0.0, slow: float = 0.0) -> CountedMisses:
    return CountedMisses(requests, CountsAroundTarget(late, late, requests), slow=slow)


def _corrections(counted: CountedMisses, predicted: MissedShares, ticks: int = 100) -> MissCorrections:
    """Returns the factors after so many such ticks of five seconds."""
    evidence = MissEvidence()
    for _ in range(ticks):
        evidence = evidence.plus(counted, predicted, 5.0, _SETTINGS)
    return evidence.corrections(_SETTINGS)


def test_without_evidence_predictions_stand() -> None:
    assert MissEvidence().corrections(_SETTINGS) == NO_CORRECTIONS
    assert _corrections(CountedMisses(), MissedShares(0.5, 0.0, 0.0, 0.5)) == NO_CORRECTIONS


def test_what_comes_as_predicted_changes_nothing() -> None:
    corrections = _corrections(
        _counted_late(100.0, 3.0, 2.0), MissedShares(prompts=0.01, batch=0.01, memory=0.01, gaps=0.02)
    )
    assert corrections.first_tokens == pytest.approx(1.0)
    assert corrections.gaps == pytest.approx(1.0)


def test_first_tokens_and_gaps_each_learn_from_their_own_misses() -> None:
    fewer = _corrections(_counted_late(100.0, late=0.0, slow=1.0), MissedShares(prompts=0.01, gaps=0.01))
    assert fewer.first_tokens < 0.3
    assert fewer.gaps == pytest.approx(1.0)
    more = _corrections(_counted_late(100.0, late=1.0, slow=4.0), MissedShares(prompts=0.01, gaps=0.01))
    assert more.first_tokens == pytest.approx(1.0)
    assert 2.0 < more.gaps < 4.0


def test_little_evidence_is_worth_less_than_the_prior() -> None:
    """That none of five predicted misses came may be chance."""
    corrections = _corrections(_counted_late(100.0), MissedShares(prompts=0.05), ticks=1)
    assert corrections.first_tokens == pytest.approx(10.0 / 15.0)
    assert corrections.gaps == 1.0


def test_factors_are_between_a_tenth_and_ten() -> None:
    assert _corrections(_counted_late(1_000.0), MissedShares(prompts=1.0, gaps=1.0)) == MissCorrections(0.1, 0.1)
    assert _corrections(_counted_late(1_000.0, 500.0, 500.0), MissedShares()) == MissCorrections(10.0, 10.0)


def test_evidence_fades_within_hours() -> None:
    evidence = MissEvidence().plus(_counted_late(1_000.0, 200.0), MissedShares(prompts=0.01), 5.0, _SETTINGS)
    assert evidence.corrections(_SETTINGS).first_tokens > 5.0
    later = evidence.plus(CountedMisses(), MissedShares(), 6.0 * _SETTINGS.evidence_seconds, _SETTINGS)
    assert later.corrections(_SETTINGS).first_tokens == pytest.approx(1.0, abs=0.1)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.01, 100.0), st.floats(1.0, 10.0))
def test_a_share_with_other_odds_is_still_a_share(share: float, other: float, factor: float, times: float) -> None:
    low, high = sorted((share, other))
    assert 0.0 <= scale_odds(low, factor) <= scale_odds(high, factor) * (1.0 + 1e-12) <= 1.0 + 1e-12
    assert scale_odds(low, factor) <= scale_odds(low, factor * times) * (1.0 + 1e-12)
    assert scale_odds(high, factor) <= 1.0
    assert scale_odds(low, 1.0) == pytest.approx(low)


def test_small_shares_scale_by_the_factor_and_none_and_all_do_not() -> None:
    assert scale_odds(1e-4, 10.0) == pytest.approx(1e-3, rel=1e-2)
    assert scale_odds(0.5, 3.0) == pytest.approx(0.75)
    assert scale_odds(0.0, 10.0) == 0.0
    assert scale_odds(1.0, 0.1) == 1.0
