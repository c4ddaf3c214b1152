"""Preble's E2: golden decisions, and the window that they are made from.

Source: Preble (ICLR 2025), E2 = exploitation and exploration; the public code WukLab/preble,
``global_scheduler_with_time.py``. It exploits when the leaf's uncached tokens are fewer than the
cached context (``runtime_selector``), among the leaf's holders by window cost. The window is three
minutes (``SlidingWindowHistogram``). It starts with 45 output tokens and 0.15 s a token, and takes
the median of 200.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.load.inflight import EndpointLoad
from fairlead_gateway.routing.load.load_window import (
    DEFAULT_OUTPUT_TOKENS,
    DEFAULT_TOKEN_SECONDS,
    WINDOW_SECONDS,
    LoadWindow,
)
from fairlead_gateway.routing.policies.policy_input import PolicyInput
from fairlead_gateway.routing.policies.preble import choose

PROMPT = 1_000.0


def one(id: str, cached: float = 0.0, *, recent: float = 0.0, evicts: float = 0.0, own: float = 1.0) -> Candidate:
    candidate = Candidate(EndpointLoad(id), 430_000, own, cached)
    candidate.recent_seconds, candidate.eviction_seconds = recent, evicts
    return candidate


@pytest.mark.parametrize(
    ("what", "options", "chosen"),
    [
        ("more cached than not: there, whatever its load", [one("a", 501.0, recent=90.0, own=0.5), one("b")], "a"),
        ("half is not more: the least cost", [one("a", 500.0, recent=90.0, own=0.5), one("b")], "b"),
        ("half counts as own cost that is less", [one("a", 500.0, own=0.5), one("b", own=1.0)], "a"),
        ("of two holders the one that was asked less", [one("a", 600.0, recent=5.0), one("b", 600.0, recent=4.0)], "b"),
        ("of two holders the longest only", [one("a", 601.0, recent=50.0), one("b", 600.0)], "a"),
        ("the least asked of all, cheap holders too", [one("a", recent=5.0), one("b", recent=4.0)], "b"),
        ("evictions cost", [one("a", evicts=2.0), one("b", recent=1.0)], "b"),
        ("the sum of the three", [one("a", recent=1.0, evicts=1.0, own=1.1), one("b", recent=3.0, own=0.0)], "b"),
        ("one alone", [one("a", recent=99.0)], "a"),
    ],
)
def test_golden_decisions(what: str, options: list[Candidate], chosen: str) -> None:
    for order in (options, options[::-1]):
        decision = choose(PolicyInput("r", order, prompt_tokens=PROMPT))
        assert (decision.chosen, decision.rule) == (chosen, "preble"), what


def test_the_decision_explains_exploitation_and_costs() -> None:
    holder = choose(PolicyInput("r", [one("a", 800.0), one("b", 800.0, recent=1.0), one("c")], prompt_tokens=PROMPT))
    assert holder.reason == "has 800 tokens cached, more than it lacks; the cheapest of 2 that do"
    assert {item.id: item.why for item in holder.rejected} == {
        "b": "window_cost_seconds 2 against 1",
        "c": "not compared by this rule",
    }
    explored = choose(PolicyInput("r", [one("a", recent=3.0), one("b", recent=1.0)], prompt_tokens=PROMPT))
    assert explored.reason.startswith("no instance has most of the prompt")
    assert explored.inputs["a/window_cost_seconds"].value == 4.0


def test_dispatches_count_for_three_minutes() -> None:
    recent = LoadWindow()
    recent.on_dispatch("a", 2.0, 1_000.0, 10.0)
    recent.on_dispatch("a", 1.0, 500.0, 20.0)
    assert recent.load_seconds("a", 0, 189.9) == 3.0
    assert recent.load_seconds("a", 0, 10.0 + WINDOW_SECONDS) == 1.0
    assert recent.load_seconds("a", 0, 20.0 + WINDOW_SECONDS) == 0.0
    assert recent.load_seconds("b", 0, 20.0) == 0.0


def test_inflight_answers_count_by_length_and_time_per_token() -> None:
    recent = LoadWindow()
    assert recent.load_seconds("a", 2, 0.0) == pytest.approx(2 * DEFAULT_OUTPUT_TOKENS * DEFAULT_TOKEN_SECONDS)
    for number in range(3):
        recent.on_first_token(f"r{number}", 1.0)
        recent.on_finish(f"r{number}", "a", 101, 3.0)  # 100 tokens after the first in 2 s
    assert recent.load_seconds("a", 2, 3.0) == pytest.approx(2 * 101 * 0.02)
    assert recent.load_seconds("b", 2, 3.0) == pytest.approx(2 * 101 * DEFAULT_TOKEN_SECONDS)


@pytest.mark.parametrize("output", [None, 0, 1])
def test_an_answer_that_failed_or_has_one_token_says_nothing(output: int | None) -> None:
    recent = LoadWindow()
    recent.on_first_token("r", 1.0)
    recent.on_finish("r", "a", output, 2.0)
    recent.on_finish("never began", "a", 50, 2.0)
    assert recent.load_seconds("a", 1, 2.0) == pytest.approx(DEFAULT_OUTPUT_TOKENS * DEFAULT_TOKEN_SECONDS)


def test_only_evictions_of_recent_tokens_have_a_cost() -> None:
    recent = LoadWindow()
    recent.on_dispatch("a", 3.0, 900.0, 0.0)
    assert recent.eviction_seconds("a", 100.0, 1_000, 1.0) == 0.0
    assert recent.eviction_seconds("a", 250.0, 1_000, 1.0) == pytest.approx(0.5)  # 150 tokens
    assert recent.eviction_seconds("a", 5_000.0, 1_000, 1.0) == pytest.approx(3.0)  # no more than there is
    assert recent.eviction_seconds("a", 250.0, 1_000, WINDOW_SECONDS) == 0.0


def test_departed_instances_are_forgotten() -> None:
    recent = LoadWindow()
    recent.on_dispatch("a", 3.0, 900.0, 0.0)
    recent.retain({"b": 1.0})
    assert recent.load_seconds("a", 0, 0.0) == 0.0


@given(st.lists(st.tuples(st.floats(0.0, 60.0), st.floats(0.0, 5.0)), max_size=60))
def test_the_sum_is_that_of_the_window_by_the_letter(steps: list[tuple[float, float]]) -> None:
    recent, sent, now = LoadWindow(), [], 0.0
    for after, seconds in steps:
        now += after
        recent.on_dispatch("a", seconds, 1.0, now)
        sent.append((now, seconds))
        within = [seconds for at, seconds in sent if at > now - WINDOW_SECONDS]
        assert recent.load_seconds("a", 0, now) == pytest.approx(sum(within), abs=1e-9)
