"""A fixed number of engines is divided so that they carry most."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_autoscaler.core.limits.prefill_decode_ratio import KEEP_FACTOR, split_by_role


def test_the_law_is_the_ratio_of_what_each_role_needs() -> None:
    # b_p / T_p = 2 prompts a second per prefill engine
    # b_d / T_d = 1 / 3 of an answer a second per decode engine
    assert (split_by_role(14, 10.0 / 2.0, 10.0 * 3.0).prefill, split_by_role(14, 10.0 / 2.0, 10.0 * 3.0).decode) == (
        2,
        12,
    )


@given(st.integers(2, 64), st.floats(0.01, 500), st.floats(0.01, 500))
def test_no_other_division_carries_more(total: int, prefill: float, decode: float) -> None:
    chosen = split_by_role(total, prefill, decode)
    assert chosen.prefill + chosen.decode == total
    assert min(chosen.prefill, chosen.decode) >= 1
    best = max(min(n / prefill, (total - n) / decode) for n in range(1, total))
    assert chosen.carried == pytest.approx(best)
    exact = total * prefill / (prefill + decode)
    assert abs(chosen.prefill - min(total - 1, max(1, exact))) < 1
    kept = split_by_role(total, prefill, decode, now=chosen.prefill + 1)
    assert kept.carried * KEEP_FACTOR >= chosen.carried
    assert kept.rule == ("ratio" if kept.prefill == chosen.prefill else "kept")


def test_silence_moves_nothing() -> None:
    assert split_by_role(16, 0.0, 0.0, now=11).prefill == 11
    assert split_by_role(16, 0.0, 0.0).prefill == 8
    assert split_by_role(16, 3.0, 0.0).decode == 1
    with pytest.raises(BadInput):
        split_by_role(1, 1.0, 1.0)
