"""Runs tests side by side: `--processes N` forks N processes once all tests are collected.

Tests of one scope, such as a file, stay together in a process, in their order. A process that has
run its scope gets the next one. One that crashes fails the test that it ran, and another goes on.
So does one that reports nothing for longer than its test may take.

Why: the alarm of pytest-timeout can be lost: a finalizer that it interrupts swallows its exception.

Why not pytest-xdist: each of its processes collects all tests again, 25 s of processor time each.
"""

import atexit
import contextlib
import gc
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Final

import pytest
from _pytest._io import TerminalWriter

from fairlead_testing.processes import PROCESS_VARIABLE
from fairlead_testing.pytest_hooks.coroutine_tests import time_limit

OPTION: Final = "--processes"
_MAX_CRASHES: Final = 10
_CHECK_SECONDS: Final = 1.0
_NEXT_SCOPE: Final = "next scope"
_REPORT: Final = "pytest_runtest_logreport"
_WARNING: Final = "pytest_warning_recorded"
_FINISHED: Final = "pytest_runtest_logfinish"


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=int, default=1, metavar="N", help="fork N processes to run the tests side by side")


def processes(config: pytest.Config) -> int:
    return int(config.getoption(OPTION))


class ForkedProcesses:
    """The plugin.

    scope_of: the name of the scope of a test. Scopes begin in the order of their first tests.
    margin_seconds: for how long beyond the limit of its test a process may report nothing.
    """

    def __init__(self, scope_of: Callable[[pytest.Item], str], margin_seconds: float = 60.0) -> None:
        self._scope_of = scope_of
        self._margin_seconds = margin_seconds
        self._scopes: deque[list[int]] = deque()
        self._living: dict[Connection, _Process] = {}
        self._crashes = 0

    @pytest.hookimpl
    def pytest_collection(self, session: pytest.Session) -> None:
        """Has no garbage collected before the forks: modules and tests live until the end."""
        if processes(session.config) > 1:
            gc.disable()

    @pytest.hookimpl
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Runs the tests. Leaves runs that need no second process to pytest."""
        config = session.config
        if session.testsfailed or config.option.collectonly or min(processes(config), len(session.items)) < 2:
            gc.enable()
            return None
        self._scopes.extend(_scopes(session.items, self._scope_of))
        reporter = config.pluginmanager.getplugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # tests of several files end between each other
        config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        gc.freeze()
        gc.enable()
        try:
            for number in range(min(processes(config), len(self._scopes))):
                self._start(session, number, self._scopes.popleft())
            while self._living:
                for connection in wait(list(self._living), _CHECK_SECONDS):
                    assert isinstance(connection, Connection)
                    self._receive(session, connection)
                self._end_silent(session)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        finally:
            for connection, process in self._living.items():
                connection.close()  # a process ends after the test that it runs
                os.waitpid(process.pid, 0)
        return True

    def _start(self, session: pytest.Session, number: int, scope: list[int]) -> None:
        """Forks a process that begins with a scope."""
        ours, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for connection in (ours, *self._living):
                    connection.close()
                _run(session, number, theirs, scope)
                atexit._run_exitfuncs()
                status = 0
            except BaseException:  # noqa: BLE001 the process that reports has only its exit code
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()
        self._living[ours] = _Process(pid, number, scope)

    def _receive(self, session: pytest.Session, connection: Connection) -> None:
        """Handles one message of a process, or its end."""
        process = self._living[connection]
        process.reported_at = time.monotonic()
        try:
            name, values = connection.recv()
        except (EOFError, OSError):
            self._end(session, connection)
            return
        if name == _NEXT_SCOPE:
            scope = self._scopes.popleft() if self._scopes else []
            process.remaining.extend(scope)
            with contextlib.suppress(OSError):
                connection.send(scope)
            return
        if name == _REPORT:
            config = session.config
            values = {"report": config.hook.pytest_report_from_serializable(config=config, data=values)}
        if name == _FINISHED:
            process.remaining.popleft()
        hook = getattr(session.config.hook, name)
        if name == _WARNING:
            hook.call_historic(kwargs=values)
        else:
            hook(**values)

    def _end_silent(self, session: pytest.Session) -> None:
        """Kills processes whose tests must have ended long ago."""
        for connection, process in list(self._living.items()):
            limit = time_limit(session.items[process.remaining[0]]) if process.remaining else None
            if limit is not None and time.monotonic() - process.reported_at > limit + self._margin_seconds:
                os.kill(process.pid, signal.SIGKILL)
                self._end(session, connection, f"reported nothing for longer than the limit of {limit:g} s")

    def _end(self, session: pytest.Session, connection: Connection, cause: str = "") -> None:
        """Reports the crash of a process that had tests to run, and has another one go on."""
        process = self._living.pop(connection)
        connection.close()
        code = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
        if not process.remaining:
            return
        item = session.items[process.remaining.popleft()]
        if not cause:
            cause = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        message = f"the process that ran this test {cause}"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", message, "call")
        session.config.hook.pytest_runtest_logreport(report=report)
        session.config.hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._crashes += 1
        if self._crashes == _MAX_CRASHES:
            session.shouldfail = f"{_MAX_CRASHES} processes that ran tests crashed"
            return
        if process.remaining:
            self._start(session, process.number, list(process.remaining))


class _Process:
    """A process that runs tests, in the one that reports.

    remaining: numbers of the tests that it has and has not ended; it runs the first.
    reported_at: the monotonic time of its last message.
    """

    def __init__(self, pid: int, number: int, scope: Iterable[int]) -> None:
        self.pid = pid
        self.number = number
        self.remaining = deque(scope)
        self.reported_at = time.monotonic()


class _Sender:
    """Sends the results of a process to the one that reports."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection

    @pytest.hookimpl
    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """Sends that a test begins."""
        self._connection.send(("pytest_runtest_logstart", {"nodeid": nodeid, "location": location}))

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Sends a result."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send((_REPORT, data))

    @pytest.hookimpl
    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """Sends that a test has ended."""
        self._connection.send((_FINISHED, {"nodeid": nodeid, "location": location}))

    @pytest.hookimpl
    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str, location: tuple[str, int, str] | None
    ) -> None:
        """Sends a warning; its text alone if it is no value that can be sent."""
        try:
            pickle.loads(pickle.dumps(warning_message))
        except Exception:  # noqa: BLE001 any type of warning
            warning_message = warnings.WarningMessage(
                pytest.PytestWarning(str(warning_message.message)),
                pytest.PytestWarning,
                warning_message.filename,
                warning_message.lineno,
            )
        values = {"warning_message": warning_message, "when": when, "nodeid": nodeid, "location": location}
        self._connection.send((_WARNING, values))


class _CapturedTerminal:
    """A terminal whose text is output of the test; pytest-timeout writes to it."""

    def __init__(self) -> None:
        self._tw = TerminalWriter(sys.stdout)


def _scopes(items: list[pytest.Item], scope_of: Callable[[pytest.Item], str]) -> Iterable[list[int]]:
    """Returns the numbers of the tests of each scope."""
    scopes: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        scopes.setdefault(scope_of(item), []).append(number)
    return scopes.values()


def _run(session: pytest.Session, number: int, connection: Connection, scope: list[int]) -> None:
    """Runs scopes in this fork until there are no more."""
    config = session.config
    os.environ[PROCESS_VARIABLE] = str(number)
    _separate(config, number)
    config.pluginmanager.register(_Sender(config, connection))
    waiting = deque(scope)
    try:
        while waiting:
            item = session.items[waiting.popleft()]
            if not waiting:
                connection.send((_NEXT_SCOPE, {}))
                waiting.extend(connection.recv())
            following = session.items[waiting[0]] if waiting else None
            config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.shouldfail or session.shouldstop:
                break
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the process that reports has been stopped
    finally:
        session._setupstate.teardown_exact(None)


def _separate(config: pytest.Config, number: int) -> None:
    """Gives this fork what it must not share: captured output, temporary files, no terminal."""
    for name in ("terminalprogress-plugin", "terminalreporter"):
        if config.pluginmanager.hasplugin(name):
            config.pluginmanager.unregister(name=name)
    capture = config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    capture.stop_global_capturing()
    capture.start_global_capturing()
    config.pluginmanager.register(_CapturedTerminal(), name="terminalreporter")
    factory: Any = config._tmp_path_factory  # type: ignore[attr-defined]
    factory._basetemp = factory.getbasetemp() / f"process-{number}-{os.getpid()}"
    factory._basetemp.mkdir(mode=0o700)
