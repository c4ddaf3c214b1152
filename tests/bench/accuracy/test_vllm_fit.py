"""The benchmark of the simulator against vLLM: traffic, texts, the gateway's profile, goals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.file import profile_fields
from fairlead_bench.accuracy import vllm_fit as fitted
from fairlead_bench.accuracy.fleet_vs_http import PRESETS, RunResult
from fairlead_bench.results import load_goals
from fairlead_cli.replay.traffic import PromptBuilder

ROOT = Path(__file__).parents[3]

GOALS = load_goals("fitted")
SAME = {
    rule: RunResult(0.8 - 0.1 * number, 0.1 * (1 + number), 0, 0.1 * (1 + number))
    for number, rule in enumerate(PRESETS)
}


def missed(live: dict[str, RunResult] | None = None, *, miscounted: int = 0) -> list[str]:
    """Returns the goals that fail when live equals simulated but for these values."""
    found = {rule: ((live or {}).get(rule, same), same) for rule, same in SAME.items()}
    made = fitted.rows(found, miscounted=miscounted, errors=[0.1, 0.1])
    assert {row.metric: row.goal for row in made if row.goal} == GOALS
    return [row.metric for row in made if not row.holds]


def test_rows_hold_within_their_goals_only() -> None:
    first = PRESETS[0]
    assert missed() == []
    assert missed({first: replace(SAME[first], ttft=0.114)}) == []
    assert missed({first: replace(SAME[first], ttft=0.116)}) == list(GOALS)[:1]
    assert missed({first: replace(SAME[first], ttft=0.21)}) == list(GOALS)[:2]
    assert missed({first: replace(SAME[first], cached=0.65)}) == list(GOALS)[2:3]
    assert missed({first: replace(SAME[first], failed=1)}) == list(GOALS)[3:4]
    assert missed(miscounted=1) == list(GOALS)[4:]


def test_what_is_said_of_a_profile_is_the_profile_again_and_equal_engines_are_one() -> None:
    profile = replace(builtin_profile("910b4"), name="learned", kv_tokens=65_536)
    assert fitted.profile_from_report(_learned_profile(profile, profile)) == profile
    slower = fitted.profile_from_report(_learned_profile(profile, profile.sped_up(0.5)))
    assert slower.prefill_time(1_000) == pytest.approx(1.5 * profile.prefill_time(1_000))
    with pytest.raises(RuntimeError, match="nothing was learned"):
        fitted.profile_from_report(_learned_profile(profile, profile, learned=False))


def _learned_profile(*profiles: Any, learned: bool = True) -> dict[str, Any]:
    known = [{"profile": {"learned": learned, "coefficients": profile_fields(one)}} for one in profiles]
    told: dict[str, Any] = json.loads(json.dumps({"models": [{"instances": known}]}))
    return told


def test_traffic_fits_the_engine_and_comes_at_its_rate() -> None:
    requests = fitted.draw_traffic(120, seed=3, rate=4.0)
    assert len(requests) == 120
    assert max(one.prompt_tokens + one.output_tokens for one in requests) < fitted.CONTEXT_TOKENS
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


def test_the_committed_run_carries_the_goals() -> None:
    report = json.loads((ROOT / "bench" / "results" / "fitted.json").read_text(encoding="utf-8"))
    assert {row["metric"]: row["goal"] for row in report["rows"] if row["goal"]} == GOALS
