"""The bench of sleeping replicas: every case is in the kept results, and both sides of one are
measured alike."""

import json
from dataclasses import replace
from pathlib import Path

from fairlead_bench.autoscaler.sleep_tier import CASES, PRICES, QUICK_CASES, compare_tiers, scale_from_zero_scenario
from fairlead_testing.pytest_hooks.nightly import shortened

BENCH = Path(__file__).parents[3] / "bench"


def test_every_case_is_in_the_results_with_each_price() -> None:
    rows = json.loads((BENCH / "results" / "asleep.json").read_text(encoding="utf-8"))["rows"]
    found = {row["metric"] for row in rows}
    for name in CASES:
        for price in PRICES:
            assert f"{name}, seed 1: cost, asleep at {price} of the price" in found
        assert f"{name}, seed 1: within the objectives" in found


def test_sleep_at_full_price_costs_more_than_no_tier_under_the_same_load() -> None:
    made = replace(scale_from_zero_scenario(1), seconds=shortened(3_600.0, 1_800.0))
    rows = list(compare_tiers("made", made, QUICK_CASES))
    by_name = {row.metric.removeprefix("made: "): row for row in rows}
    tenth, whole = (by_name[f"cost, asleep at {price} of the price"] for price in PRICES)
    assert tenth.value is not None
    assert whole.value is not None
    assert tenth.value < whole.value
    assert tenth.versus_value == whole.versus_value
    starts = by_name["starts"]
    assert starts.value is not None
    assert starts.versus_value is not None
    assert starts.value <= starts.versus_value
