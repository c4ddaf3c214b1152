"""The benchmark of the accelerator mix carries the goals that are checked in, and its tables are
what they say."""

import pytest

from fairlead_bench.mix.benchmark import (
    GRID,
    OPTIMUM_SHARE,
    best_single,
    saturated_throughput,
)
from fairlead_bench.mix.throughput_tables import (
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


@pytest.mark.nightly
def test_the_table_is_what_engines_of_these_profiles_keep() -> None:
    """Some cells are measured again. ``tabled`` raises for another profile, SLO or method."""
    for name, shape in (("L4", 22), ("H100-80GB", 45), ("A10G", 53)):
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


@pytest.mark.nightly
def test_the_best_division_has_neither_one_more_nor_one_fewer_for_prefill() -> None:
    for shape, best in OPTIMUM_SHARE.items():
        each = [saturated_throughput(count, shape, 5, begin=60.0, end=160.0) for count in (best - 1, best, best + 1)]
        assert max(each) == each[1]
