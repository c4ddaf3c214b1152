"""The capacity of a replica: missed shares, running answers, and what decode engines could take."""

import itertools
import math
from dataclasses import astuple, replace
from statistics import NormalDist

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fairlead.decision import DecisionInput
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.decode_slack import DecodeLoad, decode_slack
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections
from fairlead_autoscaler.core.performance.missed_share import MissedShares, missed_shares
from fairlead_autoscaler.core.performance.replica_capacity import (
    MIN_BUSY,
    Bound,
    ExpectedLoad,
    ReplicaModel,
    find_unreachable_target,
)
from fairlead_autoscaler.core.performance.running_answers import RunningAnswers, update_running_answers
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_autoscaler.core.plan_inputs import add_decode_slack
from fairlead_autoscaler.core.types import ModelSpec, PoolObservation, PoolPlan, PoolSpec
from fairlead_testing.autoscaler.control_loop import LARGE_ENGINE, MIXES, OBJECTIVES, PROFILES, SMALL_ENGINE

_SMALL, _LARGE = map(StepModel.from_profile, (SMALL_ENGINE, LARGE_ENGINE))
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
    profile: EngineProfile, mix: MeanRequest, objectives: LatencyTargets, rate: float, deviation: float, other: float
) -> None:
    """At most a tenth of the requests may miss.

    If half of them may, all requests of the largest loads may, and a less certain load has more of
    those.
    """
    replica = model_of(StepModel.from_profile(profile), mix, objectives)
    low, high = sorted((deviation, other))
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
    replicas = replica.replicas_for(load, 1.0)
    within = 1e-3 if deviation == 0.0 else 0.5 if targets.allowed_miss_share >= 0.01 else 1.0
    assert expected_share(replica, load, replicas * (1.0 + 1e-12)) <= targets.allowed_miss_share * (1.0 + within)
    fewer = expected_share(replica, load, replicas * (1.0 - SHARE_OF_STEP))
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
    unreachable = find_unreachable_target(_SMALL, MeanRequest(4_000.0, 100.0), objectives)
    assert unreachable is not None
    assert str(unreachable) == "TTFT target cannot be met: one request alone takes 1.54 of 0.5 s"


def test_towards_a_gap_that_cannot_be_met_nothing_jumps() -> None:
    mix, rate = MeanRequest(500.0, 200.0), 5.0
    counts = [needed(_SMALL, mix, LatencyTargets(3.0, 1e-3 * itl), rate) for itl in range(200, 9, -1)]
    assert counts == sorted(counts)
    assert counts[-1] < rate * _SMALL.engine_seconds(mix) / MIN_BUSY * 1.01
    unreachable = find_unreachable_target(_SMALL, mix, LatencyTargets(3.0, 0.02))
    assert unreachable is not None
    assert unreachable.bound is Bound.ITL


def test_what_fits_no_memory_is_said_and_sized_for_as_what_fills_it() -> None:
    small = MeanRequest(30_000.0, 5_000.0)
    large = MeanRequest(60_000.0, 5_000.0)
    unreachable = find_unreachable_target(_SMALL, large, LatencyTargets(None, None))
    assert unreachable is not None
    assert str(unreachable) == "KV memory cannot be met: one request alone takes 6.5e+04 of 4e+04 tokens"
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


_USUAL = LatencyTargets(2.0, 0.1)
BUSY = st.floats(1e-4, 1.2)
REPLICAS = st.floats(1.0, 1_000.0)


def at_busy(step: StepModel, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float) -> MissedShares:
    """Returns the missed shares where requests take this share of the time of each engine."""
    return missed_shares(step, mix, targets, busy / step.engine_seconds(mix), replicas)


def assert_no_share_is_greater(some: MissedShares, others: MissedShares) -> None:
    pairs = zip(astuple(some)[:4], astuple(others)[:4], strict=True)
    assert all(less <= more + 1e-12 for less, more in pairs), (some, others)


@given(PROFILES, MIXES, OBJECTIVES, BUSY, REPLICAS)
def test_shares_are_between_none_and_all(
    profile: EngineProfile, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float
) -> None:
    shares = at_busy(StepModel.from_profile(profile), mix, targets, busy, replicas)
    for share in (shares.prompts, shares.batch, shares.memory, shares.gaps, shares.total):
        assert 0.0 <= share <= 1.0
    assert shares.total >= max(shares.prompts, shares.batch, shares.memory, shares.gaps)
    if busy >= 1.0:
        assert shares.total == 1.0


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
    assert_no_share_is_greater(few, many)


@given(PROFILES, MIXES, OBJECTIVES, BUSY, REPLICAS, st.floats(1.0, 30.0))
def test_equally_busy_replicas_miss_no_more_the_more_they_are(
    profile: EngineProfile, mix: MeanRequest, targets: LatencyTargets, busy: float, replicas: float, times: float
) -> None:
    step = StepModel.from_profile(profile)
    few, many = (at_busy(step, mix, targets, busy, each) for each in (replicas, replicas * times))
    assert_no_share_is_greater(many, few)


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
    assert_no_share_is_greater(late, early)


def test_without_a_target_nothing_misses_it() -> None:
    shares = at_busy(_LARGE, _CHAT, LatencyTargets(None, None), 0.9, 4.0)
    assert (shares.prompts, shares.gaps) == (0.0, 0.0)
    assert at_busy(_LARGE, _CHAT, LatencyTargets(2.0, None), 0.9, 4.0).gaps == 0.0
    assert at_busy(_LARGE, _CHAT, LatencyTargets(None, 0.03), 0.9, 4.0).gaps > 0.01


def test_one_token_has_no_gap_that_could_be_late() -> None:
    single_token, two = (
        at_busy(_LARGE, MeanRequest(500.0, output), LatencyTargets(None, 0.02), 0.9, 1.0) for output in (1.0, 2.0)
    )
    assert single_token.gaps == 0.0
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
    misses = at_busy(step, mix, _USUAL, busy, 8.0)
    shares = {"prompts": misses.prompts, "batch": misses.batch, "memory": misses.memory, "gaps": misses.gaps}
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


_RUNNING_ANSWERS_CHAT = MeanRequest(1_000.0, 200.0)


def _watched(tokens_of_each: float, seconds: float, *, sequences: float = 50.0) -> RunningAnswers:
    answers = RunningAnswers()
    for _ in range(round(seconds / 5.0)):
        answers = update_running_answers(answers, sequences * tokens_of_each, sequences, _RUNNING_ANSWERS_CHAT, 5.0)
    return answers


def test_without_measurements_lengths_are_taken_for_exponential() -> None:
    assert RunningAnswers().factor(200.0) == 2.0


@pytest.mark.parametrize(("generated", "factor"), [(200.0, 2.0), (160.0, 1.6), (310.0, 3.1)])
def test_a_running_sequence_holds_half_of_its_answer(generated: float, factor: float) -> None:
    assert _watched(1_000.0 + generated, 900.0).factor(200.0) == pytest.approx(factor, rel=0.05)


def test_a_few_sequences_hardly_change_the_guess() -> None:
    assert _watched(1_310.0, 10.0, sequences=2.0).factor(200.0) == pytest.approx(2.0, abs=0.05)


def test_what_cannot_be_keeps_within_bounds() -> None:
    """Prompts that share blocks, or engines that keep unused ones."""
    assert _watched(100.0, 900.0).factor(200.0) == 1.2
    assert _watched(90_000.0, 900.0).factor(200.0) == 3.5


def test_a_new_mix_is_learned_within_minutes() -> None:
    answers = _watched(1_160.0, 1_800.0)
    for _ in range(120):
        answers = update_running_answers(answers, 50.0 * 1_310.0, 50.0, _RUNNING_ANSWERS_CHAT, 5.0)
    assert answers.factor(200.0) > 2.7


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e3), st.floats(0.0, 1e5), st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_the_factor_is_a_number_within_bounds(
    tokens: float, sequences: float, prompt: float, output: float, seconds: float
) -> None:
    request = MeanRequest(prompt, output)
    answers = update_running_answers(RunningAnswers(), tokens, sequences, request, seconds)
    assert math.isfinite(answers.factor(output))
    assert 1.2 <= answers.factor(output) <= 3.5


L = replace(LARGE_ENGINE, sequence_seconds=4e-5)


def test_idle_decode_engines_could_take_prompts_and_full_ones_could_not() -> None:
    quiet = decode_slack(L, DecodeLoad(0.25, 100.0, 1_050.0), itl_seconds=0.1, ttft_seconds=2.0)
    assert quiet.rule == "slack"
    assert 0.0 < quiet.prompt_tokens < L.kv_tokens
    assert decode_slack(L, DecodeLoad(7.5, 800.0, 1_400.0), itl_seconds=0.1, ttft_seconds=2.0).rule == "batch-full"
    assert decode_slack(L, DecodeLoad(0.01, 100.0, 1_050.0), itl_seconds=0.013, ttft_seconds=2.0).rule == "step-full"
    endless = decode_slack(L, DecodeLoad(0.25, 100.0, 1_050.0), itl_seconds=0.1, ttft_seconds=None)
    assert endless.prompt_tokens == L.kv_tokens


@given(st.floats(0.01, 10.0), st.floats(100, 4_000), st.floats(10, 1_000), st.floats(0, 1e-8), st.floats(0, 0.05))
def test_what_decode_could_take_keeps_both_objectives(
    rate: float, prompt: float, output: float, attention: float, weights: float
) -> None:
    profile = replace(L, attention_seconds=attention, weights_seconds=weights)
    decoding = DecodeLoad(rate, output, prompt + output / 2)
    slack = decode_slack(profile, decoding, itl_seconds=0.1, ttft_seconds=2.0)
    if slack.rule != "slack":
        assert slack.tokens_per_second == slack.prompt_tokens == 0.0
        return
    batch, chunk = rate * output * 0.09, slack.tokens_per_second * 0.09
    step = 12e-3 + max(weights, 9e-5 * (batch + chunk)) + batch * (4e-5 + 8.7e-8 * decoding.context_tokens)
    assert step + attention * chunk * slack.prompt_tokens / 2 <= 0.09 + 1e-6
    assert chunk + batch <= L.step_tokens + 1e-6
    assert slack.prompt_tokens * 0.09 / chunk <= 1.0 + 1e-6
    busier = decode_slack(profile, replace(decoding, requests_per_second=rate * 1.5), itl_seconds=0.1, ttft_seconds=2.0)
    assert busier.prompt_tokens <= slack.prompt_tokens


def test_it_is_told_with_the_number_of_a_decode_pool_and_no_other() -> None:
    pools = (PoolSpec("pre", Role.PREFILL, profile=L), PoolSpec("dec", Role.DECODE, profile=L))
    model = ModelSpec("m", 2.0, 0.1, pools)
    numbers = {
        "level_replicas": 1.0,
        "capacity_requests_per_second": 5.0,
        "prompt_tokens": 1_000.0,
        "output_tokens": 100.0,
        "speed_factor": 1.0,
    }
    inputs = {name: DecisionInput(value) for name, value in numbers.items()}
    plans = {name: PoolPlan(2, "enough", "", inputs) for name in ("pre", "dec")}
    seen = {name: PoolObservation(2, 2) for name in plans}
    with_slack = add_decode_slack(model, plans, seen)
    assert with_slack["pre"] == plans["pre"]
    two = with_slack["dec"].inputs["convertible_tokens_per_second"].value
    four = (
        add_decode_slack(model, plans, {**seen, "dec": PoolObservation(4, 4)})["dec"]
        .inputs["convertible_tokens_per_second"]
        .value
    )
    assert two is not None
    assert four is not None
    assert four > 2 * two > 0.0
    for less in (replace(model, itl_seconds=None), replace(model, pools=(replace(pools[1], profile=None),))):
        assert add_decode_slack(less, {"dec": plans["dec"]}, seen)["dec"] == plans["dec"]
    assert add_decode_slack(model, {"dec": PoolPlan(2, "metrics-missing", "")}, seen)["dec"].inputs == {}
    assert add_decode_slack(model, plans, {**seen, "dec": PoolObservation(2, 0)})["dec"] == plans["dec"]
