"""Corrections of predicted misses by those that were counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.core.performance.counted_misses import CountedMisses, CountsAroundTarget
from fairlead_autoscaler.core.performance.miss_corrections import (
    NO_CORRECTIONS,
    MissCorrections,
    MissEvidence,
    scale_odds,
)
from fairlead_autoscaler.core.performance.missed_share import MissedShares
from fairlead_autoscaler.core.settings import ScalingSettings

_SETTINGS = ScalingSettings()


def _counted(requests: float, late: float = 0.0, slow: float = 0.0) -> CountedMisses:
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
    found = _corrections(_counted(100.0, 3.0, 2.0), MissedShares(prompts=0.01, batch=0.01, memory=0.01, gaps=0.02))
    assert found.first_tokens == pytest.approx(1.0)
    assert found.gaps == pytest.approx(1.0)


def test_first_tokens_and_gaps_each_learn_from_their_own_misses() -> None:
    fewer = _corrections(_counted(100.0, late=0.0, slow=1.0), MissedShares(prompts=0.01, gaps=0.01))
    assert fewer.first_tokens < 0.3
    assert fewer.gaps == pytest.approx(1.0)
    more = _corrections(_counted(100.0, late=1.0, slow=4.0), MissedShares(prompts=0.01, gaps=0.01))
    assert more.first_tokens == pytest.approx(1.0)
    assert 2.0 < more.gaps < 4.0


def test_little_evidence_is_worth_less_than_the_prior() -> None:
    """That none of five predicted misses came may be chance."""
    found = _corrections(_counted(100.0), MissedShares(prompts=0.05), ticks=1)
    assert found.first_tokens == pytest.approx(10.0 / 15.0)
    assert found.gaps == 1.0


def test_factors_are_between_a_tenth_and_ten() -> None:
    assert _corrections(_counted(1_000.0), MissedShares(prompts=1.0, gaps=1.0)) == MissCorrections(0.1, 0.1)
    assert _corrections(_counted(1_000.0, 500.0, 500.0), MissedShares()) == MissCorrections(10.0, 10.0)


def test_evidence_fades_within_hours() -> None:
    evidence = MissEvidence().plus(_counted(1_000.0, 200.0), MissedShares(prompts=0.01), 5.0, _SETTINGS)
    assert evidence.corrections(_SETTINGS).first_tokens > 5.0
    later = evidence.plus(CountedMisses(), MissedShares(), 6.0 * _SETTINGS.evidence_seconds, _SETTINGS)
    assert later.corrections(_SETTINGS).first_tokens == pytest.approx(1.0, abs=0.1)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.01, 100.0), st.floats(1.0, 10.0))
def test_a_share_with_other_odds_is_still_a_share(one: float, other: float, factor: float, times: float) -> None:
    low, high = sorted((one, other))
    assert 0.0 <= scale_odds(low, factor) <= scale_odds(high, factor) * (1.0 + 1e-12) <= 1.0 + 1e-12
    assert scale_odds(low, factor) <= scale_odds(low, factor * times) * (1.0 + 1e-12)
    assert scale_odds(high, factor) <= 1.0
    assert scale_odds(low, 1.0) == pytest.approx(low)


def test_small_shares_scale_by_the_factor_and_none_and_all_do_not() -> None:
    assert scale_odds(1e-4, 10.0) == pytest.approx(1e-3, rel=1e-2)
    assert scale_odds(0.5, 3.0) == pytest.approx(0.75)
    assert scale_odds(0.0, 10.0) == 0.0
    assert scale_odds(1.0, 0.1) == 1.0
