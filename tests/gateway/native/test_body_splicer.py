"""The splicer puts texts where the way in Python puts them."""

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.openai.json_edit import splice


@pytest.mark.property
@given(body=st.binary(max_size=40), text=st.binary(max_size=40), start=st.integers(0, 50), size=st.integers(0, 50))
def test_both_ways_give_the_same_body(
    native_modules: dict[str, ModuleType], body: bytes, text: bytes, start: int, size: int
) -> None:
    expected = splice(body, start, start + size, text)
    assert native_modules["body_splicer"].splice(body, start, start + size, text) == expected


def test_a_body_without_bytes_is_possible(native_modules: dict[str, ModuleType]) -> None:
    assert native_modules["body_splicer"].splice(b"", 0, 0, b"") == b""
