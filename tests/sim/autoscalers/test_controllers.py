"""Presets of other autoscalers: their rules, and what is known of their failures."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_autoscaler.core.types import Observation, PoolObservation, ReplicaMetrics
from fairlead_sim.autoscalers import PRESETS, Controller, Metric, build
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
from fairlead_testing.autoscaler.control_loop import (
    POOL,
    build_observation,
    pool_observation,
    ready_replica,
    single_pool_model,
)
from fairlead_testing.pytest_hooks.nightly import shortened

Load = Callable[[int], ReplicaMetrics]


def busy(running: float, waiting: float = 0.0, kv: float = 0.5) -> Load:
    return lambda number: ready_replica(number, running, waiting, kv)


def follow(scaler: Controller, seconds: float, load: Load, count: int, *, begin: float = 0.0) -> list[int]:
    """Returns the replicas after each tick; planned ones are there at once."""
    counts, now = [], begin
    while now < begin + seconds:
        plan = scaler.step(build_observation(now, pool_observation([load(number) for number in range(count)])))
        count = plan.pools[POOL].replicas if POOL in plan.pools else count
        counts.append(count)
        now += 5.0
    return counts


def wanted(
    scaler: Controller, now: float, pool: PoolObservation, *, arrivals: float | None = 0.0, held: float = 0.0
) -> int | None:
    plan = scaler.step(build_observation(now, pool, arrivals=arrivals, held=held)).pools.get(POOL)
    return None if plan is None else plan.replicas


@pytest.mark.parametrize("name", ["hpa-concurrency", "hpa-kv", "hpa-waiting"])
def test_hpa_without_any_metric_changes_nothing(name: str) -> None:
    scaler = build(name, single_pool_model())
    assert wanted(scaler, 0.0, pool_observation(None, ready=7)) is None
    blind = [ready_replica(number, None, None, None) for number in range(7)]
    assert wanted(scaler, 15.0, pool_observation(blind)) is None


def test_hpa_takes_what_starts_for_idle_going_up_and_for_the_target_going_down() -> None:
    up = wanted(
        build("hpa-concurrency", single_pool_model(), target=10.0),
        0.0,
        pool_observation([busy(30.0)(0)] * 2, pending=2),
    )
    assert up == 6  # 60 requests over 4 pods are 15 each, 1.5 × 4; not 3 × 4
    scaler = build("hpa-concurrency", single_pool_model(), target=10.0, down_window_seconds=5.0)
    down = [wanted(scaler, at, pool_observation([busy(2.0)(0)] * 2, pending=2)) for at in (0.0, 15.0)]
    assert down[1] == 3  # 4 + 20 over 4 pods are 6 each


def test_hpa_looks_every_15_s_and_goes_down_after_its_window() -> None:
    scaler = build("hpa-concurrency", single_pool_model(), target=10.0)
    counts = follow(scaler, 400.0, busy(2.5), 8)
    assert counts[: 300 // 5] == [8] * 60
    assert counts[-1] == 2  # 20 requests over 10


def test_hpa_by_request_rate_reads_the_gateway() -> None:
    scaler = build("hpa-request-rate", single_pool_model(), target=2.0)
    pool = pool_observation([busy(1.0)(number) for number in range(2)])
    answers = [wanted(scaler, at * 5.0, pool, arrivals=40.0) for at in range(4)]
    assert answers[0] is None  # no rate yet
    assert answers[3] == 4  # 8 a second over 2.0
    assert wanted(scaler, 30.0, pool_observation(None, ready=4), arrivals=None) is None


def test_kpa_decides_nothing_without_data_and_reads_zeros_as_no_load() -> None:
    scaler = build("kpa-concurrency", single_pool_model(), target=10.0)
    counts = follow(scaler, 200.0, busy(10.0), 6)
    assert counts[-1] == 6
    blind = [wanted(scaler, 200.0 + at * 5.0, pool_observation(None, ready=6)) for at in range(20)]
    assert blind[:10] == [6] * 10  # what is left of the window
    assert blind[-1] is None
    lied = follow(scaler, 90.0, busy(0.0), 6, begin=300.0)
    assert lied[-1] == 1


def test_kpa_panics_at_twice_and_holds_for_a_stable_window() -> None:
    scaler = build("kpa-concurrency", single_pool_model(), target=10.0)
    follow(scaler, 120.0, busy(8.0), 4)
    shock = follow(scaler, 20.0, busy(25.0), 4, begin=120.0)
    assert max(shock) >= 10
    after = follow(scaler, 30.0, busy(2.0), max(shock), begin=140.0)
    assert min(after) == max(shock)


def test_kpa_goes_to_zero_after_its_grace_and_wakes_for_one_that_is_held() -> None:
    scaler = build("kpa-concurrency", single_pool_model(minimum=0), target=10.0)
    counts = follow(scaler, 300.0, busy(0.0), 1)
    assert counts[-1] == 0
    assert counts.index(0) * 5.0 >= 30.0
    assert wanted(scaler, 305.0, pool_observation([]), held=1.0) == 1


def test_presets_are_told_apart_by_name_and_knobs_are_checked() -> None:
    with pytest.raises(BadInput, match="no preset is called"):
        build("vpa", single_pool_model())
    with pytest.raises(BadInput, match="has no parameter"):
        build("hpa-kv", single_pool_model(), threshold=1.0)
    with pytest.raises(BadInput, match="must be positive"):
        build("hpa-kv", single_pool_model(), target=0.0)
    for name, preset in PRESETS.items():
        assert preset.name == name
        for knob in preset.parameters:
            assert list(knob.grid) == sorted(set(knob.grid))
            assert knob.grid[0] <= knob.default <= knob.grid[-1]


def test_the_guide_names_every_preset_and_every_knob() -> None:
    guide = (Path(__file__).parents[3] / "docs" / "concepts" / "autoscaling-presets.md").read_text()
    names = {*PRESETS, *(knob.name for preset in PRESETS.values() for knob in preset.parameters), *Metric}
    assert [name for name in sorted(names) if f"`{name}`" not in guide] == []


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


def test_kv_share_is_blind_to_short_answers() -> None:
    starved = outcome("short", "hpa-kv")
    assert starved.attainment < 0.10
    assert counts(starved)[-1] <= 2  # seven are needed


@pytest.mark.nightly
@pytest.mark.parametrize("preset", ["hpa-concurrency", "kpa-concurrency"])
def test_concurrency_has_a_knife_edge_on_short_answers(preset: str) -> None:
    seen = outcome("short", preset)
    assert seen.attainment < 0.90
    assert max(counts(seen)) >= 20  # three times what is needed, and late


def test_the_same_controllers_are_good_on_conversations() -> None:
    for preset in shortened(("hpa-kv", "hpa-concurrency"), ("hpa-concurrency",)):
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
    delayed = ("kpa-concurrency-delayed", "hpa-concurrency")
    for preset in shortened(delayed, delayed[:1]):
        assert in_window(outcome("lying", preset)) > 0.95


def test_missing_metrics_change_nothing_where_they_are_known_to_be_missing() -> None:
    for preset in shortened(("hpa-concurrency", "hpa-kv"), ("hpa-kv",)):
        held = counts(outcome("blind", preset), *_WINDOW)
        assert min(held) == held[0]


@pytest.mark.nightly
def test_kpa_scales_from_zero() -> None:
    zero = SCENARIOS["zero-warm"](1, None)
    assert zero.pools[0].startup == WARM_START
    seen = run_controller(zero, build("kpa-concurrency", zero.model))
    assert min(counts(seen)) == 0
    assert seen.attainment > 0.85


MOST = 9
measured = st.none() | st.floats(0.0, 200.0)
pools = st.one_of(
    st.builds(
        pool_observation,
        st.lists(
            st.builds(ready_replica, st.integers(0, 20), measured, measured, st.none() | st.floats(0.0, 1.0)),
            max_size=MOST,
        ),
        desired=st.none() | st.integers(0, MOST + 3),
        pending=st.integers(0, 4),
    ),
    st.builds(pool_observation, st.none(), ready=st.integers(0, MOST), pending=st.integers(0, 4)),
)
series = st.lists(
    st.tuples(st.sampled_from([0.0, 5.0, 5.0, 7.0, 61.0, 400.0]), pools, measured, st.floats(0.0, 50.0)), max_size=25
)


def observations(drawn: Any) -> list[Observation]:
    now, seen = 1_000.0, []
    for wait, pool, arrivals, held in drawn:
        now += wait
        seen.append(build_observation(now, pool, arrivals=arrivals, held=held))
    return seen


@pytest.mark.property
@pytest.mark.parametrize("name", sorted(PRESETS))
@given(series, st.integers(0, 2))
def test_a_preset_stays_in_bounds_and_depends_on_nothing_else(name: str, drawn: Any, least: int) -> None:
    shown = observations(drawn)
    model = single_pool_model(minimum=least, maximum=MOST)
    scaler = build(name, model)
    plans = [scaler.step(observation) for observation in shown]
    for plan in plans:
        if POOL in plan.pools:
            chosen = plan.pools[POOL]
            assert 0 <= chosen.replicas <= MOST
            assert chosen.rule.split("/")[0] == name.split("-")[0]
            assert chosen.reason
    again = build(name, model)
    assert [again.step(observation) for observation in shown] == plans
