"""Sum of floats, with the type of a float.

Why: `sum` also accepts whole numbers. For some comprehensions mypyc takes all items for such, and a
compiled core then raises TypeError. The property tests run on a compiled core.
"""

from collections.abc import Iterable


def float_sum(values: Iterable[float]) -> float:
    return sum(values)
