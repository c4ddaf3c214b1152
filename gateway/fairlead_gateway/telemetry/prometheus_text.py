"""Lines of the Prometheus text format (version 0.0.4): labels and histograms."""

import re
from collections.abc import Sequence
from typing import Final

_UNSAFE: Final = re.compile(r'[\\"\n]')
_ESCAPES: Final = {"\\": r"\\", '"': r"\"", "\n": r"\n"}


def escape_label(value: str) -> str:
    """Returns a label value with backslashes, quotes and line ends escaped."""
    return _UNSAFE.sub(lambda match: _ESCAPES[match[0]], value)


def format_histogram(
    name: str, labels: str, counts: Sequence[int], exported: Sequence[tuple[int, str]], total: str
) -> str:
    """Returns the lines of one histogram.

    exported: for each exported bound, the last position in `counts` below it, and its text.
    total: the sum of the observations, as text.
    """
    out: list[str] = []
    running, position = 0, 0
    for index, bound in exported:
        running += sum(counts[position : index + 1])
        position = index + 1
        out.append(f'{name}_bucket{{{labels},le="{bound}"}} {running}\n')
    running += sum(counts[position:])
    out.append(f'{name}_bucket{{{labels},le="+Inf"}} {running}\n')
    out.append(f"{name}_sum{{{labels}}} {total}\n{name}_count{{{labels}}} {running}\n")
    return "".join(out)
