"""The pause before a restart is arithmetic on failures in a row."""

from fairlead_cli.local.processes.managed_process import (
    MAX_DELAY_SECONDS,
    RESET_AFTER_SECONDS,
    count_failures,
    restart_delay_seconds,
)


def test_no_delay_without_failures() -> None:
    assert restart_delay_seconds(0) == 0.0


def test_delay_doubles_with_every_failure() -> None:
    assert [restart_delay_seconds(n) for n in range(1, 6)] == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_delay_is_bounded() -> None:
    assert restart_delay_seconds(1_000_000) == MAX_DELAY_SECONDS


def test_failures_add_up_while_processes_end_early() -> None:
    assert count_failures(count_failures(0, 0.0), RESET_AFTER_SECONDS - 0.1) == 2


def test_long_ready_process_resets_the_failure_count() -> None:
    assert count_failures(7, RESET_AFTER_SECONDS) == 1
