"""Known facts about public autoscalers, seen on the simulated plant.

A benchmark of them is wrong if it does not show these facts. They were measured before this code
existed, with an hour of conversations and forty minutes of short answers. The thresholds lie
between those measurements and the opposite. `make test` runs twenty minutes of conversations.
"""

import math
from functools import cache
from itertools import pairwise
from random import Random

import pytest

from fairlead_sim.autoscalers import build
from fairlead_sim.autoscaling import traffic as loads
from fairlead_sim.autoscaling.closed_loop import ControllerOutcome, run_controller
from fairlead_sim.autoscaling.plant import AutoscalingScenario, PlantFaults
from fairlead_sim.autoscaling.pool import PoolSetup
from fairlead_sim.autoscaling.reference_pools import (
    LARGE_COST,
    WARM_START,
    large_profile,
    reference_model,
    reference_pool,
    small_profile,
)
from fairlead_sim.autoscaling.scenarios import SCENARIOS
from fairlead_testing.pytest_hooks.nightly import shortened

_WINDOW = shortened((1_200.0, 1_500.0), (600.0, 900.0))
_WAVE = [8.0 + 2.0 * math.sin(2.0 * math.pi * minute / 30.0) for minute in range(shortened(60, 20))]
_RAMP = [4.0 + 26.0 * min(1.0, minute / 20.0) for minute in range(shortened(40, 24))]


def made(
    name: str,
    rates: list[float],
    lengths: loads.LengthDistribution,
    setup: PoolSetup,
    ttft: float,
    itl: float,
    troubles: PlantFaults,
) -> AutoscalingScenario:
    load = loads.poisson_arrivals(rates, lengths, Random(name))
    return AutoscalingScenario(
        name, 1, len(rates) * 60.0, reference_model([setup], ttft, itl), (setup,), load, troubles
    )


@cache
def scenario(name: str) -> AutoscalingScenario:
    if name == "short":
        return made(
            name,
            _RAMP,
            loads.SHORT_OUTPUT_LENGTHS,
            reference_pool(large_profile(), 2, cost=LARGE_COST),
            2.0,
            0.2,
            PlantFaults(),
        )
    troubles = {
        "chat": PlantFaults(),
        "blind": PlantFaults(missing=(_WINDOW,)),
        "lying": PlantFaults(zeroed=(_WINDOW,)),
    }
    return made(name, _WAVE, loads.CHAT_LENGTHS, reference_pool(small_profile(), 10), 3.0, 0.15, troubles[name])


@cache
def outcome(where: str, preset: str) -> ControllerOutcome:
    played = scenario(where)
    return run_controller(played, build(preset, played.model))


def counts(seen: ControllerOutcome, begin: float = 0.0, end: float = math.inf) -> list[int]:
    return [look.desired[0] for look in seen.samples if begin <= look.now < end]


def in_window(seen: ControllerOutcome) -> float:
    share = seen.attainment_between(*_WINDOW)
    assert share is not None
    return share


@pytest.mark.parametrize("preset", shortened(["hpa-kv", "apa-kv", "apa-kv-fixed"], ["hpa-kv"]))
def test_kv_share_is_blind_to_short_answers(preset: str) -> None:
    starved = outcome("short", preset)
    assert starved.attainment < 0.10
    assert counts(starved)[-1] <= 2  # seven are needed


@pytest.mark.nightly
@pytest.mark.parametrize("preset", ["hpa-concurrency", "keda-concurrency", "kpa-concurrency"])
def test_concurrency_has_a_knife_edge_on_short_answers(preset: str) -> None:
    seen = outcome("short", preset)
    assert seen.attainment < 0.90
    assert max(counts(seen)) >= 20  # three times what is needed, and late


def test_the_same_controllers_are_good_on_conversations() -> None:
    for preset in shortened(("hpa-kv", "hpa-concurrency", "keda-concurrency"), ("hpa-concurrency",)):
        seen = outcome("chat", preset)
        assert seen.attainment > 0.99
        assert max(counts(seen)) <= 15


@pytest.mark.nightly
def test_request_rate_does_not_see_longer_answers() -> None:
    drift = SCENARIOS["drift"](1, None)
    by_rate, by_kv = (run_controller(drift, build(name, drift.model)) for name in ("hpa-request-rate", "hpa-kv"))

    def grown(seen: ControllerOutcome) -> float:
        before, after = counts(seen, 1_800.0, 3_000.0), counts(seen, 5_400.0)
        return sum(after) / len(after) / (sum(before) / len(before))

    assert grown(by_rate) < 1.15
    assert grown(by_kv) > 1.7


@pytest.mark.nightly
@pytest.mark.parametrize("preset", ["apa-kv", "apa-concurrency"])
def test_apa_as_shipped_oscillates_between_nothing_and_everything(preset: str) -> None:
    shipped, mended = outcome("chat", preset), outcome("chat", f"{preset}-fixed")
    assert shipped.attainment < 0.60
    assert min(counts(shipped)) <= 2
    assert max(counts(shipped)) >= 50
    assert shipped.reversals_per_hour >= 20
    assert mended.attainment > shipped.attainment + 0.4
    assert mended.reversals_per_hour < shipped.reversals_per_hour / 2
    assert mended.cost > 2.0 * outcome("chat", "hpa-concurrency").cost  # what it then keeps


def test_kpa_changes_its_mind_until_it_has_a_down_delay() -> None:
    bare, delayed = outcome("chat", "kpa-concurrency"), outcome("chat", "kpa-concurrency-delayed")
    assert bare.changes_per_hour > 80
    assert bare.reversals_per_hour > 30
    assert delayed.changes_per_hour < bare.changes_per_hour / 2
    assert delayed.reversals_per_hour < bare.reversals_per_hour / 3


def test_zeroed_metrics_shrink_kpa_unless_the_window_is_as_long() -> None:
    for preset in shortened(("kpa-concurrency", "kpa-request-rate"), ("kpa-concurrency",)):
        lied = outcome("lying", preset)
        assert in_window(lied) < 0.55
        assert min(counts(lied, *_WINDOW)) == 1
    delayed = ("kpa-concurrency-delayed", "hpa-concurrency", "keda-concurrency")
    for preset in shortened(delayed, delayed[:1]):
        assert in_window(outcome("lying", preset)) > 0.95


@pytest.mark.nightly
def test_zeroed_metrics_shrink_dynamo_later_and_for_longer() -> None:
    """It takes the mean of three minutes."""
    lied, after = outcome("lying", "dynamo"), (_WINDOW[1], _WINDOW[1] + 300.0)
    assert lied.attainment_between(*after) == pytest.approx(0.36, abs=0.15)
    assert min(counts(lied, *after)) == 1
    assert (outcome("chat", "dynamo").attainment_between(*after) or 0.0) > 0.95


def test_missing_metrics_change_nothing_where_they_are_known_to_be_missing() -> None:
    for preset in shortened(("hpa-concurrency", "hpa-kv", "wva-saturation"), ("wva-saturation",)):
        held = counts(outcome("blind", preset), *_WINDOW)
        assert min(held) == held[0]
    assert min(counts(outcome("blind", "apa-concurrency"), *_WINDOW)) == 1  # reads zeros


@pytest.mark.nightly
def test_missing_metrics_lower_keda_within_the_window_of_its_hpa() -> None:
    """KEDA reads an empty answer as 0, and is saved by 300 s of its HPA's window alone."""
    keda = counts(outcome("blind", "keda-concurrency"), *_WINDOW)
    assert min(keda) < keda[0]


@pytest.mark.nightly
def test_saturation_moves_one_at_a_time_and_is_late_for_a_step() -> None:
    step = SCENARIOS["step-cold"](1, None)
    seen = run_controller(step, build("wva-saturation", step.model))
    desired = [step.pools[0].initial, *counts(seen)]
    assert {abs(after - before) for before, after in pairwise(desired)} <= {0, 1}
    assert seen.attainment < 0.5
    assert run_controller(step, build("hpa-concurrency", step.model)).attainment > 0.8


@pytest.mark.nightly
def test_who_scales_from_zero() -> None:
    zero = SCENARIOS["zero-warm"](1, None)
    assert zero.pools[0].startup == WARM_START
    for preset in ("kpa-concurrency", "keda-concurrency"):
        seen = run_controller(zero, build(preset, zero.model))
        assert min(counts(seen)) == 0
        assert seen.attainment > 0.85
    for preset in ("apa-kv-fixed", "wva-saturation", "dynamo"):
        assert run_controller(zero, build(preset, zero.model)).attainment == 0.0
