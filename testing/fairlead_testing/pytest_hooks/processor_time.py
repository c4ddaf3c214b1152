"""The processor time of each test and of a whole run, in units that fit the machine.

A unit is the time of a fixed loop on this machine (`unit_seconds`): 0.1 s on a fast one. A test's
time is that of its process and of all descendants, while its function runs: fixtures belong to no
test. A run's time is that of all processes that ran tests, from their start to their end.

With `FAIRLEAD_TEST_BUDGET=1` a run fails that used more than `RUN_UNITS`, or in which a test
without the marker `slow` used more than `TEST_UNITS`. Else both are reported alone. On processors
that others use, too, a test takes up to three times as many units; the bounds leave room for that.
"""

import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

import pytest

TEST_UNITS: Final = 300.0
RUN_UNITS: Final = 25_000.0
_PROPERTY: Final = "processor_seconds"
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_DEAREST: Final = 12
_SAMPLE_SECONDS: Final = 0.25


def unit_seconds() -> float:
    """Returns the processor seconds of one unit on this machine now."""
    return min(_loop_seconds() for _ in range(3))


class ProcessorTime:
    """The plugin. It measures where tests run, and sums up in the process that reports."""

    def __init__(self, *, has_budget: bool) -> None:
        self._has_budget = has_budget
        self._unit = unit_seconds()
        self._tests: dict[str, float] = {}
        self._slow: set[str] = set()
        self._total = 0.0
        self._last = (-_SAMPLE_SECONDS, 0.0)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Measures a test."""
        before = self._tree_seconds()
        try:
            return (yield)
        finally:
            item.user_properties.append((_PROPERTY, self._tree_seconds() - before))

    def _tree_seconds(self) -> float:
        """Returns the processor seconds of this process, of all that it has waited for, and of its
        living descendants. The last are as of up to `_SAMPLE_SECONDS` ago.

        Why: to ask the kernel for them around each of 10,000 tests took 30 s of processor time.
        """
        own, now = sum(os.times()[:4]), time.monotonic()
        if now - self._last[0] >= _SAMPLE_SECONDS:
            self._last = (now, sum(_seconds_of(pid) for pid in _descendants(os.getpid())))
        return own + self._last[1]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes the time of a test, wherever it ran."""
        if report.when == "call":
            measured = (seconds for name, seconds in report.user_properties if name == _PROPERTY)
            self._tests[report.nodeid] = sum(seconds for seconds in measured if isinstance(seconds, float))
            if "slow" in report.keywords:
                self._slow.add(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Sums up; fails the run that is over its budget."""
        self._total = sum(os.times()[:4])
        # The machine may have become slower: the longer unit counts, so that no test fails for it.
        self._unit = max(self._unit, unit_seconds())
        if self._has_budget and session.exitstatus == pytest.ExitCode.OK and any(self._excesses()):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Writes the sum, the dearest tests, and what is over the budget."""
        if not self._tests:
            return
        dearest = sorted(self._tests.items(), key=lambda test: -test[1])[:_DEAREST]
        units = self._total / self._unit
        terminalreporter.write_line(f"processor time: {units:,.0f} units of {self._unit:.2f} s; most in one test:")
        for name, seconds in dearest:
            terminalreporter.write_line(f"  {seconds / self._unit:5.1f} {name}")
        for line in self._excesses():
            terminalreporter.write_line(line, red=self._has_budget)

    def _excesses(self) -> Iterator[str]:
        for name, seconds in self._tests.items():
            if seconds > TEST_UNITS * self._unit and name not in self._slow:
                yield f"over {TEST_UNITS:.0f} units in one test: {seconds / self._unit:.0f} {name}"
        if self._total > RUN_UNITS * self._unit:
            yield f"over {RUN_UNITS:,.0f} units in one run: {self._total / self._unit:,.0f}"


def _loop_seconds() -> float:
    began, number = time.process_time(), 0
    for _ in range(1_000_000):
        number = (number * 31 + 7) % 1_000_003
    return time.process_time() - began


def _descendants(pid: int) -> Iterator[int]:
    """Yields the processes that a process has started and that live, with theirs."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended, or this is no Linux
        return
    for task in tasks:
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text()
        except OSError:
            continue
        for child in children.split():
            yield int(child)
            yield from _descendants(int(child))


def _seconds_of(pid: int) -> float:
    """Returns what a process and those that it has waited for have used; 0 when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / _TICKS
