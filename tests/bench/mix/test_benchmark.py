"""The benchmark of the accelerator mix carries the goals that are checked in, and its tables are
what they say."""

from dataclasses import replace

import pytest

from fairlead_bench.mix import benchmark
from fairlead_bench.mix.benchmark import (
    ENGINES,
    GRID,
    LONG,
    OPTIMUM_SHARE,
    RATE,
    SHORT_PROMPTS,
    STARTUP_SECONDS,
    balanced_controller,
    best_single,
    fixed_controller,
    run_shift,
    saturated_throughput,
    serve,
    settling_seconds,
    solve,
    solve_sliced,
)
from fairlead_bench.mix.throughput_tables import (
    WORKLOADS,
    histogram,
    homogeneous,
    measure_shape,
    objectives,
    price_lists,
    profiles,
    skewed,
    slo_attainment,
    tabled_throughput,
    throughput_at_knee,
)
from fairlead_sim.autoscaling.routing import PrefillPolicy
from fairlead_testing.pytest_hooks.nightly import shortened


def test_of_skewed_tables_each_type_is_cheapest_by_a_factor_of_two_somewhere() -> None:
    types = skewed(GRID, 3)
    best = set()
    for shape in range(GRID.size):
        costs = sorted((gpu.cost_per_hour / gpu.throughput[shape], gpu.name) for gpu in types)
        assert costs[1][0] >= 2.0 * costs[0][0] * (1 - 1e-9)
        best.add(costs[0][1])
    assert best == {gpu.name for gpu in types}


def test_faster_accelerators_serve_more_of_every_shape() -> None:
    for priced in price_lists().values():
        for types in (throughput_at_knee(priced, GRID, objectives(0.12)), tabled_throughput(priced, objectives(0.12))):
            by_name = {gpu.name: gpu.throughput for gpu in types}
            assert all(big >= small for big, small in zip(by_name["H100-80GB"], by_name["L4"], strict=True))
            assert 0.0 in by_name["L4"], "no prompt of 50,000 tokens fits its memory"


def test_the_table_is_what_engines_of_these_profiles_keep() -> None:
    """Some cells are measured again. ``tabled`` raises for another profile, SLO or method."""
    cells = (("L4", 22), ("H100-80GB", 45), ("A10G", 53))
    for name, shape in shortened(cells, cells[:1]):
        profile, wanted = profiles()[name], objectives(0.12)
        cell = next(
            gpu for gpu in tabled_throughput(price_lists()["melange-types"], wanted) if gpu.name == name
        ).throughput[shape]
        assert measure_shape(profile, GRID.bucket_center(shape), wanted, 1) == pytest.approx(cell, rel=0.01)
        prompt, output = (round(tokens) for tokens in GRID.bucket_center(shape))
        assert slo_attainment(profile, prompt, output, cell, wanted, 2) >= 0.985  # other arrivals
        assert slo_attainment(profile, prompt, output, 1.3 * cell, wanted, 2) < 0.99


def test_the_best_fleet_of_one_kind_is_the_one_that_mixes_are_compared_with() -> None:
    types = tabled_throughput(price_lists()["hyperscalers"], objectives(0.12))
    rates = [16.0 * share for share in histogram("code", GRID, 1)]
    ((name, count),) = best_single(rates, types).items()
    assert count * next(gpu.cost_per_hour for gpu in types if gpu.name == name) == homogeneous(rates, types)


@pytest.mark.parametrize("workload", shortened(list(WORKLOADS), list(WORKLOADS)[:1]))
def test_a_mix_is_never_dearer_than_one_kind_or_slices(workload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patient = replace(benchmark._STATIC, solve_seconds=60.0)  # by the clock: a busy machine proves later
    monkeypatch.setattr(benchmark, "_STATIC", patient)
    types = skewed(GRID, 3)
    rates = [16.0 * share for share in histogram(workload, GRID, 3)]
    case = solve(rates, types)
    assert case.mix.rule == "milp"
    assert case.mix.cost_per_hour <= solve_sliced(rates, types) + 1e-6
    assert case.mix.cost_per_hour <= homogeneous(rates, types) + 1e-6


@pytest.mark.nightly
def test_the_best_division_has_neither_one_more_nor_one_fewer_for_prefill() -> None:
    for shape, best in OPTIMUM_SHARE.items():
        each = [saturated_throughput(count, shape, 5, begin=60.0, end=160.0) for count in (best - 1, best, best + 1)]
        assert max(each) == each[1]


@pytest.mark.nightly
def test_engines_follow_the_traffic_within_a_minute_and_nobody_gives_up() -> None:
    case, turned = run_shift(0.7, 6_000, OPTIMUM_SHARE[LONG], 7)
    ours = balanced_controller(case)
    halves = {
        how: fixed_controller(run_shift(0.7, 6_000, ENGINES // 2, 7, computing=how)[0]).attainment
        for how in (PrefillPolicy.APART, PrefillPolicy.SLACK)
    }
    near = settling_seconds(ours, turned, OPTIMUM_SHARE[SHORT_PROMPTS])
    assert near is not None
    assert near - STARTUP_SECONDS <= 60.0
    assert ours.abandoned == ours.lost == 0
    assert max(sum(look.desired) for look in ours.samples) <= ENGINES
    assert ours.attainment > 0.95 > 0.5 > halves[PrefillPolicy.APART]
    assert halves[PrefillPolicy.SLACK] > 0.9  # decode engines take what half of the engines cannot prefill


def test_slack_keeps_more_than_a_length_limit_or_handing_all_prompts_over() -> None:
    shares = {how: serve(RATE, 4, how, 5).attainment for how in PrefillPolicy}
    assert shares[PrefillPolicy.SLACK] > max(shares[PrefillPolicy.APART], shares[PrefillPolicy.BY_LENGTH])
