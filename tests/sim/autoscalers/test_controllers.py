"""Presets of other autoscalers: their rules, and what is known of their failures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import Observation, PoolObservation, ReplicaMetrics
from fairlead_sim.autoscalers import PRESETS, Controller, Metric, build
from fairlead_sim.autoscalers.apa import ApaSettings, apa
from fairlead_sim.autoscalers.dynamo import ForecastMethod, LevelTrendSeries, decode_rate, prefill_rate, serve_rate
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
    PROFILE,
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


def test_keda_reads_an_empty_answer_as_no_load() -> None:
    scaler = build("keda-concurrency", single_pool_model(), threshold=10.0)
    follow(scaler, 30.0, busy(10.0), 6)
    blind = [wanted(scaler, 30.0 + at * 5.0, pool_observation(None, ready=6), arrivals=None) for at in range(66)]
    assert 6 in blind[:54]
    assert 1 not in blind[:54]
    assert blind[-5:].count(1) > 0


def test_keda_goes_to_zero_after_its_cool_down_and_a_queued_request_activates_it() -> None:
    scaler = build("keda-concurrency", single_pool_model(minimum=0), threshold=10.0)
    follow(scaler, 60.0, busy(5.0), 2)
    counts = follow(scaler, 600.0, busy(0.0), 2, begin=60.0)
    assert counts[-1] == 0
    assert counts.index(0) * 5.0 >= 300.0
    woken = [wanted(scaler, 660.0 + at * 5.0, pool_observation([]), held=3.0) for at in range(7)]
    assert 1 in woken


def test_apa_takes_the_smallest_of_its_cool_down_and_the_fixed_one_the_largest() -> None:
    shipped, mended = (
        build(name, single_pool_model(), target=0.5, window_seconds=5.0) for name in ("apa-kv", "apa-kv-fixed")
    )
    for scaler in (shipped, mended):
        follow(scaler, 10.0, busy(1.0, kv=0.5), 8)
    for scaler in (shipped, mended):  # a short dip
        follow(scaler, 10.0, busy(1.0, kv=0.26), 8, begin=10.0)
    assert follow(shipped, 10.0, busy(1.0, kv=0.4), 8, begin=20.0)[-1] == 5  # the dip's number
    assert follow(mended, 10.0, busy(1.0, kv=0.4), 8, begin=20.0)[-1] == 8
    assert follow(mended, 400.0, busy(1.0, kv=0.4), 8, begin=30.0)[-1] < 8


def test_apa_as_shipped_reads_an_outage_as_idle() -> None:
    for name, expected in (("apa-concurrency", 4), ("apa-concurrency-fixed", None)):
        scaler = build(name, single_pool_model(), target=10.0, window_seconds=5.0)
        follow(scaler, 10.0, busy(10.0), 8)
        assert wanted(scaler, 20.0, pool_observation(None, ready=8)) == expected


def test_apa_cannot_read_the_gateway() -> None:
    with pytest.raises(BadInput, match="no pod has a request rate"):
        apa(single_pool_model(), ApaSettings(target=1.0, metric=Metric.REQUEST_RATE))


def test_wva_moves_by_one_and_not_while_something_starts() -> None:
    scaler = build("wva-saturation", single_pool_model())
    saturated = [busy(20.0, waiting=9.0, kv=0.9)(number) for number in range(4)]
    assert wanted(scaler, 0.0, pool_observation(saturated)) == 5
    assert wanted(scaler, 60.0, pool_observation(saturated, pending=1)) is None
    assert wanted(scaler, 120.0, pool_observation([*saturated, busy(20.0, 9.0, 0.9)(5)])) == 6


def test_wva_goes_down_where_the_load_on_one_fewer_leaves_its_spares() -> None:
    scaler = build("wva-saturation", single_pool_model())
    pool = pool_observation([busy(4.0, kv=0.45)(number) for number in range(3)])
    assert wanted(scaler, 0.0, pool) == 2  # 0.45 × 3 ÷ 2 = 0.675 leaves 0.125
    scaler = build("wva-saturation", single_pool_model())
    assert (
        wanted(scaler, 0.0, pool_observation([busy(4.0, kv=0.5)(number) for number in range(3)])) is None
    )  # leaves 0.05
    scaler = build("wva-saturation", single_pool_model())
    assert wanted(scaler, 0.0, pool_observation([busy(1.0, kv=0.1)(0)])) is None  # never fewer than two unsaturated


@pytest.mark.parametrize("name", ["apa-kv", "apa-kv-fixed", "wva-saturation", "dynamo", "hpa-concurrency"])
def test_who_never_comes_back_from_zero(name: str) -> None:
    scaler = build(name, single_pool_model(minimum=0))
    answers = [wanted(scaler, at * 5.0, pool_observation([]), arrivals=20.0, held=50.0) for at in range(100)]
    if name == "hpa-concurrency":  # is deployed with its minimum, which is at least one
        assert answers[0] == 1
        answers = answers[1:]
    assert not any(answers)


def test_dynamo_divides_by_the_profile() -> None:
    assert prefill_rate(PROFILE, 1_000.0) == pytest.approx(1_000.0 / 0.11)
    batch = 40  # 10 ms + 40 × 1 ms = 50 ms
    assert decode_rate(PROFILE, 1_000.0, 0.05) == pytest.approx(batch / 0.05)
    assert decode_rate(PROFILE, 1_000.0, 0.001) == pytest.approx(1 / 0.011)  # cannot be met
    # 100 tokens of prompt for 100 of answer: each sequence brings one prompt token a step
    # 10,000 of prompt for 10: steps are full of prompts long before the batch is. 1,000 tokens take
    # 0.11 s, and decoding adds to that.
    assert serve_rate(PROFILE, 10_000.0, 10.0, 60.0, 0.5) < 1_000 / 0.11 / 10_000
    assert serve_rate(PROFILE, 100.0, 100.0, 2.0, 0.05) == pytest.approx(36 / (100 * (0.01 + 36 * 0.0011)), rel=0.01)


def test_dynamo_acts_once_an_interval_on_what_it_counted() -> None:
    scaler = build("dynamo", single_pool_model(role=Role.PREFILL), headroom=1.0)
    active = [
        ReplicaMetrics(
            "engine-0",
            ready_replica(0, 1.0).state,
            600.0,
            generated_tokens=1_100.0,
            itl_seconds=50.0,
            finished=100.0,
            first_tokens=100.0,
            ttft_seconds=60.0,
        )
    ]
    answers = [wanted(scaler, at * 5.0, pool_observation(active), arrivals=100.0) for at in range(37)]
    assert answers[:36] == [None] * 36
    assert answers[36] == 3  # 20,000 prompt tokens a second over 9,091; TTFT of 0.6 s instead of 0.11 s adds nothing


def test_dynamo_changes_nothing_where_nothing_finished() -> None:
    scaler = build("dynamo", single_pool_model())
    idle = pool_observation([busy(0.0)(number) for number in range(5)])
    assert not any(wanted(scaler, at * 5.0, idle) for at in range(80))


def test_a_forecast_follows_a_level_and_a_trend() -> None:
    flat, steep = LevelTrendSeries(), LevelTrendSeries()
    for interval in range(40):
        flat = flat.plus(50.0)
        steep = steep.plus(10.0 * interval)
    assert flat.next(ForecastMethod.KALMAN) == pytest.approx(50.0, abs=0.1)
    assert steep.next(ForecastMethod.KALMAN) == pytest.approx(400.0, abs=4.0)
    assert steep.next(ForecastMethod.CONSTANT) == 390.0
    assert LevelTrendSeries().plus(0.0).plus(7.0) == LevelTrendSeries().plus(7.0)  # leading silence is no history


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
            assert chosen.rule.split("/")[0] in (name.split("-")[0], "hpa")  # KEDA leaves all above zero to an HPA
            assert chosen.reason
    again = build(name, model)
    assert [again.step(observation) for observation in shown] == plans


STRETCHES = st.lists(
    st.tuples(
        st.integers(1, 12), st.integers(1, MOST), st.integers(0, 20), st.integers(0, 9), st.integers(0, 500), measured
    ),
    min_size=1,
    max_size=5,
)
"""Ticks and replicas. Of each replica: KV memory in twentieths, waiting requests, requests that
finish in a tick. Last: arrivals."""


def steady_observations(drawn: list[tuple[int, int, int, int, int, float | None]]) -> list[Observation]:
    """Returns half a minute each, with replicas that report everything."""
    now, seen = 1_000.0, []
    for ticks, count, kv, waiting, finished, arrivals in drawn:
        ready = [ready_replica(number, 1.0, float(waiting), kv / 20.0) for number in range(count)]
        busy = [
            replace(
                replica,
                generated_tokens=finished * 110.0,
                itl_seconds=finished * 3.0,
                finished=float(finished),
                first_tokens=float(finished),
                ttft_seconds=finished * 0.4,
            )
            for replica in ready
        ]
        for _ in range(ticks):
            now += 30.0
            seen.append(build_observation(now, pool_observation(busy), arrivals=arrivals))
    return seen


@pytest.mark.property
@pytest.mark.parametrize("name", ["dynamo", "wva-saturation"])
@given(STRETCHES, st.integers(0, 2))
def test_a_preset_that_plans_from_steady_metrics_stays_in_bounds(
    name: str, drawn: list[tuple[int, int, int, int, int, float | None]], least: int
) -> None:
    """Such presets plan nothing from the series above, in which each tick has other replicas."""
    shown = steady_observations(drawn)
    model = single_pool_model(minimum=least, maximum=MOST)
    scaler, again = build(name, model), build(name, model)
    plans = [scaler.step(observation) for observation in shown]
    for plan in plans:
        if POOL in plan.pools:
            event(plan.pools[POOL].rule)
            assert least <= plan.pools[POOL].replicas <= MOST
            assert plan.pools[POOL].reason
    assert [again.step(observation) for observation in shown] == plans


Matrix = list[list[float]]
MOVE: Matrix = [[1.0, 1.0], [0.0, 1.0]]
NOISE: Matrix = [[1.0, 0.0], [0.0, 0.1]]
SCATTER = 10.0


def times(a: Matrix, b: Matrix) -> Matrix:
    return [[sum(a[i][k] * b[k][j] for k in range(len(b))) for j in range(len(b[0]))] for i in range(len(a))]


def plus(a: Matrix, b: Matrix) -> Matrix:
    return [[x + y for x, y in zip(row, other, strict=True)] for row, other in zip(a, b, strict=True)]


def transposed(a: Matrix) -> Matrix:
    return [list(column) for column in zip(*a, strict=True)]


def forecast(values: Sequence[float]) -> float:
    """Returns the forecast of a Kalman filter in matrix form, with H = [1, 0].

    x' = F x, P' = F P Fᵀ + Q.

    K = P' Hᵀ (H P' Hᵀ + R)⁻¹.

    P = (I - K H) P' (I - K H)ᵀ + K R Kᵀ.
    """
    state: Matrix = [[values[0]], [0.0]]
    covariance: Matrix = [[1_000.0, 0.0], [0.0, 1_000.0]]
    for value in values[1:]:
        state = times(MOVE, state)
        covariance = plus(times(times(MOVE, covariance), transposed(MOVE)), NOISE)
        gain = [[covariance[0][0] / (covariance[0][0] + SCATTER)], [covariance[1][0] / (covariance[0][0] + SCATTER)]]
        off = value - state[0][0]
        state = plus(state, [[gain[0][0] * off], [gain[1][0] * off]])
        kept = [[1.0 - gain[0][0], 0.0], [-gain[1][0], 1.0]]
        scattered = times([[gain[0][0] * SCATTER], [gain[1][0] * SCATTER]], transposed(gain))
        covariance = plus(times(times(kept, covariance), transposed(kept)), scattered)
    return times(MOVE, state)[0][0]


@pytest.mark.property
@given(st.lists(st.floats(1.0, 5_000.0), min_size=1, max_size=40))
def test_the_forecast_is_that_of_the_filter_in_matrices(values: list[float]) -> None:
    series = LevelTrendSeries()
    for value in values:
        series = series.plus(value)
    assert series.next(ForecastMethod.KALMAN) == pytest.approx(forecast(values), rel=1e-6, abs=1e-5)
