"""Token counts that no engine can have: one report does not decide for all instances."""

import pytest

from fairlead_gateway.routing.load.token_calibration import MAX_SCALE, UNFORESEEN_SMOOTHING, TokenCalibration


@pytest.mark.parametrize("cached_tokens", [101, 2**31])
def test_more_cached_than_prompt_tokens_count_as_a_cached_prompt(cached_tokens: int) -> None:
    calibration = TokenCalibration()
    calibration.observe(100.0, 0.0, 100, cached_tokens)
    assert calibration.unforeseen_share == UNFORESEEN_SMOOTHING


def test_impossible_prompt_tokens_move_the_scale_within_its_bounds() -> None:
    calibration = TokenCalibration()
    for _ in range(1_000):
        calibration.observe(100.0, 0.0, 2**31, None)
    assert calibration.scale <= MAX_SCALE
