"""The capacity of replicas, and replicas for a load: engines, requests and SLOs of all kinds."""

import itertools
import math
from dataclasses import replace
from statistics import NormalDist

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fairlead.engine_profile import EngineProfile
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections
from fairlead_autoscaler.core.performance.missed_share import missed_shares
from fairlead_autoscaler.core.performance.replica_capacity import (
    MIN_BUSY,
    Bound,
    ExpectedLoad,
    ReplicaModel,
    find_unreachable_target,
)
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_testing.autoscaler.control_loop import MIXES, OBJECTIVES, PROFILES

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
_CHAT = MeanRequest(1_155.0, 211.0)
RATES = st.floats(1e-3, 1e3)
DEVIATIONS = st.floats(0.0, 0.5)
SHARE_OF_STEP = 2e-4
"""Twice the relative step between the numbers of replicas that the search knows."""


def model_of(step: StepModel, mix: MeanRequest, objectives: LatencyTargets) -> ReplicaModel:
    """Returns a replica without corrections."""
    return ReplicaModel(step, mix, objectives)


def needed(step: StepModel, mix: MeanRequest, objectives: LatencyTargets, rate: float, near: float = 1.0) -> float:
    """Replicas for so many requests per second."""
    return model_of(step, mix, objectives).replicas_for(ExpectedLoad(rate), near)


@given(PROFILES, MIXES, OBJECTIVES, RATES, DEVIATIONS, st.floats(1.0, 100.0), st.floats(1e-3, 1e4))
def test_more_requests_never_take_fewer_replicas_wherever_one_begins_to_look(
    profile: EngineProfile,
    mix: MeanRequest,
    objectives: LatencyTargets,
    rate: float,
    deviation: float,
    times: float,
    near: float,
) -> None:
    replica = model_of(StepModel.from_profile(profile), mix, objectives)
    few = replica.replicas_for(ExpectedLoad(rate, deviation), 1.0)
    assert few == replica.replicas_for(ExpectedLoad(rate, deviation), near)
    assert few <= replica.replicas_for(ExpectedLoad(rate * times, deviation), near)


@given(PROFILES, MIXES, OBJECTIVES, RATES, st.floats(1.0, 30.0))
def test_longer_prompts_never_take_fewer_replicas(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, rate: float, times: float
) -> None:
    """A running request, which is longer than the mean, fits into the memory of an engine."""
    assume(mix.prompt_tokens + mix.running_answer * mix.output_tokens <= profile.kv_tokens)
    longer = MeanRequest(mix.prompt_tokens * times, mix.output_tokens, mix.cached_share, mix.prompt_variability)
    step = StepModel.from_profile(profile)
    assert needed(step, mix, objectives, rate) <= needed(step, longer, objectives, rate) * (1.0 + 1e-9)


STRICT = OBJECTIVES.filter(lambda targets: targets.allowed_miss_share <= 0.1)


@given(PROFILES, MIXES, STRICT, RATES, DEVIATIONS, DEVIATIONS)
def test_a_less_certain_load_never_takes_fewer_replicas(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, rate: float, one: float, other: float
) -> None:
    """At most a tenth of the requests may miss.

    If half of them may, all requests of the largest loads may, and a less certain load has more of
    those.
    """
    replica = model_of(StepModel.from_profile(profile), mix, objectives)
    low, high = sorted((one, other))
    certain, less, more = (replica.replicas_for(ExpectedLoad(rate, share), 1.0) for share in (0.0, low, high))
    assert certain <= less <= more


@given(PROFILES, MIXES, OBJECTIVES, RATES, DEVIATIONS)
def test_fewer_misses_than_predicted_never_take_more_replicas(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, rate: float, deviation: float
) -> None:
    step, load = StepModel.from_profile(profile), ExpectedLoad(rate, deviation)
    counts = [
        ReplicaModel(step, mix, objectives, MissCorrections(factor, factor)).replicas_for(load, 1.0)
        for factor in (0.1, 1.0, 10.0)
    ]
    assert counts == sorted(counts)


def expected_share(replica: ReplicaModel, load: ExpectedLoad, replicas: float) -> float:
    """Returns the share of a normally distributed load that misses, by a fine sum."""
    missed = arrived = 0.0
    for index in range(2_000):
        sigmas = NormalDist().inv_cdf((index + 0.5) / 2_000)
        rate = max(0.0, load.requests_per_second * (1.0 + load.deviation * sigmas))
        share = missed_shares(replica.step, replica.request, replica.targets, rate / replicas, replicas).total
        missed, arrived = missed + share * rate, arrived + rate
    return missed / arrived


@pytest.mark.parametrize("rate", [5.0, 50.0, 500.0])
@pytest.mark.parametrize("deviation", [0.0, 0.03, 0.1, 0.2])
@pytest.mark.parametrize(
    ("step", "mix", "targets"),
    [
        (_SMALL, MeanRequest(900.0, 200.0), LatencyTargets(3.0, 0.15)),
        (_LARGE, _CHAT, LatencyTargets(2.0, 0.1)),
        (_LARGE, MeanRequest(7_000.0, 335.0), LatencyTargets(30.0, 0.1)),
        (_LARGE, MeanRequest(1_500.0, 20.0), LatencyTargets(1.0, None, 0.001)),
    ],
)
def test_expected_share_of_misses_is_the_allowed_one(
    step: StepModel, mix: MeanRequest, targets: LatencyTargets, deviation: float, rate: float
) -> None:
    """Seven points stand for the distribution, so the share is met about.

    They reach to three deviations. Of one in a thousand, that leaves out as many again.
    """
    replica, load = model_of(step, mix, targets), ExpectedLoad(rate, deviation)
    found = replica.replicas_for(load, 1.0)
    within = 1e-3 if deviation == 0.0 else 0.5 if targets.allowed_miss_share >= 0.01 else 1.0
    assert expected_share(replica, load, found * (1.0 + 1e-12)) <= targets.allowed_miss_share * (1.0 + within)
    fewer = expected_share(replica, load, found * (1.0 - SHARE_OF_STEP))
    assert fewer >= targets.allowed_miss_share * (1.0 - min(0.5, within))


def test_the_larger_the_deviation_the_more_is_kept_for_it() -> None:
    replica = model_of(_LARGE, _CHAT, LatencyTargets(2.0, 0.1))
    counts = [replica.replicas_for(ExpectedLoad(60.0, deviation), 1.0) for deviation in (0.0, 0.1, 0.2, 0.4)]
    assert counts[1] > 1.05 * counts[0]
    assert counts == sorted(counts)
    assert counts[3] < (1.0 + 3.05 * 0.4) * counts[0], "no load beyond the last point is expected"


def test_no_load_needs_no_replica() -> None:
    assert model_of(_LARGE, _CHAT, LatencyTargets(2.0, 0.1)).replicas_for(ExpectedLoad(0.0, 0.3), 4.0) == 0.0


@given(PROFILES, MIXES, OBJECTIVES, st.floats(1.0, 200.0))
def test_both_questions_have_one_answer(
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, replicas: float
) -> None:
    step = StepModel.from_profile(profile)
    each = model_of(step, mix, objectives).capacity(replicas)
    assert needed(step, mix, objectives, replicas * each.requests_per_second) == pytest.approx(replicas, rel=1e-3)


@given(PROFILES, MIXES, RATES, st.floats(1e-6, 10.0), st.floats(1e-6, 10.0))
def test_no_objective_takes_more_than_engines_that_are_free_or_a_fifth_busy(
    profile: EngineProfile, mix: MeanRequest, rate: float, ttft: float, itl: float
) -> None:
    """Batch and memory have room for everything, so that only the SLOs bound the capacity.

    For 99 % of the prompts an engine is free if 90 or more share them and are half busy. So it is
    if each is busy for 1 % of the time.
    """
    step = StepModel.from_profile(profile)
    roomy = replace(step, attention_seconds=0.0, max_sequences=10**9, kv_tokens=10**13)
    fifth_busy = rate * roomy.engine_seconds(mix) / MIN_BUSY
    turn = roomy.base_seconds / (1.0 - MIN_BUSY)
    chunks = mix.computed_tokens / roomy.chunk_tokens
    prompts = rate * (max(1.0, chunks) * turn + roomy.prompt_seconds(mix))
    free = min(90.0 + 2.0 * prompts, prompts / 0.01)
    assert needed(roomy, mix, LatencyTargets(ttft, itl, 0.01), rate) <= max(fifth_busy, free, 2e-4) * 1.001


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
    assert counts[-1] < rate * _SMALL.engine_seconds(mix) / MIN_BUSY * 1.01
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


@pytest.mark.parametrize(
    ("mix", "targets", "bound"),
    [
        (MeanRequest(8_000.0, 2.0), LatencyTargets(2.0, None), Bound.TTFT),
        (MeanRequest(100.0, 300.0), LatencyTargets(5.0, 0.02), Bound.ITL),
        (MeanRequest(20_000.0, 2_000.0, 0.99), LatencyTargets(10.0, 0.2), Bound.KV),
        (MeanRequest(10.0, 500.0), LatencyTargets(10.0, None), Bound.BATCH),
    ],
)
def test_the_bound_of_a_capacity_is_what_most_misses_come_from(
    mix: MeanRequest, targets: LatencyTargets, bound: Bound
) -> None:
    assert model_of(_LARGE, mix, targets).capacity(10.0).bound is bound


def test_missed_shares_of_an_uncertain_load_are_the_mean_over_the_load() -> None:
    replica = model_of(_LARGE, _CHAT, LatencyTargets(2.0, 0.1))
    each = replica.capacity(10.0).requests_per_second
    certain, uncertain = (replica.missed(ExpectedLoad(9.0 * each, share), 10.0) for share in (0.0, 0.1))
    assert certain == missed_shares(_LARGE, _CHAT, replica.targets, 9.0 * each / 10.0, 10.0)
    assert certain.total < 0.01 < uncertain.total
    assert math.isclose(certain.prompt_busy, uncertain.prompt_busy, rel_tol=0.15)
