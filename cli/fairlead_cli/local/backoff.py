"""How long to wait before a dead process is started again: pure arithmetic on its failures in a row."""

FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 30.0
RESET_AFTER_SECONDS = 30.0
"""A process that was ready for this long has proved itself: what happens next counts as the first failure again."""


def count_failures(failures: int, ready_seconds: float) -> int:
    """The count of failures in a row once a process that had been ready for ``ready_seconds`` has ended as well."""
    return 1 if ready_seconds >= RESET_AFTER_SECONDS else failures + 1


def restart_delay_seconds(failures: int) -> float:
    """The pause after ``failures`` in a row: none yet 0, then a quarter of a second, doubling, at most half a minute."""
    if failures <= 0:
        return 0.0
    return min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 16))
