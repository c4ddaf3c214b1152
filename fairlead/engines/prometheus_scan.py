"""Reading numbers from a metrics page without parsing it.

A page has 50 to 90 kB of which a dozen lines matter, and it is read for every engine every few seconds. So each wanted series is
looked for by its name at the start of a line, which costs microseconds. A page begins with a line break that the caller adds.
"""

from collections.abc import Iterator
from math import isfinite


def parse_samples(page: bytes, name: bytes, label: bytes | None) -> Iterator[tuple[bytes, float]]:
    """(labels, value) of every sample of one series that has the label ``wanted``; values that are no numbers are left out."""
    start = page.find(b"\n" + name)
    while start >= 0:
        end = page.find(b"\n", start + 1)
        if end < 0:
            return  # a line without its end was cut off, and half a number is no number
        line = page[start + 1 : end]
        start = page.find(b"\n" + name, start + 1)
        if line[len(name) : len(name) + 1] not in (b"{", b" "):
            continue  # a longer name, such as …_waiting_by_reason
        labels, _, number = line[len(name) :].rstrip().rpartition(b" ")
        if label is not None and label not in labels:
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        if isfinite(value):  # neither NaN nor infinity is a reading
            yield labels, value


def first_values(page: bytes, names: tuple[bytes, ...], label: bytes | None) -> list[float]:
    """The values of the first of ``names`` that the page has: newer releases renamed some."""
    for name in names:
        if found := [value for _, value in parse_samples(page, name, label)]:
            return found
    return []


def sum_samples(page: bytes, names: tuple[bytes, ...], label: bytes | None) -> float | None:
    """Their sum; None when the page has none of them."""
    read = first_values(page, names, label)
    found = sum(read)
    return found if read and isfinite(found) else None


def mean_samples(page: bytes, names: tuple[bytes, ...], label: bytes | None) -> float | None:
    """Their mean; None when the page has none of them."""
    read = first_values(page, names, label)
    found = sum(read)
    return found / len(read) if read and isfinite(found) else None
