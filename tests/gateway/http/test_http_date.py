"""Dates are written as the standard library's e-mail package writes them."""

from email.utils import formatdate

from hypothesis import given
from hypothesis import strategies as st

from fairlead_gateway.http.listener import http_date


@given(second=st.integers(0, 253_402_300_799))
def test_a_date_reads_as_http_wants_it(second: int) -> None:
    assert http_date(second) == formatdate(second, usegmt=True)
