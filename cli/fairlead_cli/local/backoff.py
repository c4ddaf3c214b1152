"""How long to wait before a dead process is started again: pure arithmetic on its failures in a row."""

FIRST_SECONDS = 0.25
LONGEST_SECONDS = 30.0
PROVEN_SECONDS = 30.0
"""A process that was ready for this long has proved itself: what happens next counts as the first failure again."""


def failures_after(failures: int, ready_seconds: float) -> int:
    """The count of failures in a row once a process that had been ready for ``ready_seconds`` has ended as well."""
    return 1 if ready_seconds >= PROVEN_SECONDS else failures + 1


def delay_seconds(failures: int) -> float:
    """The pause after ``failures`` in a row: none yet 0, then a quarter of a second, doubling, at most half a minute."""
    if failures <= 0:
        return 0.0
    return min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(failures - 1, 16))
