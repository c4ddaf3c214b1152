"""The scenarios of the benchmark, the sleep tier in them, and their command line."""

from dataclasses import replace
from functools import cache
from itertools import pairwise
from random import Random
from statistics import fmean, pvariance
from typing import Any

import pytest

from fairlead.fleet.model import Role
from fairlead_autoscaler.core import ReplicaState, ScalingCore, SleepTier
from fairlead_sim.autoscaling import __main__ as command
from fairlead_sim.autoscaling.closed_loop import ScheduleController, run_controller, run_schedule
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.pool import Pool, PoolSetup, SleepTimings, StartupDistribution
from fairlead_sim.autoscaling.reference_pools import reference_pool, small_profile
from fairlead_sim.autoscaling.request_table import ArrivalTrace
from fairlead_sim.autoscaling.scenarios import (
    ALL_SCENARIOS,
    AZURE_CONVERSATIONS,
    MOONCAKE_CONVERSATIONS,
    SCENARIOS,
    WIDER_SCENARIOS,
    with_sleep_tier,
)
from fairlead_sim.autoscaling.traffic import CONVERSATIONS_BY_BLOCK, densify
from fairlead_sim.workload.traces import TraceRequest
from fairlead_testing.pytest_hooks.nightly import shortened

START_FLEETS: list[tuple[str, dict[str, int], dict[str, int]]] = [
    ("h100-chat", {"h100-llama8b": 9}, {"h100-llama8b": 13}),
    ("l4-chat", {"l4-qwen8b": 10}, {"l4-qwen8b": 16}),
    ("drifting-lengths", {"S": 16}, {"S": 22}),
    ("steady-prefill-decode", {"prefill": 8, "decode": 4}, {"prefill": 10, "decode": 6}),
]
QUICK = [name for name in ALL_SCENARIOS if not name.startswith("smooth")]


@cache
def wider(name: str) -> AutoscalingScenario:
    return WIDER_SCENARIOS[name](1, None)


def per_minute(scenario: AutoscalingScenario) -> list[int]:
    counts = [0] * int(scenario.seconds / 60.0)
    for arrival in scenario.load.arrivals:
        counts[min(len(counts) - 1, int(arrival / 60.0))] += 1
    return counts


@pytest.mark.parametrize("kind", shortened(QUICK, QUICK[::3]))
def test_a_seed_is_a_scenario(kind: str) -> None:
    scenario = ALL_SCENARIOS[kind](3, None)
    assert scenario == ALL_SCENARIOS[kind](3, None)
    other = ALL_SCENARIOS[kind](4, None)
    assert other.load.arrivals != scenario.load.arrivals
    load = scenario.load
    assert len(load.arrivals) == len(load.prompts) == len(load.outputs) > 500
    assert all(earlier <= other for earlier, other in pairwise(load.arrivals))
    assert load.arrivals[-1] < scenario.seconds
    assert min(load.prompts) >= 1
    assert min(load.outputs) >= 1
    longest = max(prompt + output for prompt, output in zip(load.prompts, load.outputs, strict=True))
    assert longest < min(setup.profile.kv_tokens for setup in scenario.pools)
    assert scenario.model.pools == tuple(setup.facts for setup in scenario.pools)


def test_a_denser_hour_has_the_same_lengths_more_often_and_in_order() -> None:
    hour = [TraceRequest(str(number), float(number), number + 1, 2 * number + 1, ()) for number in range(50)]
    denser = densify(hour, 3, Random(1))
    assert list(denser.arrivals) == sorted(denser.arrivals)
    assert sorted(denser.prompts) == sorted(3 * [request.prompt_tokens for request in hour])
    assert [prompt * 2 - 1 for prompt in denser.prompts] == list(denser.outputs)


@pytest.mark.nightly
def test_the_smooth_short_day_rises_elevenfold_within_three_hours() -> None:
    minutes = per_minute(SCENARIOS["smooth-short"](1, None))
    night, day = fmean(minutes[4 * 60 : 5 * 60 + 30]), fmean(minutes[9 * 60 + 30 : 11 * 60])
    assert day / night == pytest.approx(10.7, rel=0.1)
    assert fmean(minutes) / 60.0 == pytest.approx(12.0, rel=0.02)


def test_answers_drift_and_requests_do_not() -> None:
    scenario = SCENARIOS["drift"](1, None)
    minutes = per_minute(scenario)
    assert fmean(minutes[:50]) == pytest.approx(fmean(minutes[60:]), rel=0.05)
    place = next(at for at, arrival in enumerate(scenario.load.arrivals) if arrival > 3_600.0)
    before = next(at for at, arrival in enumerate(scenario.load.arrivals) if arrival > 3_000.0)
    assert fmean(scenario.load.outputs[place:]) / fmean(scenario.load.outputs[:before]) == pytest.approx(2.5, rel=0.05)


def test_bursts_leave_a_third_of_the_minutes_silent() -> None:
    minutes = [count for seed in range(shortened(8, 4)) for count in per_minute(SCENARIOS["on-off"](seed, None))]
    assert sum(count < 10 for count in minutes) / len(minutes) == pytest.approx(1 / 3, abs=0.05)
    assert fmean(minutes) == pytest.approx(3 * 147, rel=0.15)
    assert max(minutes) <= 3 * 640


def test_zero_is_silent_for_eight_minutes_and_more() -> None:
    minutes = per_minute(SCENARIOS["zero-cold"](1, None))
    assert minutes[:8] == [0] * 8
    assert sum(count == 0 for count in minutes) / len(minutes) > 0.6


def test_the_mix_moves_there_and_back() -> None:
    scenario = _mix_move()
    assert [setup.facts.role for setup in scenario.pools] == [Role.PREFILL, Role.DECODE]
    outputs: dict[int, list[int]] = {}
    for arrival, output in zip(scenario.load.arrivals, scenario.load.outputs, strict=True):
        outputs.setdefault(int(arrival // 2_400.0) + (arrival % 2_400.0 > 600.0) * 10, []).append(output)
    assert fmean(outputs[10]) == pytest.approx(211, rel=0.05)
    assert fmean(outputs[11]) == pytest.approx(28, rel=0.1)
    assert fmean(outputs[12]) == pytest.approx(211, rel=0.05)


def test_prompts_move_from_prefill_to_decode_and_none_is_lost() -> None:
    whole, end = _mix_move(), shortened(300.0, 90.0)
    scenario = AutoscalingScenario(whole.name, 1, end, whole.model, whole.pools, _first(whole, end))
    controller = ScheduleController([(0.0, {"prefill": 9, "decode": 5}), (end / 1.5, {"prefill": 7, "decode": 4})])
    outcome = run_controller(scenario, controller)
    book = outcome.request_table
    assert outcome.attainment > 0.5
    assert min(book.end) > 0.0
    assert outcome.abandoned == outcome.lost == 0
    wait = min(first - arrival for first, arrival in zip(book.first, book.arrival, strict=True))
    assert wait > 0.02 + 12e-3  # the transfer and one step at least


def test_wider_scenarios_are_hours_beside_the_reference_scenarios() -> None:
    assert not set(SCENARIOS) & set(WIDER_SCENARIOS)
    for name in WIDER_SCENARIOS:
        scenario = wider(name)
        assert (scenario.name, scenario.seconds) == (name, 3_600.0)


def test_lengths_drift_like_the_recorded_hour_with_like_neighbours() -> None:
    load = wider("drifting-lengths").load
    blocks: dict[int, list[tuple[int, int]]] = {}
    for arrival, prompt, output in zip(load.arrivals, load.prompts, load.outputs, strict=True):
        blocks.setdefault(int(arrival / 300.0), []).append((prompt, output))
    for number, recorded in enumerate(CONVERSATIONS_BY_BLOCK):
        drawn = blocks[number]
        assert len(drawn) / 300.0 == pytest.approx(recorded.rate, rel=0.2)
        assert fmean(prompt for prompt, _ in drawn) == pytest.approx(recorded.prompt, rel=0.15)
        assert fmean(output for _, output in drawn) == pytest.approx(recorded.answer, rel=0.15)
    prompts = [prompt for prompt, _ in blocks[3]]
    assert pvariance(prompts) / fmean(prompts) ** 2 == pytest.approx(0.9, abs=0.15)


@pytest.mark.nightly
def test_very_long_prompts_start_with_half_the_fleet_that_they_need() -> None:
    scenario = wider("very-long-prompts")
    assert 100_000 < max(scenario.load.prompts) <= 126_000
    assert fmean(scenario.load.prompts) == pytest.approx(12_100, rel=0.05)
    assert len(scenario.load) / 3_600.0 == pytest.approx(6.8, rel=0.05)
    assert _fixed_fleet_share(scenario, {"L": scenario.pools[0].initial}) < 0.2
    assert _fixed_fleet_share(scenario, {"L": 17}) > 0.985


@pytest.mark.nightly
@pytest.mark.parametrize(("name", "too_few", "enough"), START_FLEETS)
def test_start_fleets_fit_the_first_minutes_and_not_the_hour(
    name: str, too_few: dict[str, int], enough: dict[str, int]
) -> None:
    scenario = wider(name)
    start = {setup.facts.name: setup.initial for setup in scenario.pools}
    first_minutes = replace(scenario, seconds=180.0, load=_first(scenario, 180.0))
    assert _fixed_fleet_share(first_minutes, start) > 0.97
    assert _fixed_fleet_share(scenario, too_few) < 0.97
    assert _fixed_fleet_share(scenario, enough) > 0.99


@pytest.mark.parametrize("name", WIDER_SCENARIOS)
def test_one_request_alone_meets_the_slo_with_room(name: str) -> None:
    scenario = wider(name)
    load = scenario.load
    longest = max(range(len(load)), key=lambda request: load.prompts[request])
    alone = ArrivalTrace([0.0], [load.prompts[longest]], [load.outputs[longest]])
    outcome = run_schedule(replace(scenario, load=alone), [])
    table = outcome.request_table
    assert table.first[0] < 0.75 * outcome.ttft_seconds
    assert (table.end[0] - table.first[0]) / (alone.outputs[0] - 1) < 0.5 * outcome.itl_seconds


def test_recorded_hours_are_read_where_they_are(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("traces")
    rows = [f"2023-11-16 18:15:{46 + second:02}.5000000,{300 + second},{40}" for second in range(10)]
    (folder / AZURE_CONVERSATIONS).write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows))
    line = '{{"timestamp": {at}, "input_length": 20000, "output_length": 9, "hash_ids": {ids}}}'
    lines = [line.format(at=3_000 * (index // 2), ids=list(range(40))) for index in range(8)]
    (folder / MOONCAKE_CONVERSATIONS).write_text("\n".join(lines))
    noisy = SCENARIOS["noisy-hour"](1, folder)
    assert len(noisy.load) == 30
    assert set(noisy.load.prompts) == set(range(300, 310))
    long = SCENARIOS["long-prompts"](1, folder)
    assert len(long.load) == 16
    assert set(long.load.prompts) == {20_000}


@cache
def _mix_move() -> AutoscalingScenario:
    return SCENARIOS["mix-move"](1, None)


def _fixed_fleet_share(scenario: AutoscalingScenario, replicas: dict[str, int]) -> float:
    return run_schedule(scenario, [(0.0, replicas)]).attainment


def _first(scenario: AutoscalingScenario, seconds: float) -> ArrivalTrace:
    load = scenario.load
    count = sum(arrival < seconds for arrival in load.arrivals)
    return ArrivalTrace(load.arrivals[:count], load.prompts[:count], load.outputs[:count])


def test_a_scenario_seeds_its_random_numbers_by_name_or_by_its_random_name() -> None:
    plain = SCENARIOS["step-cold"](1, None)
    assert plain.random_source("crashes").random() == Random("step-cold 1 crashes").random()
    renamed = replace(plain, name="other", random_name="step-cold")
    assert renamed.random_source("crashes").random() == Random("step-cold 1 crashes").random()


class FakeEngine:
    """An engine that has as many requests as it is given."""

    def __init__(self) -> None:
        self.inside = 0
        self.slowdown = 1.0
        self.next_step_at = 0.0

    def running(self) -> int:
        return self.inside

    def waiting(self) -> int:
        return 0


def made(initial: int) -> Pool:
    setup = reference_pool(small_profile(), initial, startup=StartupDistribution(100.0, 0.0))
    make: Any = FakeEngine
    return Pool(
        PoolSetup(setup.facts, setup.profile, setup.startup, initial, SleepTimings(10.0, 0.25)), make, Random(1)
    )


def counts(pool: Pool) -> tuple[int, ...]:
    """Returns the ready, pending, waking, sleeping and draining replicas."""
    ready, pending, draining = pool.ready, pool.pending, pool.draining
    return len(ready), len(pending), len(pool.waking), len(pool.asleep), len(draining)


def test_sleeping_replicas_wake_before_new_ones_start() -> None:
    pool = made(3)
    pool.scale(1, 0.0, asleep=2)
    assert counts(pool) == (1, 0, 0, 2, 0)
    pool.scale(4, 50.0)
    assert counts(pool) == (1, 1, 2, 0, 0)
    pool.apply_due(60.0)
    assert counts(pool) == (3, 1, 0, 0, 0)
    pool.apply_due(150.0)
    assert counts(pool) == (4, 0, 0, 0, 0)


def test_a_busy_replica_sleeps_after_its_requests_and_can_return_at_once() -> None:
    pool = made(2)
    for replica in pool.ready:
        replica.engine.inside = 3  # type: ignore[attr-defined]  # the engine of this test
    pool.scale(1, 0.0, asleep=1)
    assert counts(pool) == (1, 0, 0, 0, 1)
    pool.scale(2, 5.0)
    assert counts(pool) == (2, 0, 0, 0, 0)
    pool.scale(1, 6.0, asleep=1)
    pool.draining[0].engine.inside = 0  # type: ignore[attr-defined]
    pool.apply_due(9.0)
    assert counts(pool) == (1, 0, 0, 1, 0)


def test_what_is_started_for_the_tier_sleeps_when_it_is_ready() -> None:
    pool = made(1)
    pool.scale(1, 0.0, asleep=1)
    assert counts(pool) == (1, 1, 0, 0, 0)
    pool.apply_due(100.0)
    assert counts(pool) == (1, 0, 0, 1, 0)


def test_asleep_costs_its_share_and_no_more() -> None:
    pool = made(1)
    pool.scale(0, 100.0, asleep=1)
    pool.scale(1, 500.0)
    pool.apply_due(510.0)
    pool.close(600.0)
    assert pool.replica_seconds == pytest.approx(600.0 - 0.75 * 400.0)


def test_each_replica_is_counted_in_its_state_and_a_waking_one_as_pending() -> None:
    pool = made(3)
    pool.ready.clear()
    pool.scale(0, 0.0, asleep=2)
    pool.apply_due(100.0)
    pool.scale(1, 200.0, asleep=1)
    seen = pool.observe(205.0, missing=False, zeroed=False)
    assert [replica.state for replica in seen.replicas or ()] == [ReplicaState.WAKING, ReplicaState.ASLEEP]
    assert (seen.desired, seen.asleep_desired, seen.ready, seen.pending, seen.waking, seen.asleep) == (1, 1, 0, 1, 1, 1)


def first_share(scenario: AutoscalingScenario, share: float) -> AutoscalingScenario:
    """Returns the first part of a scenario, with the requests that end in it."""
    seconds, load = share * scenario.seconds, scenario.load
    count = sum(arrival < seconds - 120.0 for arrival in load.arrivals)
    first = ArrivalTrace(load.arrivals[:count], load.prompts[:count], load.outputs[:count])
    return replace(scenario, seconds=seconds, load=first) if share < 1.0 else scenario


@pytest.mark.parametrize("seed", shortened([1, 2], [1]))
def test_a_sleep_tier_halves_the_cost_of_silence_with_more_requests_in_time(seed: int) -> None:
    cold = first_share(SCENARIOS["zero-cold"](seed, None), shortened(1.0, 0.15))
    tiered = with_sleep_tier(cold, SleepTier(3, wake_seconds=10.0), SleepTimings(10.0, 0.1))
    without, with_ = run_controller(cold, ScalingCore(cold.model)), run_controller(tiered, ScalingCore(tiered.model))
    assert with_.attainment > without.attainment + 0.05
    assert with_.cost < 0.7 * without.cost
    assert with_.lost == with_.abandoned == 0
    assert sum(map(len, with_.starts.values())) < sum(map(len, without.starts.values()))


STEP = SCENARIOS[command.EXAMPLE_SCENARIO](1, None)


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        command,
        "SCENARIOS",
        {command.EXAMPLE_SCENARIO: lambda seed, traces: replace(STEP, seconds=shortened(900.0, 400.0))},
    )


def line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Returns the printed line without the run time."""
    assert command.main(arguments) == 0
    return capsys.readouterr().out.rpartition("  ")[0]


def test_a_preset_and_a_setting_make_another_controller(capsys: pytest.CaptureFixture[str]) -> None:
    core = line(capsys)
    assert core == line(capsys, "--controller", "fairlead_autoscaler.core:ScalingCore")
    wary = line(capsys, "--set", "down_room=9")
    preset = line(capsys, "--preset", "hpa-concurrency")
    turned = line(capsys, "--preset", "hpa-concurrency", "--set", "target=1")
    assert len({core, wary, preset, turned}) == 4


def test_the_fleet_is_another_plant_and_shows_what_was_cached(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--replicas", "6"]) == command.main(["--replicas", "6", "--fleet"]) == 0
    aggregated, fleet, cached = capsys.readouterr().out.splitlines()
    assert aggregated.rpartition("  ")[0] != fleet.rpartition("  ")[0]
    assert 5.0 < float(cached.split()[1]) < 30.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "no scenario is called 'nope'"),
        (["--preset", "hpa"], "no preset is called 'hpa' (known: hpa-concurrency, "),
        (
            ["--preset", "hpa-kv", "--set", "headroom=1"],
            "hpa-kv has no parameter headroom (parameters: target, tolerance, down_window_seconds)",
        ),
        (["--preset", "hpa-kv", "--set", "target=much"], "--set: the value in 'target=much' is not a number"),
        (["--set", "spread=1"], "--set: 'spread' is not a setting"),
        (["--replicas", "3", "--set", "margin=1"], "--set cannot be combined with --controller or --replicas"),
        (["--controller", "no.such:Thing"], "No module named 'no'"),
    ],
)
def test_what_there_is_not_is_refused_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
