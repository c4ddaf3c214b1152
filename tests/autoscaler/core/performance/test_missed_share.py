"""The share of requests that miss their targets: bounds, and the way it grows."""

from dataclasses import astuple, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.performance.missed_share import MissedShares, missed_shares
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_testing.autoscaler.control_loop import MIXES, OBJECTIVES, PROFILES

_LARGE = StepModel.from_profile(
    EngineProfile(
        "L",
        9e-5,
        step_seconds=12e-3,
        resident_token_seconds=8.7e-8,
        kv_tokens=400_000,
        max_sequences=256,
        step_tokens=1_024,
    )
)
_CHAT, _USUAL = MeanRequest(1_155.0, 211.0), LatencyTargets(2.0, 0.1)
BUSY = st.floats(1e-4, 1.2)
REPLICAS = st.floats(1.0, 1_000.0)


def at_busy(step: StepModel, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float) -> MissedShares:
    """Returns the missed shares where requests take this share of the time of each engine."""
    return missed_shares(step, mix, targets, busy / step.engine_seconds(mix), replicas)


@given(PROFILES, MIXES, OBJECTIVES, BUSY, REPLICAS)
def test_shares_are_between_none_and_all(
    profile: EngineProfile, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float
) -> None:
    found = at_busy(StepModel.from_profile(profile), mix, targets, busy, replicas)
    for share in (found.prompts, found.batch, found.memory, found.gaps, found.total):
        assert 0.0 <= share <= 1.0
    assert found.total >= max(found.prompts, found.batch, found.memory, found.gaps)
    if busy >= 1.0:
        assert found.total == 1.0


@pytest.mark.parametrize("busy", [1.0, 1.0 - 1e-16, 1.0 - 1e-12])
def test_all_answers_are_slow_on_an_engine_without_a_free_moment(busy: float) -> None:
    """Found by 10,000 examples: steps with and without a chunk were equal, but for rounding."""
    profile = EngineProfile(
        "one sequence",
        prefill_token_seconds=1e-6,
        step_seconds=1e-3,
        sequence_seconds=1e-6,
        resident_token_seconds=1e-9,
        kv_tokens=2_000,
        max_sequences=1,
        step_tokens=16,
    )
    mix, targets = MeanRequest(3.627773439663084, 24.38449420228684), LatencyTargets(None, 1e-3)
    assert at_busy(StepModel.from_profile(profile), mix, targets, busy, 1.0).gaps == 1.0


@given(PROFILES, MIXES, OBJECTIVES, BUSY, st.floats(1.0, 3.0), REPLICAS)
def test_with_more_requests_on_each_replica_no_share_is_smaller(
    profile: EngineProfile, mix: MeanRequest, targets: LatencyTargets, busy: float, times: float, replicas: float
) -> None:
    step = StepModel.from_profile(profile)
    few, many = (at_busy(step, mix, targets, each, replicas) for each in (busy, busy * times))
    assert all(less <= more + 1e-12 for less, more in zip(astuple(few)[:4], astuple(many)[:4], strict=True)), (
        few,
        many,
    )


@given(PROFILES, MIXES, OBJECTIVES, BUSY, REPLICAS, st.floats(1.0, 30.0))
def test_equally_busy_replicas_miss_no_more_the_more_they_are(
    profile: EngineProfile, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float, times: float
) -> None:
    step = StepModel.from_profile(profile)
    few, many = (at_busy(step, mix, targets, busy, each) for each in (replicas, replicas * times))
    assert all(less <= more + 1e-12 for less, more in zip(astuple(many)[:4], astuple(few)[:4], strict=True)), (
        few,
        many,
    )


@given(PROFILES, MIXES, OBJECTIVES, BUSY, REPLICAS, st.floats(1.0, 10.0))
def test_later_targets_miss_no_more(
    profile: EngineProfile, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float, times: float
) -> None:
    assume(targets.ttft_seconds is not None or targets.itl_seconds is not None)
    step = StepModel.from_profile(profile)
    later = LatencyTargets(
        None if targets.ttft_seconds is None else targets.ttft_seconds * times,
        None if targets.itl_seconds is None else targets.itl_seconds * times,
    )
    early, late = (at_busy(step, mix, each, busy, replicas) for each in (targets, later))
    assert all(less <= more + 1e-12 for less, more in zip(astuple(late)[:4], astuple(early)[:4], strict=True)), (
        early,
        late,
    )


def test_without_a_target_nothing_misses_it() -> None:
    found = at_busy(_LARGE, _CHAT, LatencyTargets(None, None), 0.9, 4.0)
    assert (found.prompts, found.gaps) == (0.0, 0.0)
    assert at_busy(_LARGE, _CHAT, LatencyTargets(2.0, None), 0.9, 4.0).gaps == 0.0
    assert at_busy(_LARGE, _CHAT, LatencyTargets(None, 0.03), 0.9, 4.0).gaps > 0.01


def test_one_token_has_no_gap_that_could_be_late() -> None:
    one, two = (
        at_busy(_LARGE, MeanRequest(500.0, output), LatencyTargets(None, 0.02), 0.9, 1.0) for output in (1.0, 2.0)
    )
    assert one.gaps == 0.0
    assert two.gaps > 0.5


@pytest.mark.parametrize(
    ("mix", "step", "named"),
    [
        (MeanRequest(8_000.0, 1.0), _LARGE, "prompts"),
        (MeanRequest(10.0, 500.0), replace(_LARGE, kv_tokens=10**9), "batch"),
        (MeanRequest(20_000.0, 2_000.0, 0.99), _LARGE, "memory"),
        (_CHAT, replace(_LARGE, max_sequences=10**6, kv_tokens=10**9), "gaps"),
    ],
)
def test_misses_come_from_what_is_scarce(mix: MeanRequest, step: StepModel, named: str) -> None:
    busy = next(
        share / 1_000 for share in range(1, 1_000) if at_busy(step, mix, _USUAL, share / 1_000, 8.0).total > 0.01
    )
    found = at_busy(step, mix, _USUAL, busy, 8.0)
    shares = {"prompts": found.prompts, "batch": found.batch, "memory": found.memory, "gaps": found.gaps}
    assert max(shares, key=lambda name: shares[name]) == named


def test_short_answers_are_hurt_between_chunks_that_take_longer_than_the_target() -> None:
    """A step with a full chunk takes 0.1 s more than one without."""
    long = MeanRequest(7_000.0, 335.0)
    strict, lax = (at_busy(_LARGE, long, LatencyTargets(30.0, itl), 0.7, 8.0).gaps for itl in (0.1, 0.2))
    assert strict > 0.01
    assert lax < strict / 100
    answers = [
        at_busy(_LARGE, MeanRequest(7_000.0, output), LatencyTargets(30.0, 0.1), 0.6, 8.0).gaps
        for output in (50.0, 500.0)
    ]
    assert answers[0] > answers[1], "a long answer outlasts them"


def test_unlike_prompts_wait_longer() -> None:
    mix = MeanRequest(8_000.0, 50.0, prompt_variability=0.0)
    equal, unlike = (
        at_busy(_LARGE, replace(mix, prompt_variability=each), _USUAL, 0.8, 4.0).prompts for each in (0.0, 3.0)
    )
    assert 0.0 < equal < unlike
