"""Quantities as text for people."""

import pytest

from fairlead.errors import BadInput
from fairlead.units import (
    format_duration,
    format_exact_usd,
    format_token_price,
    format_usd,
    parse_token_price,
    parse_usd,
)


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


@pytest.mark.parametrize(
    ("text", "nano_usd", "written"),
    [
        ("0.40", 400, "0.4"),
        ("0", 0, "0"),
        ("0.001", 1, "0.001"),
        ("0.0120", 12, "0.012"),
        ("999999", 999_999_000, "999999"),
    ],
)
def test_price_per_million_tokens_is_a_whole_number_per_token(text: str, nano_usd: int, written: str) -> None:
    assert parse_token_price(text) == nano_usd
    assert format_token_price(nano_usd) == written
    assert parse_token_price(written) == nano_usd


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("0.0005", "'0.0005' is finer than 0.001 US dollars per million tokens", "round it to 0.001"),
        ("-1", "'-1' is not a price", 'write US dollars per million tokens as text, like "0.40"; at most 999999'),
        (
            "1000000",
            "'1000000' is not a price",
            'write US dollars per million tokens as text, like "0.40"; at most 999999',
        ),
        ("1e3", "'1e3' is not a price", 'write US dollars per million tokens as text, like "0.40"; at most 999999'),
    ],
)
def test_price_that_a_token_cannot_have_is_refused(text: str, message: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_token_price(text, field="input")
    assert (caught.value.message, caught.value.field, caught.value.hint) == (message, "input", hint)


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (2_499_999_999, "2.50"),
        (0, "0.00"),
        (50_000_000, "0.05"),
        (99_999_999, "0.100000"),
        (1_234_567, "0.001235"),
        (-280_000, "-0.000280"),
        (400, "0.0000004"),
        (1, "0.000000001"),
    ],
)
def test_small_amounts_are_not_shown_as_nothing(nano_usd: int, text: str) -> None:
    assert format_usd(nano_usd) == text


def test_dollars_are_exact_in_billionths() -> None:
    assert parse_usd("2.50") == 2_500_000_000
    assert parse_usd("0.000001") == 1_000
    assert format_exact_usd(400) == "0.0000004"
    with pytest.raises(BadInput, match="is not an amount"):
        parse_usd("1,000")
