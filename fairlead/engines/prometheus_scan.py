"""Reads numbers from a Prometheus page without parsing all of it.

A page has 50 to 90 kB, of which a dozen lines matter. It is read for every engine every few
seconds. Each series is therefore found by searching for its name at the start of a line, which
takes microseconds. Callers put a line break in front of the page.
"""

from collections.abc import Callable
from typing import Final

_MAX_LINE_BYTES: Final = 4_096
_MAX_VALUE: Final = float(1 << 53)
"""No number of requests or tokens, and no share, is larger."""
Sample = tuple[bytes, float]
"""The labels of a sample, with their braces, and its value."""
SampleLookup = Callable[[bytes], list[Sample]]
"""Returns the samples of the series with a name."""


def parse_samples(page: bytes, name: bytes, max_lines: int) -> list[Sample]:
    """Returns each sample of the series `name`. Skips impossible values and long lines.

    max_lines: with more lines that begin with `name`, nothing is returned.

    Why: each line takes a microsecond, and a page of an engine may consist of them.
    """
    samples: list[Sample] = []
    line_count = 0
    start = page.find(b"\n" + name)
    while start >= 0:
        line_count += 1
        if line_count > max_lines:
            return []
        end = page.find(b"\n", start + 1)
        if end < 0:
            break  # a line without its end may contain half a number
        line = page[start + 1 : min(end, start + _MAX_LINE_BYTES + 2)]
        start = page.find(b"\n" + name, end)
        if len(line) > _MAX_LINE_BYTES or line[len(name) : len(name) + 1] not in (b"{", b" "):
            continue  # or a series with a longer name, such as …_waiting_by_reason
        labels, _, number = line[len(name) :].rstrip().rpartition(b" ")
        try:
            value = float(number)
        except ValueError:
            continue
        if 0.0 <= value <= _MAX_VALUE:  # skips NaN, too
            samples.append((labels, value))
    return samples


def first_values(lookup: SampleLookup, names: tuple[bytes, ...]) -> list[float]:
    """Returns the values of the first series in `names` that has any; empty if none has.

    Why several names: engine releases have renamed some series.
    """
    for name in names:
        if found := [value for _, value in lookup(name)]:
            return found
    return []


def sum_samples(lookup: SampleLookup, names: tuple[bytes, ...]) -> float | None:
    """Returns the sum of `first_values`; None if there are none."""
    read = first_values(lookup, names)
    return sum(read) if read else None


def mean_samples(lookup: SampleLookup, names: tuple[bytes, ...]) -> float | None:
    """Returns the mean of `first_values`; None if there are none."""
    read = first_values(lookup, names)
    return sum(read) / len(read) if read else None
