"""Texts of errors of other libraries."""

import pytest

from fairlead.errors import first_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("READONLY you cannot write\nagainst a replica", "READONLY you cannot write"),
        ("x" * 500, "x" * 120),
        ("", ""),
        ("\n", ""),
    ],
)
def test_only_a_short_first_line_of_an_error_is_shown(text: str, expected: str) -> None:
    assert first_line(ValueError(text)) == expected
