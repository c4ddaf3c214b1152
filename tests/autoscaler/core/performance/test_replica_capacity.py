"""The capacity of replicas, and replicas for a load: engines, requests and SLOs of all kinds."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.performance.replica_capacity import (
    Bound,
    LatencyTargets,
    MeanRequest,
    StepModel,
    find_unreachable_target,
    knee_capacity,
    replicas_for,
)
from fairlead_autoscaler.core.settings import CapacitySettings
from fairlead_testing.autoscaler.strategies import MIXES, OBJECTIVES, PROFILES

_SETTINGS = CapacitySettings()
_SMALL = StepModel.from_profile(
    EngineProfile(
        "S",
        3.3e-4,
        step_seconds=28e-3,
        resident_token_seconds=2.2e-7,
        kv_tokens=40_000,
        max_sequences=64,
        step_tokens=512,
    )
)
RATES = st.floats(1e-3, 1e3)


def needed(step: StepModel, mix: MeanRequest, objectives: LatencyTargets, rate: float, near: float = 1.0) -> float:
    """Replicas for so many requests per second."""
    return replicas_for(step, mix, objectives, rate, near, _SETTINGS)


@given(PROFILES, MIXES, OBJECTIVES, RATES, st.floats(1.0, 100.0), st.floats(1e-3, 1e4))
def test_more_requests_never_take_fewer_replicas_wherever_one_begins_to_look(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, rate: float, times: float, near: float
) -> None:
    step = StepModel.from_profile(profile)
    few = needed(step, mix, objectives, rate)
    assert few == needed(step, mix, objectives, rate, near)
    assert few <= needed(step, mix, objectives, rate * times)


@given(PROFILES, MIXES, OBJECTIVES, RATES, st.floats(1.0, 30.0))
def test_longer_prompts_never_take_fewer_replicas(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, rate: float, times: float
) -> None:
    longer = MeanRequest(mix.prompt_tokens * times, mix.output_tokens, mix.cached_share, mix.prompt_variability)
    step = StepModel.from_profile(profile)
    assert needed(step, mix, objectives, rate) <= needed(step, longer, objectives, rate) * (1.0 + 1e-9)


@given(PROFILES, MIXES, OBJECTIVES, st.floats(1.0, 200.0))
def test_both_questions_have_one_answer(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, replicas: float
) -> None:
    step = StepModel.from_profile(profile)
    each = knee_capacity(step, mix, objectives, replicas, _SETTINGS)
    assert needed(step, mix, objectives, replicas * each.requests_per_second) == pytest.approx(replicas, rel=1e-3)


@given(PROFILES, MIXES, RATES, st.floats(1e-6, 10.0), st.floats(1e-6, 10.0))
def test_no_objective_takes_more_than_engines_that_are_free_or_a_fifth_busy(
    profile: EngineProfile, mix: MeanRequest, rate: float, ttft: float, itl: float
) -> None:
    """Batch and memory have room for everything, so that only the SLOs bound the capacity."""
    step = StepModel.from_profile(profile)
    roomy = StepModel(
        step.base_seconds,
        step.sequence_seconds,
        step.resident_token_seconds,
        step.prompt_token_seconds,
        0.0,
        step.chunk_tokens,
        10**9,
        10**13,
    )
    least = rate * roomy.engine_seconds(mix) / _SETTINGS.busy_least
    turn = roomy.base_seconds / (1.0 - _SETTINGS.busy_least)
    full = roomy.base_seconds + roomy.prompt_seconds(mix) / max(1.0, mix.computed_tokens / roomy.chunk_tokens)
    prompts = rate * max(1.0, mix.computed_tokens / roomy.chunk_tokens) * (full + turn)
    free = 2.0 + prompts + 8.0 * math.sqrt(1.0 + prompts) + prompts / _SETTINGS.prefill_busy_most
    decoding = rate * mix.output_tokens * roomy.token_seconds(mix.context_tokens)
    assert needed(roomy, mix, LatencyTargets(ttft, itl), rate) <= max(least, free) + 20.0 * decoding + 2.0


def test_towards_a_first_token_that_cannot_be_met_nothing_jumps() -> None:
    objectives, rate = LatencyTargets(0.5, None), 2.0
    counts = [needed(_SMALL, MeanRequest(float(prompt), 100.0), objectives, rate) for prompt in range(100, 4_000, 10)]
    assert counts == sorted(counts)
    assert max(later / before for before, later in itertools.pairwise(counts)) < 1.25
    assert find_unreachable_target(_SMALL, MeanRequest(100.0, 100.0), objectives) is None
    found = find_unreachable_target(_SMALL, MeanRequest(4_000.0, 100.0), objectives)
    assert found is not None
    assert str(found) == "TTFT target cannot be met: one request alone takes 1.54 of 0.5 s"


def test_towards_a_gap_that_cannot_be_met_nothing_jumps() -> None:
    mix, rate = MeanRequest(500.0, 200.0), 5.0
    counts = [needed(_SMALL, mix, LatencyTargets(3.0, 1e-3 * itl), rate) for itl in range(200, 9, -1)]
    assert counts == sorted(counts)
    assert counts[-1] < rate * _SMALL.engine_seconds(mix) / _SETTINGS.busy_least * 1.01
    found = find_unreachable_target(_SMALL, mix, LatencyTargets(3.0, 0.02))
    assert found is not None
    assert found.bound is Bound.ITL


def test_what_fits_no_memory_is_said_and_sized_for_as_what_fills_it() -> None:
    small = MeanRequest(30_000.0, 5_000.0)
    large = MeanRequest(60_000.0, 5_000.0)
    found = find_unreachable_target(_SMALL, large, LatencyTargets(None, None))
    assert found is not None
    assert str(found) == "KV memory cannot be met: one request alone takes 6.5e+04 of 4e+04 tokens"
    few, many = (needed(_SMALL, mix, LatencyTargets(None, None), 0.1) for mix in (small, large))
    assert few < many < 5.0 * few
