"""The decisions of each public controller in the cases that its docstring names."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fairlead.errors import BadInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.types import PoolObservation, ReplicaMetrics
from fairlead_sim.autoscalers import PRESETS, Controller, Metric, build
from fairlead_sim.autoscalers.apa import ApaSettings, apa
from fairlead_sim.autoscalers.dynamo import ForecastMethod, LevelTrendSeries, decode_rate, prefill_rate, serve_rate
from fairlead_testing.autoscaler.control_loop import (
    POOL,
    PROFILE,
    build_observation,
    pool_observation,
    ready_replica,
    single_pool_model,
)

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
