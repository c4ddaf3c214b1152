"""The fit of an engine profile to measured seconds."""

from dataclasses import replace

import pytest

from e2e.gpu.step_costs import DecodeCost, PromptCost, StepCosts, fit_profile, profile_errors
from fairlead.engine_profile import EngineProfile, builtin_profile

PROMPTS = (256, 1_024, 4_096, 8_192, 16_384, 30_000)
STEPS = [(sequences, context) for sequences in (1, 16, 64, 256) for context in (1_024, 8_192)]


def measured(profile: EngineProfile) -> StepCosts:
    """Returns what an engine of this profile takes."""
    costs = StepCosts(profile.kv_tokens, profile.step_tokens)
    costs.prompts = [PromptCost(tokens, profile.prefill_time(tokens)) for tokens in PROMPTS]
    for sequences, context in STEPS:
        row = DecodeCost(sequences, context, 0.0)
        resident = round(sequences * row.mean_context)
        seconds = profile.step_time(computed=sequences, sequences=sequences, resident=resident)
        costs.decodes.append(replace(row, seconds=seconds))
    return costs


@pytest.mark.parametrize("name", ["h100-llama8b", "h100-llama8b-fitted", "a100-qwen7b", "910b4"])
def test_the_fit_finds_the_profile_of_exact_measurements(name: str) -> None:
    costs = measured(builtin_profile(name))
    errors = profile_errors(fit_profile(costs), costs)
    assert max(errors.prompt_max, errors.decode_max) < 0.03


def test_the_fit_of_a_slower_engine_has_higher_costs() -> None:
    fast = fit_profile(measured(builtin_profile("h100-llama8b")))
    slow = fit_profile(measured(builtin_profile("h100-llama8b").sped_up(0.5)))
    for prompt in (1_024, 8_192):
        assert slow.prefill_time(prompt) == pytest.approx(2 * fast.prefill_time(prompt), rel=0.01)


def test_a_fit_needs_long_prompts_and_steps() -> None:
    costs = measured(builtin_profile("h100-llama8b"))
    costs.prompts = [row for row in costs.prompts if row.tokens < 1_024]
    with pytest.raises(ValueError, match="1,024 tokens"):
        fit_profile(costs)


def test_measurements_are_read_as_they_were_written() -> None:
    costs = measured(builtin_profile("h100-llama8b"))
    read = StepCosts.from_json(costs.to_json(), costs.step_tokens)
    assert [row.tokens for row in read.prompts] == list(PROMPTS)
    assert [row.seconds for row in read.decodes] == pytest.approx([row.seconds for row in costs.decodes], abs=1e-6)
