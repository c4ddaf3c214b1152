"""Rooflines, against the built-in profiles that were made with the same shares."""

from dataclasses import replace

import pytest

from fairlead.engine_profile import builtin_profile
from fairlead_cli.catalog.roofline import COMPUTE_SHARE, ModelCost, accelerator_figures, roofline_profile

LLAMA_8B = ModelCost(
    weight_bytes=16.06e9, active_parameters=7.5e9 + 0.53e9, attention_flops=4 * 32 * 32 * 128, kv_bytes=131_072
)


def test_a_roofline_of_the_same_model_is_the_built_in_profile() -> None:
    known = builtin_profile("h100-llama8b")
    figures = replace(accelerator_figures()["nvidia-h100"], compute_share=COMPUTE_SHARE)
    profile = roofline_profile("made", LLAMA_8B, figures, devices=1, kv_tokens=known.kv_tokens)
    for name in ("prefill_token_seconds", "attention_seconds", "weights_seconds", "resident_token_seconds"):
        assert getattr(profile, name) == pytest.approx(getattr(known, name), rel=0.1), name


def test_a_roofline_of_a_measured_device_is_near_the_fitted_profile() -> None:
    fitted = builtin_profile("h100-llama8b-fitted")
    profile = roofline_profile("made", LLAMA_8B, accelerator_figures()["nvidia-h100"], devices=1, kv_tokens=1)
    for prompt in (1_024, 8_192, 30_000):
        assert profile.prefill_time(prompt) == pytest.approx(fitted.prefill_time(prompt), rel=0.15), prompt


def test_devices_divide_the_work_and_not_the_overhead() -> None:
    figures = accelerator_figures()["nvidia-h100"]
    single, four = (roofline_profile("any", LLAMA_8B, figures, devices=count, kv_tokens=1) for count in (1, 4))
    assert four.weights_seconds == pytest.approx(single.weights_seconds / 4)
    assert four.prefill_token_seconds == pytest.approx(single.prefill_token_seconds / 4)
    assert four.step_seconds == single.step_seconds


def test_a_device_without_a_data_type_computes_in_bf16() -> None:
    figures = accelerator_figures()["nvidia-a100"]
    assert figures.flops_of("fp8") == figures.flops_of("bf16")
    assert accelerator_figures()["nvidia-h100"].flops_of("fp8") > accelerator_figures()["nvidia-h100"].flops_of("bf16")
