"""Quantities as text for people."""

import pytest

from fairlead.units import format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0us"),
        (0.000_999_4, "999us"),
        (0.000_999_6, "1ms"),
        (0.0415, "41.5ms"),
        (0.9994, "999ms"),
        (0.9996, "1s"),
        (1.004, "1s"),
        (59.94, "59.9s"),
        (59.97, "1m"),
        (90.0, "1m30s"),
        (3_600.2, "1h"),
        (-0.9996, "-1s"),
    ],
)
def test_duration_has_three_digits_and_the_next_unit_from_a_thousand_on(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
