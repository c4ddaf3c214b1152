"""The accuracy of the simulators: against HTTP, and fitted to vLLM."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import profile_fields
from fairlead_bench.accuracy import vllm_fit as fitted
from fairlead_bench.accuracy.fleet_vs_http import GATEWAYS, PRESETS, RATE, SECRET, RunResult, rows, run_live, simulate
from fairlead_bench.results import load_goals
from fairlead_cli.replay.traffic import PromptBuilder, prefix_chains
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import at_rate
from fairlead_testing.gateway.running_gateway import MODEL_KEY

BENCH = Path(__file__).parents[3] / "bench"

GOALS = load_goals("agreement")
SAME = {
    (count, rule): RunResult(0.8 - 0.1 * number, 0.1 * (1 + number), 0, 0.1 * (1 + number))
    for count in GATEWAYS
    for number, rule in enumerate(PRESETS)
}


def missed(*changed: tuple[tuple[int, str], RunResult]) -> list[str]:
    """Returns the goals that fail when live equals simulated but for these values."""
    table = rows({key: (dict(changed).get(key, same), same) for key, same in SAME.items()}, {})
    assert {row.metric: row.goal for row in table if row.goal} == GOALS
    return [row.metric for row in table if not row.holds]


def test_rows_hold_within_their_goals_only() -> None:
    first, second = (1, PRESETS[0]), (3, PRESETS[1])
    assert missed() == []
    assert missed((first, replace(SAME[first], cached=0.821))) == [next(iter(GOALS))]
    below_the_next = replace(SAME[first], cached=0.69)
    assert missed((first, below_the_next)) == list(GOALS)[:2]
    assert missed((second, replace(SAME[second], ttft=0.31, retraced=0.31))) == [list(GOALS)[6]]
    assert missed((second, replace(SAME[second], ttft=0.189))) == [list(GOALS)[7]]
    assert missed((second, replace(SAME[second], failed=1))) == ["requests that failed"]


def test_presets_that_are_as_good_as_equal_have_no_order() -> None:
    first, second = ((1, rule) for rule in PRESETS[:2])
    near = replace(SAME[first], cached=0.79)
    table = rows(
        {key: (near if key == first else same, near if key == second else same) for key, same in SAME.items()}, {}
    )
    crossed = [row for row in table if "order by cached" in row.metric]
    assert [row.value for row in crossed] == [0, 0]


def test_a_busy_fleet_has_rows_of_its_own_without_goals_and_its_failures_count() -> None:
    failing = replace(SAME[1, PRESETS[0]], failed=2)
    table = rows({key: (same, same) for key, same in SAME.items()}, {1: (failing, failing)})
    (failed,) = [row for row in table if row.metric == "requests that failed"]
    assert failed.value == 2
    assert len([row for row in table if "at 20/s" in row.metric and row.goal is None]) == 3


@pytest.mark.nightly
async def test_three_gateways_over_http_find_about_what_three_simulated_ones_do() -> None:
    requests = at_rate(FAMILIES["agents"](60, seed=3), 3 * RATE)
    builder = PromptBuilder(Tokenizer())
    chain = prefix_chains(builder, secret=SECRET.encode(), model_key=MODEL_KEY)
    real = await run_live(3, "round-robin", requests, builder, 4.0)
    assert real.failed == 0
    assert abs(real.cached - simulate(3, "round-robin", requests, chain).cached) < 0.15


def test_the_committed_run_carries_the_goals() -> None:
    report = json.loads((BENCH / "results" / "agreement.json").read_text(encoding="utf-8"))
    assert {row["metric"]: row["goal"] for row in report["rows"] if row["goal"]} == GOALS


ROOT = Path(__file__).parents[3]

FIT_GOALS = load_goals("fitted")
FIT_SAME = {
    rule: RunResult(0.8 - 0.1 * number, 0.1 * (1 + number), 0, 0.1 * (1 + number))
    for number, rule in enumerate(PRESETS)
}


def missed_by_fit(live: dict[str, RunResult] | None = None, *, miscounted: int = 0) -> list[str]:
    """Returns the goals that fail when live equals simulated but for these values."""
    pairs = {rule: ((live or {}).get(rule, same), same) for rule, same in FIT_SAME.items()}
    table = fitted.rows(pairs, miscounted=miscounted, errors=[0.1, 0.1])
    assert {row.metric: row.goal for row in table if row.goal} == FIT_GOALS
    return [row.metric for row in table if not row.holds]


def test_rows_of_the_fit_hold_within_their_goals_only() -> None:
    first = PRESETS[0]
    assert missed_by_fit() == []
    assert missed_by_fit({first: replace(FIT_SAME[first], ttft=0.114)}) == []
    assert missed_by_fit({first: replace(FIT_SAME[first], ttft=0.116)}) == list(FIT_GOALS)[:1]
    assert missed_by_fit({first: replace(FIT_SAME[first], ttft=0.21)}) == list(FIT_GOALS)[:2]
    assert missed_by_fit({first: replace(FIT_SAME[first], cached=0.65)}) == list(FIT_GOALS)[2:3]
    assert missed_by_fit({first: replace(FIT_SAME[first], failed=1)}) == list(FIT_GOALS)[3:4]
    assert missed_by_fit(miscounted=1) == list(FIT_GOALS)[4:]


def test_what_is_said_of_a_profile_is_the_profile_again_and_equal_engines_are_one() -> None:
    profile = replace(builtin_profile("910b4"), name="learned", kv_tokens=65_536)
    assert fitted.profile_from_report(_learned_profile(profile, profile)) == profile
    slower = fitted.profile_from_report(_learned_profile(profile, profile.sped_up(0.5)))
    assert slower.prefill_time(1_000) == pytest.approx(1.5 * profile.prefill_time(1_000))
    with pytest.raises(RuntimeError, match="nothing was learned"):
        fitted.profile_from_report(_learned_profile(profile, profile, learned=False))


def _learned_profile(*profiles: Any, learned: bool = True) -> dict[str, Any]:
    known = [{"profile": {"learned": learned, "coefficients": profile_fields(profile)}} for profile in profiles]
    document: dict[str, Any] = json.loads(json.dumps({"models": [{"instances": known}]}))
    return document


def test_traffic_fits_the_engine_and_comes_at_its_rate() -> None:
    requests = fitted.draw_traffic(120, seed=3, rate=4.0)
    assert len(requests) == 120
    assert max(request.prompt_tokens + request.output_tokens for request in requests) < fitted.CONTEXT_TOKENS
    assert requests[-1].arrival == pytest.approx(119 / 4.0)


def test_text_is_of_words_that_the_engine_knows_and_equal_where_blocks_are() -> None:
    words = fitted.PromptWords(["Ġthe", "Ġand", "Ġof", "Ġ(x)", "ĠNot", "thex", "Ġfor"])
    text = words.random_text(50, "block 1")
    assert set(text.split()) == {"the", "and", "for"}
    assert len(text) == 200
    assert words.random_text(50, "block 1") == text != words.random_text(50, "block 2")
    builder = PromptBuilder(words)
    first, *_ = fitted.draw_traffic(2, seed=3, rate=1.0)
    assert len(builder.text(first)) == 4 * (first.prompt_tokens - builder.template_tokens)


def test_the_committed_fit_carries_the_goals() -> None:
    report = json.loads((ROOT / "bench" / "results" / "fitted.json").read_text(encoding="utf-8"))
    assert {row["metric"]: row["goal"] for row in report["rows"] if row["goal"]} == FIT_GOALS
