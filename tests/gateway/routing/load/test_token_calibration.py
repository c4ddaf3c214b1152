"""Token counts that no engine can have, and callers whose text is dense, decide for no other."""

import pytest

from fairlead_gateway.routing.load.prompt_sizes import MAX_SCALE, UNFORESEEN_SMOOTHING, TokenCalibration


@pytest.mark.parametrize("cached_tokens", [101, 2**31])
def test_more_cached_than_prompt_tokens_count_as_a_cached_prompt(cached_tokens: int) -> None:
    calibration = TokenCalibration()
    calibration.observe("", 100.0, 0.0, 100, cached_tokens)
    assert calibration.unforeseen_share == UNFORESEEN_SMOOTHING


@pytest.mark.parametrize(("cached_tokens", "unforeseen"), [(3_072, 0.0), (3_328, 0.0), (3_340, 0.067), (2_900, 0.0)])
def test_up_to_one_block_of_the_prefix_more_is_no_surprise(cached_tokens: int, unforeseen: float) -> None:
    calibration = TokenCalibration()
    for _ in range(500):  # 3,072 of 4,000 tokens are known; beyond 8 KiB, a block has 256 tokens
        calibration.observe("", 4_000.0, 3_072 / 4_000, 4_000, cached_tokens)
    assert calibration.unforeseen_share == pytest.approx(unforeseen, abs=0.001)


def test_impossible_prompt_tokens_move_the_scale_within_its_bounds() -> None:
    calibration = TokenCalibration()
    for _ in range(1_000):
        calibration.observe("", 100.0, 0.0, 2**31, None)
    assert calibration.scale <= MAX_SCALE


def test_dense_text_of_one_caller_makes_no_prompt_of_another_look_larger() -> None:
    calibration = TokenCalibration()
    for _ in range(1_000):
        calibration.observe("dense", 100.0, 0.0, 400, 400)
        calibration.observe("english", 1_000.0, 1.0, 1_100, 1_100)
    assert calibration.scale_of("dense") == pytest.approx(4.0, rel=0.01)
    assert calibration.scale_of("english") == pytest.approx(1.1, rel=0.01)
    assert calibration.scale == pytest.approx((4.0 + 1.1) / 2, rel=0.01)
    assert calibration.unforeseen_share == pytest.approx(0.5, rel=0.01)


def test_a_caller_counts_like_the_mean_of_the_others_until_its_first_answer() -> None:
    calibration = TokenCalibration()
    assert calibration.scale_of("new") == 1.0
    for caller in ("a", "b", "c"):
        for _ in range(200):
            calibration.observe(caller, 100.0, 0.0, 200, None)
    assert calibration.scale_of("new") == calibration.scale == pytest.approx(2.0, rel=0.01)


def test_means_of_callers_are_bounded_in_number() -> None:
    calibration = TokenCalibration()
    for number in range(3_000):
        calibration.observe(number, 100.0, 0.0, 300, None)
    assert calibration.scale == pytest.approx(2.0)
    assert calibration.scale_of(2_999) == 2.0
    calibration.observe(2_999, 100.0, 0.0, 300, None)
    assert calibration.scale_of(0) == calibration.scale


def test_the_model_has_exactly_the_means_of_its_only_caller() -> None:
    calibration = TokenCalibration()
    for number in range(500):
        calibration.observe("", 100.0, 0.1, 60 + number % 37, number % 50)
        assert calibration.scale == calibration.scale_of("")
