"""Lines of Prometheus text (version 0.0.4): labels as the format wants them, and histograms."""

import re
from collections.abc import Sequence
from typing import Final

_UNSAFE: Final = re.compile(r'[\\"\n]')
_ESCAPES: Final = {"\\": r"\\", '"': r"\"", "\n": r"\n"}


def escape_label(value: str) -> str:
    """A label's value as the text format wants it."""
    return _UNSAFE.sub(lambda match: _ESCAPES[match[0]], value)


def format_histogram(
    name: str, labels: str, counts: Sequence[int], exported: Sequence[tuple[int, str]], total: str
) -> str:
    """The lines of one histogram; ``exported`` says up to which fine bucket each bound reaches."""
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
