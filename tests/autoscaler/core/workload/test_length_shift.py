"""A shift of traffic to other lengths: found within seconds, without false alarms."""

import random

import pytest

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import ScalingCore
from fairlead_autoscaler.core.limits.shared_replica_limit import recent_need
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin, ArrivalHistory
from fairlead_autoscaler.core.workload.length_shift import bins_for_growth, detect_shift
from fairlead_autoscaler.core.workload.mean_request import output_growth
from fairlead_autoscaler.core.workload.request_lengths import DecayingRatio, RequestLengths
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
    found = after(*ticks)
    others = [tick for tick in ticks if tick[1] != 4_000.0]
    mean = sum(requests * prompt for requests, prompt in others) / sum(requests for requests, _ in others)
    assert found.prompt.mean(0.0) == pytest.approx(mean)
    assert found.settled is not None
    assert found.settled[0] == found.prompt
    assert found.turned_at == 5.0 * len(ticks)
    assert found.prompt_variance.smoothed_mean(0.0) == pytest.approx(0.25 * mean**2, rel=0.01)
    assert found.output == DecayingRatio(9_000.0, 0.0, 9_000.0, 0.0), (
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
    made = AutoscalingScenario("turn", 13, 1_050.0, reference_model(pools, 2.0, 0.1), tuple(pools), arriving)
    found = run_controller(made, ScalingCore(made.model))
    decode = [look.desired[1] for look in found.samples if look.now > turn]
    assert max(decode) <= 10, "with those that were started beside to keep the first"
    assert max(decode[60:]) <= 5
    assert found.attainment >= 0.93, "without a start ahead of the turn nobody keeps more than 97 %"
