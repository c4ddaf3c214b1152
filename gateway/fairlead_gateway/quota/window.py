"""Calendar windows in UTC: whole minutes, days and months, in milliseconds since the epoch."""

from typing import Final

MINUTE: Final = "Minute"
DAY: Final = "Day"
MONTH: Final = "Month"
NO_WINDOW: Final = ""
"""The window of units that requests give back."""
_MINUTE_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
_ERA_DAYS: Final = 146_097
_FROM_MARCH_0000: Final = 719_468  # days from 0000-03-01 to 1970-01-01


def window_span(window: str, now_ms: int) -> tuple[int, int]:
    """Returns start and end of the window that contains a time; (0, 0) without a window."""
    if window == MINUTE:
        start = now_ms - now_ms % _MINUTE_MS
        return start, start + _MINUTE_MS
    if window == DAY:
        start = now_ms - now_ms % _DAY_MS
        return start, start + _DAY_MS
    if window == MONTH:
        year, month = _year_and_month(now_ms // _DAY_MS)
        return _month_start(year, month), _month_start(year, month + 1)
    return 0, 0


def previous_start(window: str, start_ms: int) -> int:
    """Returns the start of the window before the one that starts at `start_ms`."""
    return window_span(window, start_ms - 1)[0]


def _year_and_month(days: int) -> tuple[int, int]:
    """Returns year and month (1..12) of a day since 1970.

    Source: Howard Hinnant, "chrono-compatible low-level date algorithms". The script in Lua does
    the same.
    """
    shifted = days + _FROM_MARCH_0000
    era = shifted // _ERA_DAYS
    day = shifted - era * _ERA_DAYS
    year = (day - day // 1_460 + day // 36_524 - day // 146_096) // 365
    month = (5 * (day - (365 * year + year // 4 - year // 100)) + 2) // 153
    if month < 10:
        return year + era * 400, month + 3
    return year + era * 400 + 1, month - 9


def _month_start(year: int, month: int) -> int:
    """Returns the first millisecond of a month; month 13 is the next January."""
    if month > 12:
        year, month = year + 1, 1
    if month <= 2:
        year, month = year - 1, month + 12
    era = year // 400
    year_of_era = year - era * 400
    day = (153 * (month - 3) + 2) // 5 + 365 * year_of_era + year_of_era // 4 - year_of_era // 100
    return (era * _ERA_DAYS + day - _FROM_MARCH_0000) * _DAY_MS
