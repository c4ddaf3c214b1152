"""The pause before a restart is arithmetic on failures in a row."""

from fairlead_cli.local.processes.managed_process import (
    MAX_DELAY_SECONDS,
    RESET_AFTER_SECONDS,
    count_failures,
    restart_delay_seconds,
)


def test_a_process_that_never_failed_starts_at_once() -> None:
    assert restart_delay_seconds(0) == 0.0


def test_the_pause_doubles_with_every_failure() -> None:
    assert [restart_delay_seconds(n) for n in range(1, 6)] == [0.25, 0.5, 1.0, 2.0, 4.0]


def test_the_pause_is_bounded_however_often_it_fails() -> None:
    assert restart_delay_seconds(1_000_000) == MAX_DELAY_SECONDS


def test_failures_add_up_while_a_process_dies_young() -> None:
    assert count_failures(count_failures(0, 0.0), RESET_AFTER_SECONDS - 0.1) == 2


def test_a_process_that_was_ready_for_long_starts_counting_anew() -> None:
    assert count_failures(7, RESET_AFTER_SECONDS) == 1
