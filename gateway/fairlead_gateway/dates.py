"""Dates as HTTP writes them. The standard library's writer brings the reading of e-mail along."""

import time

_DAY_NAMES = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def http_date(second: int) -> str:
    """A second of Unix time as ``Sun, 06 Nov 1994 08:49:37 GMT``, in whatever language the process runs."""
    time_utc = time.gmtime(second)
    day, month = _DAY_NAMES[time_utc.tm_wday], _MONTH_NAMES[time_utc.tm_mon - 1]
    clock = f"{time_utc.tm_hour:02d}:{time_utc.tm_min:02d}:{time_utc.tm_sec:02d}"
    return f"{day}, {time_utc.tm_mday:02d} {month} {time_utc.tm_year:04d} {clock} GMT"
