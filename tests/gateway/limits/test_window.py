"""Windows are the calendar's, in UTC."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.tenants.model import Window
from fairlead_gateway.limits.exchange import NO_WINDOW, previous_start, window_span

_MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2400, 1, 1), timezones=st.just(UTC))


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@given(_MOMENTS)
def test_windows_are_those_of_the_calendar(moment: datetime) -> None:
    now = _ms(moment.replace(microsecond=0))
    month = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    following = month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)
    assert window_span(Window.MONTH, now) == (_ms(month), _ms(following))
    day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    assert window_span(Window.DAY, now) == (_ms(day), _ms(day) + 86_400_000)
    minute = moment.replace(second=0, microsecond=0)
    assert window_span(Window.MINUTE, now) == (_ms(minute), _ms(minute) + 60_000)


@pytest.mark.parametrize("window", Window)
def test_the_previous_window_ends_where_the_window_starts(window: str) -> None:
    start, _ = window_span(window, _ms(datetime(2028, 3, 1, tzinfo=UTC)))
    before = previous_start(window, start)
    assert window_span(window, before)[1] == start


def test_units_that_are_given_back_have_no_window() -> None:
    assert window_span(NO_WINDOW, 1_800_000_000_000) == (0, 0)
