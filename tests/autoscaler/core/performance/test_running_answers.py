"""The answers of running sequences, learned from the tokens that these hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_autoscaler.core.performance.running_answers import RunningAnswers, update_running_answers
from fairlead_autoscaler.core.performance.step_model import MeanRequest

_CHAT = MeanRequest(1_000.0, 200.0)


def _watched(tokens_of_each: float, seconds: float, *, sequences: float = 50.0) -> RunningAnswers:
    answers = RunningAnswers()
    for _ in range(round(seconds / 5.0)):
        answers = update_running_answers(answers, sequences * tokens_of_each, sequences, _CHAT, 5.0)
    return answers


def test_without_measurements_lengths_are_taken_for_exponential() -> None:
    assert RunningAnswers().factor(200.0) == 2.0


@pytest.mark.parametrize(("generated", "factor"), [(200.0, 2.0), (160.0, 1.6), (310.0, 3.1)])
def test_a_running_sequence_holds_half_of_its_answer(generated: float, factor: float) -> None:
    assert _watched(1_000.0 + generated, 900.0).factor(200.0) == pytest.approx(factor, rel=0.05)


def test_a_few_sequences_hardly_change_the_guess() -> None:
    assert _watched(1_310.0, 10.0, sequences=2.0).factor(200.0) == pytest.approx(2.0, abs=0.05)


def test_what_cannot_be_keeps_within_bounds() -> None:
    """Prompts that share blocks, or engines that keep unused ones."""
    assert _watched(100.0, 900.0).factor(200.0) == 1.2
    assert _watched(90_000.0, 900.0).factor(200.0) == 3.5


def test_a_new_mix_is_learned_within_minutes() -> None:
    answers = _watched(1_160.0, 1_800.0)
    for _ in range(120):
        answers = update_running_answers(answers, 50.0 * 1_310.0, 50.0, _CHAT, 5.0)
    assert answers.factor(200.0) > 2.7


@given(st.floats(0.0, 1e6), st.floats(0.0, 1e3), st.floats(0.0, 1e5), st.floats(0.0, 1e4), st.floats(0.0, 1e4))
def test_the_factor_is_a_number_within_bounds(
    tokens: float, sequences: float, prompt: float, output: float, seconds: float
) -> None:
    request = MeanRequest(prompt, output)
    answers = update_running_answers(RunningAnswers(), tokens, sequences, request, seconds)
    assert math.isfinite(answers.factor(output))
    assert 1.2 <= answers.factor(output) <= 3.5
