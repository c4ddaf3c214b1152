"""New keys and the times until which they are valid."""

import hmac
import re

import pytest

from fairlead.errors import BadInput
from fairlead_cli.keys.key_entries import create_key, format_time, key_digest, parse_expiry, parse_lifetime
from fairlead_gateway.worker import api_keys

NOW = 1_794_997_600.0  # 2026-11-18T10:26:40Z


def test_a_key_has_256_random_bits_in_a_form_that_scanners_find() -> None:
    keys = {create_key() for _ in range(200)}
    assert len(keys) == 200
    assert all(re.fullmatch(r"fl_[0-9a-f]{64}", key) for key in keys)


def test_the_digest_is_the_one_that_gateways_compute() -> None:
    digest = key_digest("fl_abc", "pepper é")
    assert digest == api_keys.key_digest(b"fl_abc", "pepper é".encode()).hex()
    assert digest == hmac.new("pepper é".encode(), b"fl_abc", "sha256").hexdigest()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90d", "2027-02-16T10:26:40Z"),
        ("1h30m", "2026-11-18T11:56:40Z"),
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31T12:00:00Z", "2027-01-31T12:00:00Z"),
        ("2027-01-31T12:00:00+02:00", "2027-01-31T10:00:00Z"),
        ("2027-01-31T12:00", "2027-01-31T12:00:00Z"),
    ],
)
def test_an_expiry_is_a_duration_or_a_date_in_utc(text: str, expected: str) -> None:
    assert format_time(parse_expiry(text, NOW, field="--expires")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("soon", "'soon' is no duration and no date"),
        ("", "'' is no duration and no date"),
        ("2027-13-01", "'2027-13-01' is not a date"),
        ("2026-01-01", "in the past"),
        ("0s", "in the past"),
        ("5000d", "more than ten years"),
        ("2999-01-01", "more than ten years"),
    ],
)
def test_an_impossible_expiry_names_the_option_and_the_fix(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        parse_expiry(text, NOW, field="--expires")
    assert refused.value.field == "--expires"
    assert refused.value.hint


def test_an_overlap_has_a_bound() -> None:
    assert parse_lifetime("0s", field="--overlap") == 0.0
    with pytest.raises(BadInput, match="--overlap"):
        parse_lifetime("100000d", field="--overlap")
