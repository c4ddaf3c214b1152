"""Reads numbers from a Prometheus page without parsing all of it.

A page has 50 to 90 kB, of which a dozen lines matter. It is read for every engine every few
seconds. Each series is therefore found by searching for its name at the start of a line, which
takes microseconds. Callers put a line break in front of the page.
"""

from collections.abc import Iterator
from math import isfinite


def parse_samples(page: bytes, name: bytes, label: bytes | None) -> Iterator[tuple[bytes, float]]:
    """Yields (labels, value) of each sample of the series `name`. Skips values that are not finite.

    label: text that the labels must contain; None for all samples.
    """
    start = page.find(b"\n" + name)
    while start >= 0:
        end = page.find(b"\n", start + 1)
        if end < 0:
            return  # a line without its end may contain half a number
        line = page[start + 1 : end]
        start = page.find(b"\n" + name, start + 1)
        if line[len(name) : len(name) + 1] not in (b"{", b" "):
            continue  # a series with a longer name, such as …_waiting_by_reason
        labels, _, number = line[len(name) :].rstrip().rpartition(b" ")
        if label is not None and label not in labels:
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        if isfinite(value):  # skips NaN and infinity
            yield labels, value


def first_values(page: bytes, names: tuple[bytes, ...], label: bytes | None) -> list[float]:
    """Returns the values of the first series in `names` that is on the page; empty if none is.

    Why several names: engine releases have renamed some series.
    """
    for name in names:
        if found := [value for _, value in parse_samples(page, name, label)]:
            return found
    return []


def sum_samples(page: bytes, names: tuple[bytes, ...], label: bytes | None) -> float | None:
    """Returns the sum of `first_values`; None if there are none or the sum is not finite."""
    read = first_values(page, names, label)
    found = sum(read)
    return found if read and isfinite(found) else None


def mean_samples(page: bytes, names: tuple[bytes, ...], label: bytes | None) -> float | None:
    """Returns the mean of `first_values`; None if there are none or their sum is not finite."""
    read = first_values(page, names, label)
    found = sum(read)
    return found / len(read) if read and isfinite(found) else None
