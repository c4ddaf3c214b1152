"""The mix of requests: lengths that shift, variances, shapes, and shares of prompts and answers."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.engine_profile import builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead.request_shapes import RequestShapeGrid, log_edges
from fairlead_autoscaler.collector.observation import GatewayMetrics, GatewaySnapshot, gateway_traffic
from fairlead_autoscaler.core import (
    GatewayTraffic,
    ModelSpec,
    Observation,
    PoolObservation,
    PoolSpec,
    ScalingCore,
    ShapeCount,
)
from fairlead_autoscaler.core.limits.shared_replica_limit import recent_need
from fairlead_autoscaler.core.signals.validation import valid_traffic
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory
from fairlead_autoscaler.core.workload.length_shift import bins_for_growth, detect_shift
from fairlead_autoscaler.core.workload.mean_request import (
    DecodePrefillShare,
    decode_prefill_share,
    mean_request,
    output_growth,
)
from fairlead_autoscaler.core.workload.request_lengths import DecayingRatio, RequestLengths, update_prompt_lengths
from fairlead_autoscaler.core.workload.shape_histogram import ShapeHistogram
from fairlead_sim.autoscaling.closed_loop import run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.reference_pools import COLD_START, large_profile, reference_model, reference_pool
from fairlead_sim.autoscaling.request_table import ArrivalTrace as Arriving

KNOWN = DecayingRatio(4e6, 1_000.0, 4e7, 10_000.0)
"""Prompts of 4,000 tokens."""


def after(*ticks: tuple[float, float], times: float = 0.25) -> RequestLengths:
    """Returns the estimate after ticks with so many requests of so many tokens.

    times: the unevenness of prompts, as a factor of that of exponential ones.
    """
    variance = DecayingRatio(0.0, 0.0, times * 16e6 * 1_000.0, 1_000.0)
    answers = DecayingRatio(100.0 * 400.0 + 9_000.0, 400.0, 100.0 * 5_000.0, 5_000.0)
    before = RequestLengths(prompt=KNOWN, prompt_variance=variance, output=answers, settled=(KNOWN, variance))
    recent = tuple(
        ArrivalBin(5.0 * place, 5.0, requests, requests * prompt, 100.0)
        for place, (requests, prompt) in enumerate(ticks, start=1)
    )
    return detect_shift(before, ArrivalHistory(bins=(ArrivalBin(0.0, 30.0, 600.0, 2.4e6, 100.0),), recent=recent))[0]


@pytest.mark.parametrize(
    "ticks",
    [
        ((100.0, 4_000.0), (120.0, 1_000.0)),
        ((100.0, 4_000.0), (60.0, 1_000.0), (60.0, 1_200.0)),
        ((100.0, 4_000.0), (60.0, 9_000.0), (60.0, 9_000.0)),
    ],
)
def test_requests_of_another_length_are_known_from_their_first_ticks(ticks: tuple[tuple[float, float], ...]) -> None:
    mix = after(*ticks)
    others = [tick for tick in ticks if tick[1] != 4_000.0]
    mean = sum(requests * prompt for requests, prompt in others) / sum(requests for requests, _ in others)
    assert mix.prompt.mean(0.0) == pytest.approx(mean)
    assert mix.settled is not None
    assert mix.settled[0] == mix.prompt
    assert mix.turned_at == 5.0 * len(ticks)
    assert mix.prompt_variance.smoothed_mean(0.0) == pytest.approx(0.25 * mean**2, rel=0.01)
    assert mix.output == DecayingRatio(9_000.0, 0.0, 9_000.0, 0.0), (
        "what those that ended explain is of requests as before"
    )


@pytest.mark.parametrize(
    "ticks",
    [
        ((100.0, 4_000.0), (400.0, 4_000.0)),  # more of the same
        ((100.0, 4_000.0), (120.0, 9_000.0)),  # one tick, in which one prompt of half a million tokens may have been
        ((100.0, 4_000.0), (120.0, 9_000.0), (120.0, 4_100.0)),  # as it turned out
        ((100.0, 4_000.0), (40.0, 1_000.0), (40.0, 1_000.0)),  # few
        ((100.0, 4_000.0), (120.0, 2_900.0), (120.0, 2_900.0)),  # somewhat shorter
        ((100.0, 1_000.0), (50.0, 9_000.0)),  # to and fro
    ],
)
def test_what_is_no_other_kind_of_request_changes_nothing(ticks: tuple[tuple[float, float], ...]) -> None:
    assert after(*ticks).turned_at is None


def test_lengths_that_vary_much_take_more_requests_to_tell() -> None:
    ticks = (100.0, 4_000.0), (120.0, 2_500.0)
    assert after(*ticks, times=0.25).turned_at is not None
    assert after(*ticks, times=4.0).turned_at is None


def test_while_it_turns_answers_are_not_said_to_grow() -> None:
    bins = tuple(ArrivalBin(30.0 * place, 30.0, 100.0, 1e5, 100.0 * place) for place in range(1, 11))
    assert bins_for_growth(RequestLengths(), ArrivalHistory(bins=bins)) == list(bins)
    assert [each.at for each in bins_for_growth(RequestLengths(turned_at=90.0), ArrivalHistory(bins=bins))] == [
        240.0,
        270.0,
        300.0,
    ]


def test_answers_of_which_none_has_ended_are_expected_to_take_longer() -> None:
    began = DecayingRatio(200.0, 0.0, 200.0, 0.0)
    load = ArrivalHistory(recent=(ArrivalBin(100.0, 5.0, 80.0, 8e4, 100.0),))
    for ended, more in ((0.0, 250.0), (100.0, 125.0), (200.0, 0.0)):
        lengths = RequestLengths(output=DecayingRatio(5e4, ended, 5e4, ended), began=began, turned_at=60.0)
        by_now = lengths.mean_output_tokens(250.0)
        assert by_now * output_growth(lengths, load, 120.0) == pytest.approx(by_now + more)
    later = ArrivalHistory(recent=(ArrivalBin(300.0, 5.0, 80.0, 8e4, 100.0),))
    assert (
        output_growth(
            RequestLengths(output=DecayingRatio(3e4, 0.0, 3e4, 0.0), began=began, turned_at=60.0), later, 120.0
        )
        == 1.0
    )


def test_groups_share_by_the_needs_of_a_minute_and_of_nothing_before_a_turn() -> None:
    needs = NeedWindow()
    for now, need in ((5.0, 14.0), (10.0, 8.0), (15.0, 7.0)):
        needs = recent_need(needs, now, need, None, 60.0)
    assert needs.largest == 14.0
    assert recent_need(needs, 20.0, 7.5, 5.0, 60.0).largest == 8.0
    assert recent_need(needs, 66.0, 7.5, None, 60.0).largest == 8.0


def test_after_a_shift_memory_is_not_sized_for_old_prompts_with_new_answers() -> None:
    """The shift is from 6 requests a second of 8,000 / 100 tokens to 16 of 1,000 / 800. Four decode
    engines suffice; sized for old prompts with new answers, 22 are ordered.
    """
    draw, at, turn = random.Random(13), 0.0, 450.0
    requests: list[tuple[float, int, int]] = []
    while (at := at + draw.expovariate(6.0 if at < turn else 16.0)) < 1_050.0:
        prompt, output = (8_000, 100) if at < turn else (1_000, 800)
        requests.append((at, round(prompt * draw.uniform(0.9, 1.1)), round(output * draw.uniform(0.8, 1.2))))
    pools = [
        reference_pool(large_profile(), count, role=role, name=role.value.lower(), startup=COLD_START, minimum=2)
        for role, count in ((Role.PREFILL, 8), (Role.DECODE, 2))
    ]
    arriving = Arriving(*[list(column) for column in zip(*requests, strict=True)])
    scenario = AutoscalingScenario("turn", 13, 1_050.0, reference_model(pools, 2.0, 0.1), tuple(pools), arriving)
    outcome = run_controller(scenario, ScalingCore(scenario.model))
    decode = [look.desired[1] for look in outcome.samples if look.now > turn]
    assert max(decode) <= 10, "with those that were started beside to keep the first"
    assert max(decode[60:]) <= 5
    assert outcome.attainment >= 0.93, "without a start ahead of the turn nobody keeps more than 97 %"


def _variability(ticks: Sequence[tuple[float, float]]) -> float:
    """Returns the variance in squares of the mean, after ticks with these tokens and requests."""
    lengths = RequestLengths()
    for tokens, requests in ticks:
        lengths = update_prompt_lengths(lengths, tokens, requests, 5.0)
    mean = lengths.prompt.mean(0.0)
    return lengths.prompt_variance.slow_mean(0.0) / mean**2


def _drawn(mean: float, count: int, draw: Random) -> float:
    return sum(draw.expovariate(1.0 / mean) for _ in range(count))


@pytest.mark.parametrize("counts", [(20,), (1, 5, 60)])
def test_exponential_lengths_vary_by_their_mean(counts: tuple[int, ...]) -> None:
    """However many requests a tick has, in the mean of forty hours."""
    draw, variabilities = Random(1), []
    for _ in range(40):
        ticks = [draw.choice(counts) for _ in range(600)]
        variabilities.append(_variability([(_drawn(1_000.0, count, draw), float(count)) for count in ticks]))
    assert sum(variabilities) / len(variabilities) == pytest.approx(1.0, rel=0.08)


def test_equal_prompts_do_not_vary() -> None:
    assert _variability([(20_000.0, 20.0), (5_000.0, 5.0)] * 100) == 0.0


def test_lengths_that_drift_are_not_unlike() -> None:
    """They double in a quarter of an hour, which the mean of minutes follows too late."""
    drifting = [(1_000.0 * 2.0 ** (place / 180) * 50.0, 50.0) for place in range(180)]
    assert _variability(drifting) < 0.01


def test_one_tick_has_no_variance() -> None:
    lengths = update_prompt_lengths(RequestLengths(), 5_000.0, 5.0, 5.0)
    assert lengths.prompt_variance.slow_of == 0.0
    assert lengths.last_prompts == (5_000.0, 5.0)


def test_edges_are_the_same_factor_apart() -> None:
    assert log_edges(1.0, 16.0, 4) == pytest.approx((1.0, 2.0, 4.0, 8.0, 16.0))
    for least, most, buckets in ((0.0, 1.0, 2), (2.0, 1.0, 2), (1.0, 2.0, 0)):
        with pytest.raises(BadInput):
            log_edges(least, most, buckets)


def test_the_grid_has_ten_by_ten_buckets_and_takes_what_lies_outside() -> None:
    grid = RequestShapeGrid()
    assert grid.size == 100
    assert grid.bucket_index(0.0, 0.0) == 0
    assert grid.bucket_index(1e9, 1e9) == 99
    assert all(grid.bucket_index(*grid.bucket_center(index)) == index for index in range(100))


def test_a_bucket_stands_for_the_mean_of_what_fell_into_it() -> None:
    seen = ShapeHistogram.empty(0.0).with_requests(10.0, [ShapeCount(100.0, 20.0, 1.0), ShapeCount(101.0, 22.0, 1.0)])
    index = seen.grid.bucket_index(100.0, 20.0)
    assert seen.shape(index) == pytest.approx((100.5, 21.0))
    assert seen.shape(99) == seen.grid.bucket_center(99)
    assert sum(ShapeHistogram.empty(0.0).rates()) == 0.0


def test_rates_follow_the_traffic_and_forget() -> None:
    seen = ShapeHistogram.empty(0.0, half_life_seconds=60.0)
    for second in range(600):
        seen = seen.with_requests(second + 1.0, [ShapeCount(100.0, 20.0, 3.0)])
    index = seen.grid.bucket_index(100.0, 20.0)
    assert seen.rates()[index] == pytest.approx(3.0, rel=0.01)
    quiet = seen.with_requests(660.0, [])
    assert quiet.rates()[index] == pytest.approx(1.5, rel=0.01)
    assert quiet.shape(index) == pytest.approx((100.0, 20.0))


@given(st.lists(st.builds(ShapeCount, st.floats(), st.floats(), st.floats())), st.lists(st.floats(0, 1e6), min_size=1))
def test_nothing_that_is_counted_breaks_it(requests: list[ShapeCount], times: list[float]) -> None:
    seen = ShapeHistogram.empty(0.0)
    for now in times:
        seen = seen.with_requests(now, requests)
    assert all(math.isfinite(rate) and rate >= 0.0 for rate in seen.rates())
    assert seen.at == max(0.0, *times)


PROMPT = 2_000.0


def lengths(requests: float, tokens: float) -> RequestLengths:
    def known(mean: float) -> DecayingRatio:
        return DecayingRatio(1e6 * mean, 1e6, 1e6 * mean, 1e6)

    return RequestLengths(prompt=known(PROMPT), output=known(200.0), kept=known(requests), kept_tokens=known(tokens))


@given(st.floats(0.0, 0.9), st.floats(0.0, 1.0))
def test_every_prompt_token_is_counted_once(requests: float, shorter: float) -> None:
    tokens = requests * shorter
    sizes = lengths(requests, tokens)
    prefill, decode = (mean_request(sizes, role, decode_prefill_share(sizes)) for role in (Role.PREFILL, Role.DECODE))
    assert (1.0 - requests) * prefill.computed_tokens + decode.computed_tokens == pytest.approx(PROMPT)
    assert mean_request(sizes, Role.SERVE, decode_prefill_share(sizes)).computed_tokens == pytest.approx(PROMPT)


def needs(kept: GatewayTraffic, most: int | None = None) -> dict[str, float]:
    """Returns the replicas of each role after ten minutes of a steady load with this share kept."""
    profile = builtin_profile("a100-qwen7b")
    pools = tuple(PoolSpec(role.value, role, maximum=50, profile=profile) for role in (Role.PREFILL, Role.DECODE))
    core = ScalingCore(ModelSpec("m", 2.0, 0.1, pools, replicas_most=most))
    plan = {}
    for tick in range(120):
        seen = {pool.name: PoolObservation(8, 8, replicas=()) for pool in pools}
        plan = dict(core.step(Observation(5.0 * tick, kept, seen)).pools)
    replicas = {name: pool.inputs["need_replicas"].value for name, pool in plan.items()}
    return {name: value for name, value in replicas.items() if value is not None}


def test_what_decode_keeps_is_needed_there_and_no_more_for_prefill() -> None:
    base = GatewayTraffic(50.0, 50.0 * PROMPT)
    unknown, none = needs(base), needs(replace(base, kept=0.0, kept_tokens=0.0))
    assert unknown == none
    some = needs(replace(base, kept=20.0, kept_tokens=20.0 * 1_000.0))
    assert 0.75 * none["Prefill"] < some["Prefill"] < 0.95 * none["Prefill"]  # a fifth less work, of longer prompts
    assert some["Decode"] > none["Decode"]


def test_pools_that_share_a_number_divide_it_as_if_every_prompt_were_handed_over() -> None:
    base = GatewayTraffic(50.0, 50.0 * PROMPT)
    some = replace(base, kept=20.0, kept_tokens=20.0 * 1_000.0)
    assert needs(some, most=100) == needs(base, most=100)


@pytest.mark.parametrize("nonsense", [math.nan, -5.0, math.inf, None])
def test_what_cannot_be_a_count_is_not_known(nonsense: float | None) -> None:
    traffic = valid_traffic(GatewayTraffic(10.0, 1_000.0, kept=nonsense, kept_tokens=5.0))
    assert traffic is not None
    assert traffic.kept is None
    assert traffic.arrivals == 10.0


def test_more_kept_than_arrived_is_all_but_a_little() -> None:
    assert decode_prefill_share(lengths(3.0, 2.0)) == DecodePrefillShare(0.95, 0.95)
    assert decode_prefill_share(RequestLengths()) == DecodePrefillShare(0.0, 0.0)


def test_gateways_counts_are_added_up() -> None:
    counted: dict[tuple[str, ...], float] = {
        ("arrivals", "m"): 5.0,
        ("kept", "m"): 2.0,
        ("kept_tokens", "m"): 300.0,
        ("kept", "other"): 9.0,
    }
    traffic = gateway_traffic(
        "m", GatewaySnapshot((GatewayMetrics("a", counted), GatewayMetrics("b", counted), GatewayMetrics("c")))
    )
    assert traffic is not None
    assert (traffic.kept, traffic.kept_tokens) == (4.0, 600.0)
